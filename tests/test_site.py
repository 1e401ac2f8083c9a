"""The site: every page is there, search finds, and nothing asks another host"""

import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from runpy import run_path

import pytest
from browser import CHROMIUM, visiting

import scalai_nb

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def laid_out(folder: Path, rooms: list[str]) -> set[str]:
    "Lay out the pages of the site, which Sphinx renders; their names"
    folder.mkdir()
    run_path(str(ROOT / "docs/build.py"))["assemble"](folder, rooms)
    pages = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix in (".md", ".ipynb"))
    return {str(p.with_suffix("")) for p in pages}


@pytest.fixture(scope="module", params=["describe", pytest.param("", marks=pytest.mark.campaign)])
def rooms(request) -> list[str]:
    "Whose lessons are rendered: those of one room, in a campaign of all"
    return request.param.split()


@pytest.fixture(scope="module")
def site(rooms, tmp_path_factory) -> Path:
    "The site, rendered"
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, ROOT / "docs/build.py", folder, *rooms]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class Quiet(SimpleHTTPRequestHandler):
    "Serves files and prints nothing"

    def log_message(self, *words): ...


@pytest.fixture(scope="module")
def address(site):
    "Where the site is served on this machine"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_every_document_and_lesson_has_a_page(tmp_path):
    pages = laid_out(tmp_path / "source", [])
    wanted = {"index", "CHANGELOG", "CONTRIBUTING", "SECURITY"}
    wanted |= {f"docs/{p.stem}" for p in (ROOT / "docs").glob("*.md")}
    notebooks = [p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb")]
    wanted |= {str(p.with_suffix("")) for p in notebooks if ".ipynb_checkpoints" not in p.parts}
    assert not wanted - pages


def test_every_page_is_rendered_and_every_public_name_is_on_one(site, rooms, tmp_path):
    pages = laid_out(tmp_path / "source", rooms) | {"search"}
    assert not [name for name in pages if not (site / f"{name}.html").is_file()]
    reference = "".join(p.read_text(encoding="utf-8") for p in (site / "reference").glob("*.html"))
    names = set(scalai_nb.__all__) - {"Environment", "environment"}
    assert not [n for n in names if not re.search(rf'id="scalai_nb\.[\w.]+\.{n}"', reference)]


def test_help_of_a_parameter_is_in_the_reference(site):
    page = (site / "reference/evaluation.evaluation.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("Parameters", "label", "score", "weight"))


def test_no_page_loads_anything_from_elsewhere(site):
    loads = re.compile(r'<(?:script|img|iframe|link)[^>]+(?:src|href)="(?:https?:)?//[^"]+"')
    canonical = re.compile(r'rel="(?:canonical|author|license)"')
    for page in site.rglob("*.html"):
        found = loads.findall(page.read_text(encoding="utf-8"))
        assert not [tag for tag in found if not canonical.search(tag)], page


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium; run make test-services")
def test_a_reader_searches_and_opens_a_lesson(address):
    from playwright.sync_api import expect

    with visiting(address, "data:", width=1280, height=900) as visit:
        page = visit.page
        page.goto(f"{address}/index.html")
        expect(page.get_by_role("heading", name="scalai-nb", exact=False).first).to_be_visible()
        page.get_by_placeholder("Search").fill("quantile")
        page.keyboard.press("Enter")
        expect(page.locator("#search-results li").first).to_be_visible(timeout=20_000)
        page.goto(f"{address}/nbs/describe/summary.html")
        expect(page.locator("div.cell_output").first).to_be_visible()
        page.goto(f"{address}/docs/architecture.html")
        expect(page.locator("img[src*=house]")).to_be_visible()
    assert not visit.outside and not visit.errors
