"""The pages of any project: what they read and say, live and as files; they write nothing"""

import csv
import json
import re
import shutil
from io import StringIO
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import CHROMIUM, faults, visiting
from conftest import tool
from dashboards import serving
from stranger import aside, watched
from test_dashboard import record, tree
from toy import notebook

from scalai_nb.cli import main
from scalai_nb.environment import environment
from scalai_nb.jupyter.pages import data_page, models_page, operations_page, overview
from scalai_nb.jupyter.pages import pipeline_page, pipelines_page
from scalai_nb.jupyter.pages.live_report import write_pages
from scalai_nb.jupyter.pages.page_parts import csv_text, data_table
from scalai_nb.jupyter.pages.site_pages import PAGES, asked, bar, place
from scalai_nb.show import LAB, status

OURS = ["index", "operations", "pipelines", "pipeline", "models", "data"]


@pytest.fixture(scope="module")
def project(made_once, orchard_run):
    "The folder of a project that is served and watched, whose other pipeline has never run"

    def make(folder: Path) -> None:
        shutil.copytree(orchard_run, folder, dirs_exist_ok=True)
        env = environment("laptop", settings=folder / "settings.ini")
        watched(env)
        aside(env)
        record(env, "orchard", 1, "failed", error="KeyError: 'wind'")
        notebook(Path(env.pipelines, "pears/01_in.ipynb"), "n: int = 1", title="Pears come")

    return made_once("watched-orchard", make)


@pytest.fixture(scope="module")
def env(project):
    "Its environment; a test that changes something takes `copied`"
    return environment("laptop", settings=project / "settings.ini", worker_price=2.0)


@pytest.fixture
def copied(project, tmp_path):
    "The environment of a copy, which a test may break"
    shutil.copytree(project, tmp_path / "copy")
    return environment("laptop", settings=tmp_path / "copy/settings.ini")


@pytest.fixture
def empty(tmp_path):
    "The environment of a project of settings alone"
    (tmp_path / "settings.ini").write_text("[laptop]\n")
    return environment("laptop", settings=tmp_path / "settings.ini")


# What they say


def test_every_page_has_a_notebook_and_is_read_without_a_write(env):
    before = tree(env.root)
    for name, page in PAGES.items():
        assert page.parts(page.read(env)).text
        assert (Path(str(LAB)) / "dashboards" / f"{name}.ipynb").exists()
    assert tree(env.root) == before
    assert set(OURS) <= PAGES.keys()


def test_the_overview_says_three_sentences_a_pipeline_and_what_lasts(env):
    text = overview.parts(overview.read(env)).text
    assert "1 of 4 goals are met" in text
    assert "ripeness: version 1 is the champion, in alarm since 2026-03-07 00:00." in text
    assert re.search(r"It ran .*: ✔ completed in ", text)
    assert "It has not run yet: scalai run pears" in text
    assert "an alarm lasts Somebody is at it" in text and "Needs somebody" not in text
    assert re.search(r"2026-03-07 00:00 Drift of ripeness-predictions in weight .* ada ", text)


def test_what_needs_somebody_comes_first(copied):
    record(copied, "pears", 1, "failed", error="KeyError: 'core'")
    state = overview.read(copied)
    assert [part.text for part in overview.needs(state)] == ["Pears: the last run failed."]
    assert "Needs somebody\nPears: the last run failed." in overview.parts(state).text
    pears = next(page for page in state.pages if page.pipeline == "pears")
    assert "fit: KeyError: 'core'" in overview.one(pears).text


def test_operations_tell_requests_latency_lag_alarms_decisions_and_cost(env):
    state = operations_page.read(env)
    (w,) = state.watched
    assert (w.name, w.lag, len(w.qualities)) == ("ripeness", 300, 7)
    text = operations_page.parts(state).text
    assert re.search(r"ripeness model ✘ in alarm 2026-03-07 00:00 +300 +\d+ days ago", text)
    assert re.search(r"2026-03-07 00:00 +1 +300 +0.00347 [\d.]+ ms [\d.]+ ms +100", text)
    assert "train" in text and "an alarm: weight" in text and "No service runs" in text
    assert re.search(r"Orchard +2 +\d+ s +\d+\.\d\d", text)


