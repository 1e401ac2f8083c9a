"""The panel in JupyterLab, in a browser: behind a base URL, with a token, by keyboard"""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from browser import CHROMIUM, faults, visiting
from conftest import tool
from panels import TOKEN, jupyter
from test_panel import CONTRACT, EVIL, LOAD, SUM, record
from toy import Project

from scalai_nb.pipeline.run import read_events

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium; run make test-services"),
]


@pytest.fixture(autouse=True)
def patient():
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("project"))
    made.step("01_load", "numbers: Out = 'numbers'\nn: int = 3  # how many", *LOAD)
    made.step("02_sum", CONTRACT, *SUM, title=f"Sum {EVIL}")
    made.step("notes", None, "rows = 3", "print(rows)", pipeline="..", title="Notes")
    return made


@pytest.fixture(scope="module")
def lab(project, tmp_path_factory):
    with jupyter(project.root, tmp_path_factory.mktemp("jupyter"), "jupyterlab") as server:
        yield server


def opened(page, lab, path=""):
    "JupyterLab with the panel open, when it moves the focus no more"
    from playwright.sync_api import expect

    page.goto(f"{lab.address}lab{path}?token={TOKEN}&reset")
    if not path:
        expect(page.locator(".jp-Launcher")).to_be_visible(timeout=60_000)
    page.get_by_role("tab", name="scalai: pipelines and runs").click(timeout=60_000)
    return page.get_by_role("region", name="scalai: pipelines and runs")


def picture(page, name):
    "Keep a picture to look at"
    folder = Path(__file__).parents[1] / ".scalai" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


def unexpected(visit):
    "What is on the console; JupyterLab's debugger asks a kernel that has none, and says so itself"
    return [e for e in visit.errors if not e.startswith("Could not restore the debugger state")]


def test_a_pipeline_is_run_followed_and_repaired(lab, project):
    from playwright.sync_api import expect

    with visiting(lab.address, width=1400, height=900) as visit:
        page = visit.page
        panel = opened(page, lab)
        expect(panel.get_by_role("img", name="Graph: load stale, sum stale")).to_be_visible()
        picture(page, "1-pipelines")

        # a wrong value is refused at its field, and nothing was started
        panel.get_by_label("n int").fill("many")
        panel.get_by_role("button", name="Run", exact=True).click()
        field = panel.get_by_label("n int")
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_be_focused()
        expect(panel.locator("small .scalai-error")).to_contain_text("'many' is not of type int")
        assert not list((project.root / ".scalai/runs").glob("*/events.jsonl"))
        picture(page, "2-refused")

        # a run that fails is followed to its cell
        panel.get_by_label("n int").fill("4")
        panel.get_by_label("divisor int").fill("0")
        panel.get_by_label("divisor int").press("Enter")
        expect(panel.get_by_role("button", name="‹ Runs")).to_be_visible(timeout=60_000)
        expect(panel.get_by_role("heading", name="toy")).to_contain_text("failed", timeout=60_000)
        step = panel.locator("details", has_text="ZeroDivisionError")
        step.locator("summary").click()
        expect(step.locator("pre").last).to_contain_text("ZeroDivisionError")
        expect(panel).to_contain_text("The kernel of sum is kept until")
        picture(page, "3-failed")
        panel.get_by_role("button", name="Open at the failing cell").click()
        active = page.locator(".jp-Notebook .jp-Cell.jp-mod-active")
        expect(active).to_contain_text("/ divisor", timeout=60_000)
        chip = page.locator(".scalai-chip button")
        expect(panel.get_by_role("status")).to_contain_text("its variables are there")
        page.keyboard.press("b")
        page.keyboard.press("Enter")
        page.keyboard.type("print('divisor', divisor, 'of', numbers)")
        page.keyboard.press("Shift+Enter")
        outputs = page.locator(".jp-Notebook .jp-OutputArea-output")
        expect(outputs.last).to_contain_text("divisor 0 of numbers", timeout=30_000)
        expect(chip).to_contain_text("failed: cell 6: ZeroDivisionError")
        picture(page, "4-at-the-cell")

        # and run as it should be
        chip.click()
        panel.get_by_label("divisor int").fill("1")
        panel.get_by_role("button", name="Run", exact=True).click()
        expect(panel.get_by_role("heading", name="toy")).to_contain_text(
            "completed", timeout=60_000
        )
        expect(chip).not_to_contain_text("failed")

        # the kernel that was kept is ended
        panel.get_by_role("button", name="‹ Runs").click()
        panel.locator(".scalai-row", has_text="failed").click()
        panel.get_by_role("button", name="End it").click()
        expect(panel.get_by_role("button", name="End it")).to_have_count(0)

        # two runs beside each other, what they have left
        panel.get_by_role("button", name="‹ Runs").click()
        expect(panel.locator(".scalai-list li")).to_have_count(2)
        for box in panel.locator(".scalai-list input").all():
            box.check()
        panel.get_by_role("button", name="Compare two").click()
        expect(panel.get_by_role("row", name="sum.divisor 0 1")).to_be_visible()
        picture(page, "5-compared")
        panel.get_by_role("tab", name="Datasets").click()
        panel.locator("summary", has_text="numbers").click()
        expect(panel.get_by_role("table")).to_contain_text("toy")
        picture(page, "6-datasets")
        panel.get_by_role("tab", name="Models").click()
        expect(panel).to_contain_text("No models yet")
        panel.get_by_role("tab", name="Cluster").click()
        expect(panel.get_by_role("row", name=re.compile("02_sum.ipynb"))).to_contain_text("MB")
        picture(page, "7-cluster")
        assert page.title() != "evil" and page.locator("svg[onload]").count() == 0
        page.unroute_all()
    assert (unexpected(visit), visit.outside) == ([], [])


