"""Explorers: what they send and take, and how they are in JupyterLab, Notebook 7 and Voila"""

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from browser import CHROMIUM, faults, visiting
from conftest import tool
from panels import TOKEN, jupyter
from test_panel import CONTRACT, EVIL, LOAD, SUM
from toy import Project, notebook

import scalai_nb as sn
from scalai_nb.errors import GraphError, ParameterError

DATA = f"""
import ipywidgets
import numpy as np
import xarray as xr
import scalai_nb as sn

random = np.random.default_rng(0)
evil = {EVIL!r}
columns = {{f"x{{i:03}}": ("row", random.normal(i, 1, 500)) for i in range(120)}}
reference = xr.Dataset(columns | {{evil: ("row", [evil, "b"] * 250)}})
now = reference.assign(x007=reference.x007 + 3)
label = random.random(5000) < 0.2
score = np.clip(random.beta(2, 8, 5000) + 0.3 * label, 0, 1)
said = ipywidgets.Label("python has seen nothing")
told = lambda change: setattr(said, "value", f"python sees {{change.name}} {{change.new}}")
"""
CELLS = [
    "columns = sn.SummaryExplorer(now, reference)\ncolumns.observe(told, 'chosen')\ncolumns",
    "line = sn.ThresholdExplorer(sn.evaluate(label, score), costs=(1, 20))\n"
    "line.observe(told, 'threshold')\nline",
    "board = sn.PipelineBoard('toy')\nboard.observe(told, 'chosen')\nboard",
    "sn.ClusterPanel()",
    "said",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("project"), "cluster = none\ntrackers = none\n")
    made.step("01_load", "numbers: Out = 'numbers'\nn: int = 3  # how many", *LOAD)
    made.step("02_sum", CONTRACT, *SUM, title=f"Sum {EVIL}")
    notebook(made.root / "dashboards/explore.ipynb", None, DATA, *CELLS)
    return made


# What they send and take


def state(explorer) -> str:
    "What a browser gets"
    return json.dumps(explorer.get_state(), default=str)


def wide(columns=10_000, rows=20):
    "A summary of many columns, whose names grow"
    described = sn.summarize(xr.Dataset({"x": ("row", np.arange(float(rows)))}))["x"]
    return sn.Summary({f"a long name of a column, the {i}th": described for i in range(columns)})


def test_ten_thousand_columns_are_searched_sorted_and_paged():
    summary = wide()
    missing = sn.summarize(xr.Dataset({"x": ("row", [1.0, np.nan])}))["x"]
    summary.columns["a long name of a column, the 7777th"] = missing
    explorer = sn.SummaryExplorer(summary)
    assert explorer.listed["pages"] == 500 and len(state(explorer)) < 50_000
    explorer.query = {"sort": "missing", "down": True, "page": 0}
    assert explorer.listed["rows"][0][:3] == [7777, "a long name of a column, the 7777th", "number"]
    explorer.query = {"text": "THE 77", "page": 2}
    assert explorer.listed["found"] == 111 and explorer.listed["rows"][0][0] == 7729
    explorer.at = 7777
    assert dict(explorer.column["figures"])["Missing"] == "50\xa0%"
    assert explorer.chosen.endswith("7777th") and len(state(explorer)) < 50_000
    with pytest.raises(ParameterError, match="'nowhere'"):
        explorer.chosen = "nowhere"


@pytest.mark.parametrize(
    "query", [{"page": -5}, {"page": "x"}, {"page": 9**9}, {"sort": "__class__"}, {"text": 5}, {}]
)
def test_a_query_of_no_sense_is_answered(query):
    explorer = sn.SummaryExplorer(wide(30))
    explorer.query = query
    assert explorer.listed["found"] in (30, 3) and 0 <= explorer.listed["page"] <= 1


def test_names_and_labels_of_any_length_are_sent_short():
    names = {"x" * 100_000 + str(i): ("row", ["y" * 100_000 + str(i), "z"]) for i in range(20)}
    explorer = sn.SummaryExplorer(xr.Dataset(names))
    explorer.at = 3
    assert explorer.column["frequent"] and len(explorer.column["name"]) == 200
    without = {k: v for k, v in explorer.get_state().items() if k != "_esm"}
    assert len(json.dumps(without, default=str)) < 60_000


KINDS = {
    "number": [1.0, np.nan, np.inf, 3.0],
    "integer": [1, 2, 2, 9],
    "bool": [True, False, True, True],
    "string": ["a", "b", "b", ""],
    "time": np.array(["2026-01-01", "2026-01-02", "2027-01-01", "NaT"], "M8[us]"),
    "nothing": [np.nan] * 4,
}


