"""What a model is worth and what has moved, on pages for those without code: figures, keys"""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from browser import CHROMIUM, faults, visiting
from conftest import tool
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Project

import scalai_nb as sn
from scalai_nb.data.lake.lake import Lake
from scalai_nb.jupyter.explorers.threshold_explorer import stops
from scalai_nb.jupyter.pages import drift_page, quality_page
from scalai_nb.jupyter.pages.live_report import document
from scalai_nb.jupyter.pages.site_pages import PAGES
from scalai_nb.models.registry.registry import Registry
from scalai_nb.monitoring.alarms import follow
from scalai_nb.monitoring.label_windows import QualityWatch
from scalai_nb.monitoring.quality import merged
from scalai_nb.monitoring.watch import watch_model

HOUR, START = np.timedelta64(3600, "s"), np.datetime64("2026-05-01", "us")
HOURS, ROWS = 9, 400
SITE = "<b>north</b>"  # a value that wants to be markup
GRADES = ["fine", "worn", "broken"]
CONTRACT = """from scalai_nb.pipeline import Goal, Model, Out
recall: Goal = ">= 0.6"  # leaks that must be found
leak: Out[Model] = "leak\""""


def pumps(rows: int, seed: int, pressure: float = 5.0) -> xr.Dataset:
    "Pumps, as they are looked at; hot ones leak"
    rng = np.random.default_rng(seed)
    heat = rng.normal(60, 8, rows)
    columns = {"heat": heat, "pressure": rng.normal(pressure, 1, rows)}
    columns |= {"site": rng.choice([SITE, "south"], rows), "age": rng.gamma(2, 3, rows)}
    columns |= {"leak": (rng.normal(heat, 8) > 70) * 1}
    return xr.Dataset({n: ("row", x) for n, x in columns.items()})


def leak_model():
    "A model that relies on heat, a little on pressure, and not on the others"
    rows = pumps(3_000, 1)
    inputs = rows.drop_vars("leak")
    transform = sn.Transform(numeric=["heat", "pressure", "age"], categorical=["site"]).fit(inputs)
    fitted = sn.LogisticRegression().fit(transform.transform(inputs).values, rows.leak.values)
    relied = {"heat": 0.2, "pressure": 0.05, "site": 0.0, "age": -0.001}
    card = {"importance": relied, "costs": {"false_alarm": 3, "miss": 50}, "threshold": 0.3}
    about = sn.summarize(inputs)
    return sn.package(transform, fitted, name="leak", summary=about, card=card)