def test_two_jupyterlabs_show_the_same_run_and_a_closed_one_ends_nothing(lab, project, tmp_path):
    from playwright.sync_api import expect

    with jupyter(project.root, tmp_path, "jupyterlab") as other:
        with visiting(lab.address) as visit:
            panel = opened(visit.page, lab)
            panel.get_by_label("wait float").fill("90")
            panel.get_by_role("button", name="Run", exact=True).click()
            expect(panel.get_by_role("button", name="‹ Runs")).to_be_visible(timeout=60_000)
            visit.page.unroute_all()
        with visiting(other.address) as visit:
            panel = opened(visit.page, other)
            panel.get_by_role("tab", name="Runs").click()
            panel.locator(".scalai-row").first.click()
            step = panel.locator("details", has_text="sum")
            step.locator("summary").click()
            expect(step).to_contain_text("running", timeout=60_000)
            visit.page.evaluate(SEEN)
            (project.root / "pipelines/toy/go").touch()
            heading = panel.get_by_role("heading", name="toy")
            expect(heading).to_contain_text("completed", timeout=60_000)
            seen = visit.page.wait_for_function("window.seen", timeout=60_000).json_value()
            id = panel.locator("p.scalai-soft").first.inner_text().split(" ")[0]
            visit.page.unroute_all()
        assert (visit.errors, visit.outside) == ([], [])
    events = read_events(project.root / ".scalai/runs" / id / "events.jsonl")
    known = list(events)
    started = next(e for e in known if e["event"] == "step_started" and e["step"] == "sum")
    at = next(i for i, title in started["cells"] if "waiting" in title)
    ended = {"event": "cell", "step": "sum", "cell": at, "status": "completed"}
    slept = next(e for e in known if ended.items() <= e.items())
    late = seen / 1000 - slept["t"]
    print(f"a cell's status is on the screen after {late * 1000:.0f} ms")
    assert late < 1  # on a quiet machine, half a second


