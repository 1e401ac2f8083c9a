"""The report of a run: verdict, goals and model first, a card a step, the notebooks a click away"""

import json
import re
import shutil
from pathlib import Path

import pytest
from browser import CHROMIUM, faults, visiting
from conftest import tool
from toy import Project

from scalai_nb.models.registry.registry import Registry
from scalai_nb.pipeline.report import report, write_report
from scalai_nb.pipeline.run import load_run

PIPELINE = "orchard"


def texts(html: str) -> str:
    "What a page says before any notebook, without its markup"
    shown = re.sub(r"<style>.*?</style>|<details>.*?</details>", "", html, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", shown))


def test_it_begins_with_verdict_goals_and_model_and_each_step_has_its_card(orchard_env):
    run = load_run(orchard_env)
    html = (run.folder / "report.html").read_text()  # as the run has written it
    said = texts(html)
    places = [
        said.index(words)
        for words in (
            "✔ completed 4 of 4 steps are done, in",
            "2 of 4 goals are met, 1 warning, 1 not measured.",
            "ripeness, version 1",
            "It is the champion.",
            "Step by step",
        )
    ]
    assert places == sorted(places)
    assert "share of the crates sent that are ripe" in said and "80 %" in said
    assert re.findall(r'<section id="(\w+)"', html) == [s.stem for s in run.steps]
    assert re.search(r"Train ✔ completed read crates\W+\w{6} wrote ripeness\W+1", said)
    assert "ran because: never run" in said and "picked 400" not in said


def test_every_link_leads_somewhere_in_the_file(orchard_env):
    html = report(load_run(orchard_env), orchard_env)
    ids = set(re.findall(r' id="([^"]*)"', html))
    links = re.findall(r'href="([^"]*)"', html)
    assert links and {link[1:] for link in links} <= ids


def test_notebooks_are_closed_whole_and_their_last_picture_is_small(orchard_env):
    html = report(load_run(orchard_env), orchard_env)
    assert html.count("<details") == 5 and "<details open" not in html  # and every check
    assert "picked 400" in html and "Picture of Train" in html
    small, whole = re.findall(r'src="data:image/png;base64,([^"]*)"', html)
    assert len(small) < len(whole) / 2


def test_a_later_version_does_not_rewrite_what_a_run_has_come_to(orchard_env):
    registry = Registry(orchard_env)
    registry.register(registry.load("ripeness"), "ripeness", {"precision": 0.99})
    registry.promote("ripeness", 2, reason="anew")
    run = load_run(orchard_env)
    said = texts(report(run, orchard_env))
    assert "It is not the champion: version 2 is." in said and "80 %" in said


def test_without_a_registry_or_notebooks_it_says_what_it_knows(orchard_env):
    run = load_run(orchard_env)
    assert "0.5" in texts(report(run))  # what the run has recorded, not what the gate has said
    Path(orchard_env.tracking.removeprefix("sqlite:///")).write_bytes(b"no database" * 999)
    said = texts(report(run, orchard_env))
    assert "4 of 4 steps are done" in said and "ripeness version 1: on 400 rows" in said
    for path in run.folder.glob("*.ipynb"):
        path.write_text("{")
    said = texts(report(run, orchard_env))
    assert said.count("there is nothing more to show") == 4 and "Goals" not in said


def test_a_cached_step_says_from_where(orchard_env):
    project = Project(orchard_env.root)
    first = load_run(orchard_env)
    settings = (orchard_env.root / "settings.ini").read_text()
    done = project.said("run", "orchard", "--json")
    assert done.returncode == 0, done.stderr
    assert (orchard_env.root / "settings.ini").read_text() == settings
    said = texts((load_run(orchard_env).folder / "report.html").read_text())
    assert "4 of 4 steps are done, 4 of them taken from the cache" in said
    assert said.count(f"cached from {first.id}") == 4


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    "A run whose second step fails, after one that shows HTML of anybody's"
    project = Project(tmp_path_factory.mktemp("broken"))
    evil = (
        "from IPython.display import HTML, display\n"
        "display(HTML('<script>document.title = \"taken\"</script>'\n"
        '  \'<img src=x onerror="document.title=1"><img src="http://127.0.0.1:9/seen.png">\'))'
    )
    project.step(
        "01_in", "from scalai_nb.pipeline import Out\na: Out = 'a'", evil, title="<i>In</i>"
    )
    project.step("02_fit", "n: int = 1", "1 / 0", title="Fit")
    project.said("run", "toy")
    return project


def test_a_failure_says_where_why_and_what_to_do(broken):
    folder = next((broken.root / ".scalai/runs").glob("toy-*"))
    said = texts((folder / "report.html").read_text())
    verdict = said[: said.index("Steps")]
    assert "✘ failed" in verdict and "02_fit" not in verdict
    assert verdict.count("cell 3: ZeroDivisionError: division by zero") == 1
    assert "scalai run toy" in verdict and "to the step" in verdict
    assert "<i>In</i>" not in (folder / "report.html").read_text().partition("<details")[0]


def test_the_command_writes_it_again_with_what_the_gate_said(orchard_env):
    run = load_run(orchard_env)
    (run.folder / "report.html").unlink()
    done = Project(orchard_env.root).said("report", run.id)
    assert done.stdout.strip() == str(run.folder / "report.html"), done.stderr
    assert "It is the champion." in (run.folder / "report.html").read_text()


def test_a_full_disk_keeps_the_one_before(orchard_env, monkeypatch):
    run = load_run(orchard_env)
    shutil.rmtree(run.folder / "steps")
    before = (run.folder / "report.html").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scalai_nb.pipeline.report.replacing", full)
    assert write_report(run) is None and (run.folder / "report.html").read_bytes() == before


@pytest.mark.browser
def test_it_is_short_accessible_and_runs_nothing_that_a_notebook_shows(orchard_env, broken):
    if not CHROMIUM:
        pytest.skip("no Chromium; run make test-services")
    axe = tool("axe")
    (failed,) = (broken.root / ".scalai/runs").glob("toy-*/report.html")
    good = load_run(orchard_env).folder / "report.html"
    with visiting("file:", "data:", height=900) as visit:
        page = visit.page
        for path in (good, failed):
            for width, scheme in ((1180, "light"), (1180, "dark"), (390, "light")):
                page.set_viewport_size({"width": width, "height": 900})
                page.emulate_media(color_scheme=scheme)
                page.goto(path.as_uri())
                assert faults(page, axe) == []
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                height = page.evaluate("document.documentElement.scrollHeight")
                assert height < 900 * (2 if width > 390 else 4)
        assert page.title() == "toy: failed"
        page.set_viewport_size({"width": 1180, "height": 900})
        page.goto(good.as_uri())
        page.locator("nav a", has_text="01_pick").press("Enter")
        assert page.url.endswith("#01_pick")
        page.locator("[id='01_pick'] summary").press("Enter")
        assert page.get_by_text("picked 400").is_visible()
        assert not page.get_by_text("rng = np.random").is_visible()
        page.get_by_label("show the code of notebooks").press("Space")
        assert page.get_by_text("rng = np.random").is_visible()
    assert visit.outside == []
    assert all("Content Security Policy" in said for said in visit.errors), json.dumps(visit.errors)