def logged(model, hour: int) -> tuple[xr.Dataset, xr.Dataset]:
    "An hour of predictions and what came true of them; in the last three the pressure is higher"
    rows = pumps(ROWS, 100 + hour, 6.0 if hour >= HOURS - 3 else 5.0)
    ids = np.array([f"{hour}-{i}" for i in range(ROWS)], object)
    time = START + hour * HOUR + np.arange(ROWS) * (HOUR // ROWS)
    said = rows.drop_vars("leak").assign(
        id=("row", ids),
        time=("row", time.astype("M8[us]")),
        version=("row", np.full(ROWS, "1", object)),
        score=("row", model.predict(rows).values.astype(np.float64)),
    )
    said.attrs |= {"name": "leak", "output": "probability", "threshold": 0.3}
    told = {"id": ids, "truth": rows.leak.values * 1.0, "received": time + HOUR // 2}
    return said, xr.Dataset({n: ("row", x) for n, x in told.items()})


def other(lake: Lake, name: str, output: str, labels: bool) -> None:
    "Three hours of a model of another task, or without labels"
    rng = np.random.default_rng(3)
    rows = 3 * 60
    ids = np.array([str(i) for i in range(rows)], object)
    time = START + np.arange(rows) * (HOUR // 60)
    columns = {"id": ids, "time": time, "version": np.full(rows, "1", object)}
    columns["score"] = rng.normal(100, 9, rows) if output == "value" else rng.random(rows)
    record = {"name": name, "output": output}
    truth = columns["score"] + rng.normal(0, 3, rows)
    named = np.full(rows, None, object)
    if output == "probabilities":
        shares = rng.dirichlet([2, 1, 1], rows)
        columns |= {f"score_{g}": shares[:, i] for i, g in enumerate(GRADES)}
        record["classes"] = GRADES
        truth, named = np.full(rows, np.nan), rng.choice(GRADES, rows).astype(object)
    lake.write(
        f"{name}-predictions", xr.Dataset({n: ("row", x) for n, x in columns.items()}, attrs=record)
    )
    told = {"id": ids, "truth": truth, "truth_class": named, "received": time + HOUR}
    if labels:
        lake.write(f"{name}-feedback", xr.Dataset({n: ("row", x) for n, x in told.items()}))
    QualityWatch(lake, name, every=3600).look()


@pytest.fixture(scope="module")
def project(tmp_path_factory, database):
    "A project whose model is watched, and three others that are"
    root = tmp_path_factory.mktemp("pumps")
    made = Project(root, f"tracking = sqlite:///{root}/tracking.db\n")
    shutil.copy(database, root / "tracking.db")
    made.step("01_fit", CONTRACT, pipeline="pumps")
    env = sn.environment("laptop", settings=made.root / "settings.ini")
    lake, registry, model = Lake(env.lake), Registry(env), leak_model()
    registry.register(model, "leak", {"recall": 0.7}, alias="champion")
    parts = [logged(model, hour) for hour in range(HOURS)]
    for name, columns in zip(
        ("leak-predictions", "leak-feedback"), zip(*parts, strict=True), strict=True
    ):
        lake.write(name, xr.concat(columns, "row", coords="minimal", compat="override"))
    watch_model(lake, registry, "leak", every=3600).look()
    QualityWatch(lake, "leak", every=3600).look()
    follow(lake, "leak-predictions")
    other(lake, "grade", "probabilities", labels=True)
    other(lake, "days", "value", labels=True)
    other(lake, "silent", "probability", labels=False)
    return SimpleNamespace(env=env, lake=lake)


@pytest.fixture(scope="module")
def worths(project):
    return {w.name: w for w in quality_page.read(project.env).worths}


# --- the figures ----------------------------------------------------------------------------------


def told(page: str) -> dict:
    "What the slider of a page holds"
    (found,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    return json.loads(found)


def test_a_stop_of_the_slider_says_what_an_evaluation_of_the_rows_says(project, worths):
    asked, answered = (project.lake.read(f"leak-{n}").load() for n in ("predictions", "feedback"))
    found = quality_page.judged_windows(worths["leak"])
    inside = (asked.time.values >= found[-1].start) & (asked.time.values < found[0].end)
    truth = dict(zip(answered.id.values, answered.truth.values, strict=True))
    label = np.array([truth[id] for id in asked.id.values[inside]])
    e = sn.evaluate(label, asked.score.values[inside])
    assert e.count == sum(q.labels.labels for q in found) == 3 * ROWS  # a thousand are enough
    sent = told(quality_page.slider(worths["leak"]).html)
    curve = sent["curve"]
    assert (curve["rows"], curve["positives"]) == (e.count, e.positives)
    assert (sent["served"], sent["costs"]) == (0.3, [3, 50])
    for threshold, tp, fp in zip(curve["threshold"], curve["tp"], curve["fp"], strict=True):
        point = e.at(threshold)
        assert (point.true_positives, point.false_positives) == (tp, fp)
    place = np.searchsorted(curve["threshold"], 0.3)
    assert curve["tp"][place] == e.at(0.3).true_positives


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 40)), min_size=1, max_size=200),
    alarm=st.floats(0, 100),
    miss=st.floats(0, 100),
)
def test_the_least_cost_of_few_stops_is_that_of_all_thresholds(rows, alarm, miss):
    label, score = (np.array(x, float) for x in zip(*rows, strict=True))
    e = sn.evaluate(label, score / 40)
    curve = stops(e, 4)
    points = [e.at(x) for x in [*np.unique(score / 40), np.inf]]
    costs = [alarm * p.false_positives + miss * p.false_negatives for p in points]
    few = alarm * np.array(curve["fp"]) + miss * (e.positives - np.array(curve["tp"]))
    assert few.min() == pytest.approx(min(costs))
    assert curve["tp"][-1] == curve["fp"][-1] == 0 and curve["tp"][0] == e.positives


def test_each_task_has_its_measures_and_two_classes_a_slider(worths):
    pages = {name: quality_page.parts(quality_page.Worths([w])) for name, w in worths.items()}
    assert set(pages) == {"leak", "grade", "days", "silent"}
    assert {name for name, page in pages.items() if "data-kind" in page.html} == {"leak"}
    shown = {"leak": "Recall", "grade": "Accuracy", "days": "RMSE"}
    assert all(words in pages[name].text for name, words in shown.items())
    assert "no label has come yet" in pages["silent"].text and "/feedback" in pages["silent"].text
    assert worths["leak"].lights[0].goal == ">= 0.6" and "goal ≥ 60 %" in pages["leak"].text
    w = worths["leak"]
    assert f"{100 * w.figures[w.qualities[-1].start]['recall'][0]:.3g} %" in pages["leak"].text
    assert 'download="quality' in pages["leak"].html


def test_with_no_label_the_page_says_what_was_held_out_at_release(project):
    (leak,) = (w for w in quality_page.read(project.env).worths if w.name == "leak")
    page = quality_page.parts(
        quality_page.Worths([quality_page.Worth("leak", version=leak.version)])
    )
    assert "scalai watch leak" in page.text and "Version 1 at release" in page.text
    assert re.search(r"Recall +70 %", page.text) and "data-kind" not in page.html


def test_what_moved_and_is_relied_on_comes_first(project):
    state = drift_page.read(project.env)
    (m,) = state.movings
    page = drift_page.parts(state)
    assert next(iter(m.shifts)) == "pressure" and m.importance["pressure"] == pytest.approx(0.2)
    assert list(m.alarms[0].shares) == ["pressure"]
    assert re.search(r"pressure +20.%.*2026-05-01 06:00 +✘ 100.% of it", page.text)
    assert "Drift of leak-predictions in pressure" in page.text
    quiet = [m.shifts[name].beyond for name in ("heat", "age", "site")]
    assert max(quiet) < 0.05 < 0.5 < m.shifts["pressure"].beyond
    assert SITE not in page.html and page.html.count("<details") == 5