# When the cell that sleeps is shown as completed
SEEN = """() => {
    const done = () => [...document.querySelectorAll('.scalai-cells li')]
        .some(c => c.textContent.includes('waiting') && c.textContent.includes('completed'));
    const look = () => { if (done()) window.seen ||= Date.now(); };
    const all = {subtree: true, childList: true, characterData: true};
    new MutationObserver(look).observe(document.body, all);
}"""


def beside(environment: Path) -> Path:
    "Its Python, which finds this project and what it needs behind its own packages"
    ours = [str(Path(__file__).parents[1]), sysconfig.get_path("purelib")]
    folder = environment / f"lib/python3.{sys.version_info.minor}/site-packages"
    if not folder.is_dir():
        pytest.skip("jupyterlab in .services is of another Python; run make test-services")
    (folder / "scalai_nb_tests.pth").write_text("\n".join(ours))
    return environment / "bin/python"


def open_in_notebook(page):
    "Choose the panel in Notebook 7's menu, which closes while the page is still being made"
    from playwright.sync_api import TimeoutError as TimedOut

    for left in reversed(range(5)):
        page.get_by_role("menuitem", name="View").click()
        try:
            page.get_by_text("Left Sidebar").hover(timeout=5000)
            entry = page.get_by_role("menuitem", name="scalai: pipelines and runs")
            return entry.click(timeout=5000)
        except TimedOut:
            if not left:
                raise
            page.keyboard.press("Escape")


@pytest.mark.slow
@pytest.mark.parametrize(
    "app", [pytest.param("jupyterlab", marks=pytest.mark.campaign), "notebook"]
)
def test_in_the_minor_version_before(app, project, tmp_path):
    "Jupyter Notebook is made of JupyterLab's parts of that version; in a campaign both"
    from playwright.sync_api import expect

    python = beside(tool("jupyterlab").parent)
    said = subprocess.run([python, "-m", "jupyterlab", "--version"], capture_output=True, text=True)
    assert said.stdout.startswith("4.5.")
    with jupyter(project.root, tmp_path, app, python) as lab, visiting(lab.address) as visit:
        page = visit.page
        if app == "notebook":
            page.goto(f"{lab.address}tree?token={TOKEN}")
            open_in_notebook(page)
            panel = page.get_by_role("region", name="scalai: pipelines and runs")
            width = page.locator("#jp-left-stack").bounding_box()["width"]
            assert width >= panel.bounding_box()["width"], "the panel is cut off"
        else:
            panel = opened(page, lab)
        panel.get_by_label("n int").fill("5")
        panel.get_by_role("button", name="Run", exact=True).click()
        heading = panel.get_by_role("heading", name="toy")
        expect(heading).to_contain_text("completed", timeout=90_000)
        picture(page, f"10-{app}-before")
        page.unroute_all()
    assert (unexpected(visit), visit.outside) == ([], [])