@pytest.mark.parametrize("then", KINDS)
@pytest.mark.parametrize("now", KINDS)
def test_any_column_is_drawn_beside_any_other(now, then):
    "A column may have changed its kind; what can be drawn in the same bins is"
    summaries = [sn.summarize(xr.Dataset({"x": ("row", KINDS[k])})) for k in (now, then)]
    try:
        explorer = sn.SummaryExplorer(*summaries)
    except ParameterError:  # drift does not compare these, and says so
        assert now != then
        return
    explorer.at = 0
    drawn = explorer.column
    assert len(drawn["bars"]) == len(drawn["titles"])
    assert drawn["before"] is None or len(drawn["before"]) == len(drawn["bars"])
    if now == then and now != "time":  # of a time drift says nothing
        assert drawn["before"] == drawn["bars"]
        assert sum(drawn["bars"]) == pytest.approx(1 if now != "nothing" else 0, abs=1e-4)
    json.dumps(explorer.column, allow_nan=False)


def evaluated(rows=200_000, weight=None):
    random = np.random.default_rng(1)
    label = random.random(rows) < 0.01
    score = random.beta(1, 60, rows) + 0.3 * label * random.random(rows)
    return sn.evaluate(label, np.clip(score, 0, 1), weight=weight)


def test_a_stop_of_the_slider_is_what_the_evaluation_says():
    evaluation = evaluated()
    explorer = sn.ThresholdExplorer(evaluation, 0.1, costs=(1, 20))
    curve = explorer.curve
    assert 900 < len(curve["threshold"]) <= 1000 and len(state(explorer)) < 100_000
    for i in range(0, len(curve["threshold"]), 97):
        point = evaluation.at(curve["threshold"][i])
        assert (point.true_positives, point.false_positives) == (curve["tp"][i], curve["fp"][i])
    flagged = np.array(curve["tp"]) + curve["fp"]
    assert -np.diff(flagged).min() >= 0 and np.abs(np.diff(flagged)).max() < 0.01 * evaluation.count
    explorer.threshold = 0.2
    assert explorer.point["tp"] == evaluation.at(0.2).true_positives
    assert explorer.cost == explorer.at.false_positives + 20 * explorer.at.false_negatives


def test_weights_count_in_a_threshold():
    explorer = sn.ThresholdExplorer(evaluated(1000, np.full(1000, 0.5)))
    assert explorer.curve["rows"] == 500 and explorer.curve["tp"][0] == explorer.curve["positives"]


def test_what_has_no_threshold_is_refused_with_what_to_do():
    names = ["a", "b", "c"]
    score = xr.DataArray(np.eye(3)[[0, 1, 2] * 5], {"class": names}, ("row", "class"))
    classes = sn.evaluate_classes(names * 5, score)
    with pytest.raises(ParameterError, match=r"evaluation.classes\[NAME\], NAME being one of 'a'"):
        sn.ThresholdExplorer(classes)
    assert sn.ThresholdExplorer(classes.classes["a"]).curve["positives"] == 5
    numbers = sn.evaluate_regression(np.arange(9.0), np.arange(9.0) + 1)
    with pytest.raises(ParameterError, match="not RegressionEvaluation; of a number judge"):
        sn.ThresholdExplorer(numbers)
    for costs in ((1,), (1, -2), ("a", "b"), (1, float("nan")), 3):
        with pytest.raises(ParameterError, match="costs are two numbers from 0 on"):
            sn.ThresholdExplorer(evaluated(100), costs=costs)
    with pytest.raises(ParameterError, match="not DataFrame; for a DataFrame: sn.from_frame"):
        sn.SummaryExplorer(sn.to_frame(xr.Dataset({"x": ("row", [1.0])})))


def test_a_board_follows_its_notebooks_and_says_what_it_cannot(project, monkeypatch):
    monkeypatch.chdir(project.root)
    env = sn.environment("laptop")
    board = sn.PipelineBoard("toy", env)
    try:
        assert [s["status"] for s in board.board["steps"]] == ["stale", "stale"]
        assert board.board["edges"] and len(state(board)) < 60_000
        board.act({"do": "look"})
        board._tried(board.act, {"do": "format the disk"})
        assert "'format the disk'" in board.trouble
        place = project.step("03_more", "late: int = 1", "print(late)")
        board._tried(board.look)
        assert "03_more" not in [s["name"] for s in board.board["steps"]]  # a new file: look again
        board.refresh()
        assert [s["name"] for s in board.board["steps"]][-1] == "more"
        place.unlink()
    finally:
        board.close()
    assert board._closed.is_set()
    with pytest.raises(GraphError, match="nosuch"):
        sn.PipelineBoard("nosuch", env)