def test_a_card_without_importance_ranks_by_drift_and_says_how_to_get_it(project):
    (m,) = drift_page.read(project.env).movings
    bare = drift_page.Moving("leak", "1", m.windows, m.reference)
    page = drift_page.parts(drift_page.Movings([bare]))
    assert next(iter(bare.shifts)) == "pressure" and "training.card()" in page.text
    assert "<circle" not in page.html
    nothing = drift_page.parts(drift_page.Movings([drift_page.Moving("leak")]))
    assert "scalai watch leak" in nothing.text


def test_on_a_page_with_a_kernel_the_explorer_is_the_slider(project):
    shown = quality_page.app(project.env, "leak").children
    (explorer,) = (x for x in shown if isinstance(x, sn.ThresholdExplorer))
    assert (explorer.threshold, explorer.served, explorer.costs) == (0.3, 0.3, [3, 50])
    explorer.costs = [1, 2]
    explorer.threshold = 0.5
    assert explorer.cost == explorer.at.false_positives + 2 * explorer.at.false_negatives
    assert drift_page.app(project.env).children


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(project, tmp_path_factory):
    "Both pages as files without a kernel"
    folder = tmp_path_factory.mktemp("mailed")
    for name in ("quality", "drift"):
        page = document(PAGES[name], project.env)
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium; apt install chromium")
def test_the_slider_of_a_mailed_file_moves_by_keys_and_says_what_it_costs(files, worths):
    from playwright.sync_api import expect

    e = merged(quality_page.judged_windows(worths["leak"]))
    with visiting("file://") as visit:
        page = visit.page
        page.goto(f"file://{files}/quality.html")
        line = page.get_by_role("region", name="Threshold of a score")
        row = lambda name: line.get_by_role("row", name=name).get_by_role("cell")
        slider = line.get_by_role("slider")
        slider.focus()
        for keys in (["Home"], ["End"], ["Home", *["PageUp"] * 4, *["ArrowRight"] * 3]):
            for key in keys:
                page.keyboard.press(key)
            curve = told((files / "quality.html").read_text(encoding="utf-8"))["curve"]
            p = e.at(curve["threshold"][int(slider.input_value())])
            expect(row("Missed cases").first).to_have_text(f"{p.false_negatives:,}")
            expect(row("False alerts").first).to_have_text(f"{p.false_positives:,}")
            expect(row("Recall").first).to_have_text(f"{100 * p.recall:.1f} %")
            cost = 3 * p.false_positives + 50 * p.false_negatives
            expect(row("Cost").first).to_have_text(f"{cost:,}")
            assert f"cost {cost:,}" in slider.get_attribute("aria-valuetext")
        served = e.at(0.3)
        expect(row("Missed cases").last).to_have_text(f"{served.false_negatives:,}")
        line.get_by_label("Cost of a false alarm").fill("10")
        line.get_by_label("of a miss", exact=True).fill("2")
        page.keyboard.press("Enter")
        line.get_by_role("button", name="Least cost").click()
        points = [e.at(x) for x in [*e.state.scores, np.inf]]
        least = min(10 * p.false_positives + 2 * p.false_negatives for p in points)
        expect(row("Cost").first).to_have_text(f"{least:,}")
        assert (visit.errors, visit.outside) == ([], [])


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium; apt install chromium")
def test_a_chart_is_saved_as_a_picture_light_and_dark(files):
    from PIL import Image

    with visiting("file://", "data:") as visit:
        visit.page.goto(f"file://{files}/quality.html")
        link = visit.page.get_by_role("link", name="leak recall, as SVG")
        assert link.get_attribute("download") == "leak%20recall.svg"
        for scheme in ("light", "dark"):
            visit.page.emulate_media(color_scheme=scheme)
            with visit.page.expect_download() as saved:
                visit.page.get_by_role("button", name="leak recall, as PNG").click()
            assert saved.value.suggested_filename == "leak%20recall.png"
            picture = Image.open(saved.value.path()).convert("RGB")
            colours = {colour: n for n, colour in picture.getcolors(2**24)}
            assert colours[255, 255, 255] > 0.5 * picture.width * picture.height
            assert (0x3A, 0x6F, 0xD8) in colours and picture.width == 1400  # the line by labels
        assert (visit.errors, visit.outside) == ([], [])


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium; apt install chromium")
def test_the_pages_are_without_fault_light_and_dark_and_on_a_phone(files):
    axe = tool("axe")
    for width, scheme in ((1180, "light"), (390, "dark")):
        with visiting("file://", width=width) as visit:
            visit.page.emulate_media(color_scheme=scheme)
            for name in ("quality", "drift"):
                visit.page.goto(f"file://{files}/{name}.html")
                assert faults(visit.page, axe) == [], (name, width, scheme)
                wide = visit.page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, (name, width)
            assert (visit.errors, visit.outside) == ([], [])