def test_by_keyboard_alone_and_without_colour_from_elsewhere(lab, project):
    from playwright.sync_api import expect

    record(project.root / ".scalai/runs", "toy-20261101-100000")
    with visiting(lab.address, width=1400, height=900) as visit:
        page = visit.page
        panel = opened(page, lab)
        page.evaluate("document.activeElement.blur()")
        panel.get_by_role("tab", name="Pipelines").focus()
        for name in ("Runs", "Datasets", "Models", "Cluster", "Pipelines"):
            page.keyboard.press("ArrowRight")
            expect(panel.get_by_role("tab", name=name)).to_be_focused()
            expect(panel.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
        page.keyboard.press("ArrowRight")
        expect(panel.locator(".scalai-row").first).to_be_visible()
        page.keyboard.press("Tab")
        expect(panel.locator(".scalai-list input").first).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(panel.get_by_role("button", name="‹ Runs")).to_be_visible()

        page.evaluate(DARK)
        colours = panel.evaluate("e => [getComputedStyle(e.firstChild).backgroundColor]")
        picture(page, "8-dark")
        assert colours != ["rgb(255, 255, 255)"]
        page.unroute_all()
    assert (visit.errors, visit.outside) == ([], [])


def reach(page, name):
    "Go on with Tab until what is called `name` has the focus"
    for _ in range(40):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        if focus.startswith(name):
            return
    raise AssertionError(f"Tab does not lead to {name!r}, the last was {focus!r}")


FOCUS = """() => {
    const e = document.activeElement;
    return (e.labels?.[0] ?? e).textContent.trim();
}"""


def test_the_whole_way_by_keys_alone(lab, project):
    "The panel opens, a form is filled in, a run starts and fails, and its cell is looked at"
    from playwright.sync_api import expect

    with visiting(lab.address, width=1400, height=900) as visit:
        page = visit.page
        page.goto(f"{lab.address}lab?token={TOKEN}&reset")
        expect(page.locator(".jp-Launcher")).to_be_visible(timeout=60_000)
        page.keyboard.press("Control+Shift+C")
        page.keyboard.type("Pipelines and runs (scalai)")
        page.keyboard.press("Enter")
        panel = page.get_by_role("region", name="scalai: pipelines and runs")
        expect(panel.get_by_role("img", name="Graph: ")).to_be_visible()
        expect(panel.get_by_role("tab", name="Pipelines")).to_be_focused()
        reach(page, "divisor")
        page.keyboard.type("0")
        page.keyboard.press("Enter")
        heading = panel.get_by_role("heading", name="toy")
        expect(heading).to_contain_text("failed", timeout=90_000)
        reach(page, "sum")
        page.keyboard.press("Enter")
        expect(panel.locator("pre").last).to_contain_text("ZeroDivisionError")
        reach(page, "Open at the failing cell")
        page.keyboard.press("Enter")
        active = page.locator(".jp-Notebook .jp-Cell.jp-mod-active")
        expect(active).to_contain_text("/ divisor", timeout=60_000)
        page.unroute_all()
    assert (unexpected(visit), visit.outside) == ([], [])


TABS = {  # what each shows when it is there
    "Pipelines": "kind Literal",
    "Runs": "Compare two",
    "Datasets": "numbers|lake is empty",
    "Models": "No models yet",
    "Cluster": "memory are free",
}


def test_axe_finds_nothing_serious_in_the_panel_light_and_dark(lab, project):
    from playwright.sync_api import expect

    record(project.root / ".scalai/runs", "toy-20261102-100000", status="failed")
    axe = tool("axe")
    with visiting(lab.address, width=1400, height=900) as visit:
        page = visit.page
        panel = opened(page, lab)
        found = {}
        for theme in ("light", "dark"):
            for tab, shown in TABS.items():
                panel.get_by_role("tab", name=tab).click()
                expect(panel.get_by_role("tabpanel")).to_contain_text(re.compile(shown))
                found[theme, tab] = faults(page, axe, ".scalai-panel")
            panel.get_by_role("tab", name="Runs").click()
            panel.locator(".scalai-row", has_text="failed").first.click()
            panel.locator("summary").first.click()
            expect(panel.locator(".scalai-cells li").first).to_be_visible()
            found[theme, "run"] = faults(page, axe, ".scalai-panel")
            panel.get_by_role("button", name="‹ Runs").click()
            page.evaluate(DARK)
            expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
        page.unroute_all()
    assert {where: said for where, said in found.items() if said} == {}


def test_a_notebook_that_is_no_step_can_be_made_one(lab, project):
    from playwright.sync_api import expect

    known = "adopt" in project.scalai("--help").stdout
    with visiting(lab.address) as visit:
        page = visit.page
        opened(page, lab, "/tree/notes.ipynb")
        page.get_by_role("button", name="Make this a step").click()
        dialog = page.get_by_role("dialog")
        if known:
            expect(dialog).to_contain_text("+rows: int = 3")
            dialog.get_by_role("button", name="Ok").click()
            expect(dialog).to_contain_text("Made a step")
        else:
            expect(dialog).to_contain_text("no `scalai adopt`")
        page.get_by_role("dialog").get_by_role("button", name="Ok").click()
        if known:
            expect(page.locator(".scalai-chip")).to_contain_text("stale: never run")
            expect(page.locator(".jp-Notebook")).to_contain_text("rows: int = 3")
        picture(page, "9-adopted")
        page.unroute_all()
    assert not visit.outside


def test_a_hidden_page_asks_nothing(lab):
    from playwright.sync_api import expect

    with visiting(lab.address) as visit:
        page, asked, ended = visit.page, [], []
        panel = opened(page, lab)
        panel.get_by_role("tab", name="Cluster").click()
        expect(panel).to_contain_text("memory are free")
        page.on("request", lambda r: "/scalai/" in r.url and asked.append(r.url))
        page.on("requestfailed", lambda r: "/scalai/events" in r.url and ended.append(r.url))
        page.wait_for_timeout(6_000)
        assert [url for url in asked if "/kernels" in url]
        page.evaluate(HIDE)
        asked.clear()
        page.wait_for_timeout(7_000)
        assert (asked, len(ended)) == ([], 1)
        page.unroute_all()


def test_a_long_cell_that_ends_unseen_is_told(lab, project):
    from playwright.sync_api import expect

    slow = "__import__('time').sleep(2)"
    project.step("slow", None, f"{slow}  # {EVIL}", f"{slow}; 1 / 0", pipeline="..")
    with visiting(lab.address, width=1400, height=900) as visit:
        page = visit.page
        page.add_init_script(f"({RECORDED})()")
        opened(page, lab)
        page.evaluate(LIMIT)
        page.goto(f"{lab.address}lab/tree/slow.ipynb?reset")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        told = page.locator(".Toastify__toast", has_text="slow.ipynb")

        command(page, "notebook:run-all-cells")  # and it is seen
        expect(page.locator(".jp-InputPrompt", has_text="[2]:")).to_be_visible()
        expect(told).to_have_count(0)

        command(page, "notebook:run-all-cells")
        command(page, "launcher:create")  # which covers it
        expect(told).to_have_count(2)
        failed, done = told.all()
        expect(done).to_contain_text("slow.ipynb: __import__('time').sleep(2)  # <svg")
        expect(done).to_contain_text(re.compile(r"done after \d+(\.\d)? s"))
        expect(failed).to_contain_text(re.compile(r"1 / 0 – failed after \d+(\.\d)? s"))
        picture(page, "11-told")
        assert page.title() != "evil" and page.locator("svg[onload]").count() == 0
        failed.get_by_role("button", name="Show").click()
        expect(page.locator(".jp-NotebookPanel")).to_be_visible()

        page.evaluate(HIDE)  # and the browser may tell
        page.evaluate("Notification.permission = 'granted'")
        command(page, "notebook:run-all-cells")
        page.wait_for_function("Notification.told.length === 2", timeout=60_000)
        (name, first), (_, second) = page.evaluate("Notification.told")
        assert name == "slow.ipynb" and "– done after" in first and "1 / 0 – failed" in second
        assert not page.evaluate("Notification.asked")
        page.unroute_all()
    assert visit.outside == []


def command(page, name):
    "Have JupyterLab do something, and do not wait until it is done"
    page.evaluate("name => void window.jupyterapp.commands.execute(name)", name)


# A stand-in for the browser's notifications, which a browser without a screen refuses
RECORDED = """() => {
    window.Notification = class {
        static permission = 'default';
        static told = [];
        static asked = 0;
        static requestPermission() { Notification.asked += 1; }
        constructor(name, { body }) { Notification.told.push([name, body]); }
    };
}"""
LIMIT = (
    """() => window.jupyterapp.serviceManager.settings.save('scalai-nb:panel', '{"notice": 1}')"""
)
HIDE = """() => {
    Object.defineProperty(document, 'hidden', {get: () => true});
    document.dispatchEvent(new Event('visibilitychange'));
}"""
DARK = """async () => {
    const app = window.jupyterapp;
    await app.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'});
}"""