@pytest.mark.slow
def test_a_service_that_runs_tells_what_it_was_asked(copied):
    from scalai_nb.serving.process.service import running

    with running("ripeness", copied, workers=1) as service:
        (found,) = operations_page.read(copied).services
        text = operations_page.services_table(operations_page.read(copied)).text
    assert found[0].url == service.url and "✔ ready" in text and "ripeness" in text


def test_pipelines_tell_status_cost_cached_share_and_the_remedy(copied, env):
    text = pipelines_page.parts(pipelines_page.read(env)).text
    assert re.search(r"✔ completed +[\d. smin]+ +\d+\.\d\d +0\s% +403", text)
    assert re.search(r"✘ failed +8.0 s .*fit: KeyError: 'wind'", text)
    assert "scalai run pears" in text and "worker_price" not in text
    record(copied, "pears", 5, "failed", error="KeyError: 'core'")
    state = pipelines_page.read(copied)
    assert "worker_price" in pipelines_page.parts(state).text
    only = pipelines_page.parts(state, "pears").text
    assert "The last run failed" in only and "KeyError: 'core'" in only
    assert "Repair it and run again" in only and "KeyError: 'wind'" not in only


def test_models_tell_champion_gate_versions_and_who_promoted_them(env):
    text = models_page.parts(models_page.read(env)).text
    assert re.search(r"ripeness version 1 .* ✔ passed +1", text)
    assert "It passes every check that decides" in text
    assert re.search(r"promoted +1 champion \S+ +passes every check that decides", text)
    assert "LogisticRegression" in text and "input weight FLOAT" in text


def test_data_tell_contracts_what_was_put_aside_and_who_wrote(env):
    state = data_page.read(env)
    text = data_page.parts(state).text
    assert re.search(r"juice +201 .* 1 column, quarantine ! 3 rows", text)
    assert re.search(r"crates +400 +\d+ kB \w{8} .* 01_pick +none", text)
    assert "3 rows broke the contract and were put aside: juice.quarantine" in text
    assert {w.name for w in state.beside} >= {"juice.quarantine", "ripeness-predictions.watch"}
    only = data_page.parts(state, "juice").text
    assert "V52" not in only and "scalai describe juice" in only
    assert "scalai describe crates" not in only


def test_one_pipeline_is_shown_whole(env):
    text = pipeline_page.parts(pipeline_page.read(env)).text
    assert "ROC AUC in service" in text and "What the watcher has decided" in text
    assert "Every check" in text and "three" in text


# What is not there, and what is broken


def test_an_empty_project_says_what_to_do_on_every_page(empty):
    for name in OURS:
        page = PAGES[name]
        assert "scalai " in page.parts(page.read(empty)).text, name
    assert list(tree(empty.root)) == [empty.root / "settings.ini"]


def test_a_lake_and_a_registry_that_cannot_be_read_say_so_and_hide_no_other(copied):
    shutil.rmtree(Path(copied.lake, "weeks/snapshots"))
    Path(copied.tracking.removeprefix("sqlite:///")).write_bytes(b"no database" * 999)
    shown = {name: PAGES[name].parts(PAGES[name].read(copied)).text for name in OURS}
    assert "dataset weeks cannot be read" in shown["data"] and "crates" in shown["data"]
    assert "the registry cannot be read" in shown["models"]
    assert "cannot be read" in shown["index"] and "Orchard" in shown["index"]
    assert "scalai doctor" in shown["models"]


def test_text_of_anybody_is_not_markup():
    evil = '<img src=x onerror="alert(1)">'
    shown = data_table(["a"], [[evil]], evil).html + bar("index").html
    assert "<img" not in shown and '"alert' not in shown
    assert re.fullmatch(r"[\w%.~-]+", place(evil))