def test_a_cluster_of_others_is_shown_and_not_scaled():
    from distributed import Client, LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False}
    with LocalCluster(**options, dashboard_address=None) as theirs:
        with Client(theirs.scheduler_address) as client:
            panel = sn.ClusterPanel(client)
            assert (panel.cluster["scalable"], len(panel.cluster["workers"])) == (False, 1)
            panel._tried(panel.act, {"do": "scale", "workers": 0})
            assert "Others have started this cluster" in panel.trouble
            assert client.status == "running"
            for asked in ({"workers": 2}, {"do": "scale", "workers": "2"}, {"do": "scale"}):
                panel._tried(panel.act, asked)
                assert "ask for a number of workers" in panel.trouble
            client.submit(lambda: 1 / 0).exception()
            panel.look()
            assert panel.cluster["tasks"]["failed"] in (0, 1) and len(state(panel)) < 60_000
            panel.close()


def test_without_a_widget_manager_there_is_a_table():
    evaluation = evaluated(1000)
    html = nbconverted("import scalai_nb as sn\nimport xarray as xr", EXPLORED)
    assert "Typical" in html and "widget-view" not in html and "&lt;svg onload" in html
    data, _ = sn.ThresholdExplorer(evaluation)._repr_mimebundle_()
    assert "ROC-AUC" in data["text/html"] and "False alarms" in data["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in data


EXPLORED = f"sn.SummaryExplorer(xr.Dataset({{{EVIL!r}: ('row', [1.0, 2.0])}}))"


def nbconverted(*cells):
    "The page that nbconvert makes of a notebook, once it was executed"
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(nb, store_widget_state=False, kernel_name="python3").execute()
    return HTMLExporter().from_notebook_node(nb)[0].split("<main>", 1)[-1]


def test_without_anywidget_the_error_names_the_extra():
    code = (
        "import sys\nimport importlib.util as u\nreal = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'anywidget' else real(n, *a)\n"
        "import scalai_nb as sn\nassert 'anywidget' not in sn.__dict__\n"
        "try:\n    sn.ClusterPanel()\nexcept sn.errors.MissingExtra as e:\n    print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "run: pip install 'scalai-nb[lab]'" in done.stdout, done.stderr


def test_nothing_in_a_module_makes_markup_or_asks_anybody():
    folder = Path(sn.__file__).parent / "jupyter/lab"
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|fetch\(|https?://(?!www\.w3)"
    )
    for file in [*folder.glob("explorers/*"), *folder.glob("panel/static/dom.js")]:
        assert not re.findall(forbidden, file.read_text()), file


# In a browser


@contextmanager
def in_jupyter(project, folder, app, path, more=None):
    "The address of the notebook, and what runs all of it"
    with jupyter(project.root, folder, app, more=more) as server:
        yield f"{server.address}{path}/dashboards/explore.ipynb?token={TOKEN}&reset", RUN_ALL


@contextmanager
def in_voila(project):
    "The address of the notebook as a page, which runs by itself"
    code = "from scalai_nb.jupyter.voila import serve; serve('explore', 'laptop')"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=project.root,
        env=project.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0], None
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


RUN_ALL = """async () => {
    const open = () => window.jupyterapp?.shell.currentWidget?.context?.sessionContext.session;
    while (!open()?.kernel) await new Promise(f => setTimeout(f, 100));
    await window.jupyterapp.commands.execute('notebook:run-all-cells');
}"""


@pytest.fixture(params=["lab", "notebook", "voila"])
def place(request, project, tmp_path):
    if not CHROMIUM:
        pytest.skip("no Chromium; run make test-services")
    if request.param == "voila":
        opened = in_voila(project)
    elif request.param == "lab":
        opened = in_jupyter(project, tmp_path, "jupyterlab", "lab/tree")
    else:
        opened = in_jupyter(project, tmp_path, "notebook", "notebooks", tool("notebook").parent)
    with opened as (address, script):
        yield request.param, address, script


def picture(page, name):
    "Keep a picture to look at"
    folder = Path(__file__).parents[1] / ".scalai" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)


DARK = (
    "() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
)


@pytest.mark.browser
@pytest.mark.slow
def test_four_explorers_by_hand(place, project):
    from playwright.sync_api import expect

    name, address, script = place
    axe = tool("axe")
    expect.set_options(timeout=60_000)
    with visiting("http://127.0.0.1:", width=1300, height=3400) as visit:
        page = visit.page
        page.goto(address)
        if script:
            page.evaluate(script)
        seen = page.locator(".widget-label", has_text="python")
        expect(seen).to_be_visible()
        picture(page, f"{name}-before")

        explore_columns(page, seen)
        explore_threshold(page, seen)
        explore_pipeline(page, seen, project)
        explore_cluster(page)

        assert faults(page, axe, ".scalai-explorer") == []
        picture(page, f"{name}-light")
        page.emulate_media(color_scheme="dark")
        if script:
            page.evaluate(DARK)
        expect(page.locator(".scalai-explorer.scalai-dark")).to_have_count(4)
        assert faults(page, axe, ".scalai-explorer") == []
        picture(page, f"{name}-dark")
        assert "evil" not in page.title()
        assert page.locator("svg[onload]").count() == 0
        page.unroute_all()
    assert (unexpected(visit), visit.outside) == ([], [])


THEIRS = (  # on the console of JupyterLab and of Notebook 7 without an explorer as well
    "Could not restore the debugger state",
    "Cannot read properties of undefined (reading 'schema')",
)


def unexpected(visit):
    "What is on the console, without what JupyterLab and Notebook 7 say of themselves"
    return [e for e in visit.errors if not e.startswith(THEIRS)]


def explore_columns(page, seen):
    from playwright.sync_api import expect

    summary = page.get_by_role("region", name="Columns of a dataset")
    expect(summary).to_contain_text("1 to 20 of 121 columns")
    summary.get_by_role("button", name="columns after").click()
    expect(summary).to_contain_text("21 to 40 of 121 columns")
    summary.get_by_role("button", name="moved (PSI)").click()
    first = summary.get_by_role("rowheader").first
    expect(first).to_have_text("x007")  # the one that has moved
    first.get_by_role("button").press("Enter")
    expect(seen).to_have_text("python sees chosen x007")
    expect(summary).to_contain_text("Against the reference")
    expect(summary.get_by_role("img")).to_have_attribute("aria-label", re.compile("Histogram"))
    summary.get_by_label("Find a column").fill("onload")
    expect(summary).to_contain_text("1 to 1 of 1 columns")
    summary.get_by_role("button", name=EVIL).click()
    expect(summary.get_by_role("heading", name=EVIL)).to_be_visible()


def explore_threshold(page, seen):
    from playwright.sync_api import expect

    line = page.get_by_role("region", name="Threshold of a score")
    slider = line.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    expect(line).to_contain_text("Share flagged100.0 %")
    page.keyboard.press("PageUp")
    page.keyboard.press("ArrowRight")
    expect(seen).to_contain_text("python sees threshold 0.")
    line.get_by_label("Threshold", exact=True).fill("0.4")
    page.keyboard.press("Enter")
    expect(seen).to_have_text("python sees threshold 0.4")
    cost = line.locator("dd").last.inner_text()
    line.get_by_role("button", name="Least cost").click()
    expect(line.locator("dd").last).not_to_have_text(cost)
    assert float(line.locator("dd").last.inner_text().replace(",", "")) < float(
        cost.replace(",", "")
    )


def explore_pipeline(page, seen, project):
    from playwright.sync_api import expect

    board = page.get_by_role("region", name="A pipeline")
    run, stop = (board.get_by_role("button", name=n, exact=True) for n in ("Run", "Stop"))
    with (project.root / "pipelines/toy/02_sum.ipynb").open("a") as changed:
        changed.write(" ")  # as an editor that saves; the board makes its plan anew
    run.click()
    heading = board.get_by_role("heading", level=3).first
    expect(heading).to_contain_text("completed", timeout=120_000)
    board.get_by_role("button", name="sum", exact=True).click()
    expect(seen).to_have_text("python sees chosen sum")
    expect(board).to_contain_text("Readnumbers@")

    other = project.start("run", "toy", "--force", "-p", "sum.wait=300", "--plain")
    expect(board.get_by_role("img")).to_have_attribute("aria-label", re.compile("sum running"))
    stop.click()
    expect(heading).to_contain_text("cancelled")
    other.communicate(timeout=60)
    expect(run).to_be_enabled()


def explore_cluster(page):
    from playwright.sync_api import expect

    panel = page.get_by_role("region", name="Workers of a cluster")
    expect(panel).to_contain_text("%scale 4")
    panel.get_by_role("button", name="Start 2 workers").click()
    expect(panel.get_by_role("cell", name="running")).to_have_count(2)
    panel.get_by_role("button", name="− 1 worker").click()
    expect(panel.get_by_role("cell", name="running")).to_have_count(1)
    panel.get_by_role("button", name="End it").click()
    expect(panel.get_by_role("heading")).to_have_text("No cluster")