def test_a_table_can_be_taken_along(env):
    html = models_page.parts(models_page.read(env)).html
    address = re.search(r'href="data:text/csv;charset=utf-8,([^"]+)" download="models.csv"', html)
    rows = list(csv.DictReader(StringIO(unquote(address[1]))))
    assert rows[0]["model"] == "ripeness" and rows[0]["gate"] == "passed"
    sheet = csv_text(["ended", "said"], [[status("cached"), "=HYPERLINK(1)"], [None, "-2.5"]])
    assert sheet == "ended,said\r\ncached,'=HYPERLINK(1)\r\n,-2.5\r\n"
    operations = operations_page.parts(operations_page.read(env)).html
    drawn = unquote(re.search(r'href="data:image/svg\+xml[^,]*,([^"]+)"', operations)[1])
    assert drawn.startswith("<svg xmlns=") and "<style>" in drawn


def test_an_address_asks_for_one_thing(monkeypatch, env):
    monkeypatch.setenv("QUERY_STRING", "dataset=juice&x=1")
    assert (asked("dataset"), asked("model")) == ("juice", "")
    shown = data_page.app(env).children[-1].value
    assert "scalai describe juice" in shown and "scalai describe crates" not in shown


# As files


def test_the_command_writes_every_page_or_says_which(env, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCALAI_SETTINGS", str(env.root / "settings.ini"))

    def said(*words):
        with pytest.raises(SystemExit) as ended:
            main(["report", *words, "--env", "laptop"])
        return ended.value.code, capsys.readouterr()

    to = str(tmp_path / "mail")
    code, out = said("--live", "--to", to, "--dry-run", "--json")
    assert code == 0 and json.loads(out.out)[0] == f"{to}/index.html"
    assert not Path(to).exists()
    code, out = said("--to", to)
    assert code == 2 and "scalai report --live --to FOLDER" in out.err
    code, out = said("orchard-1", "--live")
    assert code == 2 and "--live is of the project" in out.err


@pytest.mark.browser
def test_the_files_are_read_in_a_browser_with_a_keyboard_and_on_a_phone(env, tmp_path):
    if not CHROMIUM:
        pytest.skip("no Chromium; run make test-services")
    axe = tool("axe")
    files = write_pages(env, tmp_path)
    with visiting("file://", "data:") as visit:
        page = visit.page
        for file in files:
            page.set_viewport_size({"width": 1180, "height": 800})
            page.goto(file.as_uri())
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert faults(page, axe) == [], (file.name, scheme)
            page.set_viewport_size({"width": 390, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, file.name
            assert faults(page, axe) == [], (file.name, "phone")
        page.goto(files[0].as_uri())
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/operations.html")
        page.get_by_role("link", name="its versions").click()
        page.wait_for_url("**/models.html?model=ripeness#ripeness")
        assert page.locator(":target").get_by_role("heading", level=2).inner_text() == "ripeness"
    assert (visit.errors, visit.outside) == ([], [])


@pytest.mark.browser
@pytest.mark.slow
def test_a_served_page_shows_what_its_address_asks_for(env):
    if not CHROMIUM:
        pytest.skip("no Chromium; run make test-services")
    axe = tool("axe")
    from playwright.sync_api import expect

    with serving(env, "index") as (address, _), visiting("http://127.0.0.1:") as visit:
        page = visit.page
        page.goto(f"{address}data.html?dataset=juice")
        expect(page.get_by_role("heading", name="juice")).to_be_visible(timeout=120_000)
        expect(page.get_by_role("heading", name="crates")).to_have_count(0)
        here = page.locator(".scalai-bar [aria-current]")
        expect(here).to_have_text("Data")
        assert faults(page, axe) == []
        page.unroute_all()  # what a page sends when it is left cannot be routed any more
    assert (visit.errors, visit.outside) == ([], [])


@pytest.mark.campaign
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium; apt install chromium")
def test_a_visit_is_timed_until_something_is_painted_and_until_the_subject_is_there(env):
    from scalai_nb.bench.jupyter.visits import bench_visits

    (painted, shown) = bench_visits(env, 1, ["data"])["data"]
    assert 0 < painted < shown
