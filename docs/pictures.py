"""Make the pictures of the documents from a real run, so that they stay true: `make pictures`

Runs the flights pipeline in a copy of the project (a minute), then shows terminal, report,
dashboard and JupyterLab.
Needs Chromium (`make test-services`); every request of a page to another host is refused and named.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import CHROMIUM, visiting

PICTURES = ROOT / "docs" / "pictures"
BIN = Path(sys.executable).parent
LAB = [
    "--no-browser",
    "--allow-root",
    "--ServerApp.token=",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
]
IGNORED = shutil.ignore_patterns(".git", ".venv*", ".scalai", ".services", "site", "__pycache__")


def house() -> None:
    "Draw the rooms by floors, as tests/test_house.py holds them, each with its number of files"
    from test_house import FLOORS, MODULES, dotted, room_of

    files = [room_of(dotted(p)) for p in MODULES if p.stem != "__init__"]
    floors = [line.split() for line in FLOORS.split("\n") if line.strip()]
    floors = [[r for r in floor if r in files] for floor in floors][::-1]
    floors = [floor for floor in floors if floor]
    height = 44 * len(floors) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {height}" '
        'font-family="sans-serif">'
    ]
    for i, floor in enumerate(floors):
        width = 864 / len(floor)
        for j, room in enumerate(floor):
            x, y, n = 8 + j * width, 8 + 44 * i, files.count(room)
            many = f"{n} files" if n > 1 else "1 file"
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{width - 6:.0f}" height="36" rx="5" '
                f'fill="#eef3fa" stroke="#7a93b8"/>'
                f'<text x="{x + 10:.0f}" y="{y + 23}" font-size="14" fill="#1d2b3f">{room}</text>'
                f'<text x="{x + width - 14:.0f}" y="{y + 23}" font-size="11" fill="#5a6b82" '
                f'text-anchor="end">{many}</text>'
            )
    (PICTURES / "house.svg").write_text("\n".join([*parts, "</svg>\n"]))


def call(project: Path, *words: str) -> str:
    "What a command of this environment prints in the project, with its colours"
    env = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "110"}
    program = [str(BIN / words[0]), *words[1:]]
    done = subprocess.run(
        program, cwd=project, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"pictures: {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def terminal(text: str, title: str, path: Path) -> None:
    "Draw what a terminal shows"
    console = Console(record=True, width=110, file=open(os.devnull, "w"), force_terminal=True)
    console.print(Text.from_ansi(text.replace(tempfile.gettempdir(), "…")))
    console.save_svg(str(path), title=title)


def free_port() -> int:
    "A port of this machine that nobody listens at"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def server(project: Path, port: int, path: str, *words: str):
    "A server in the project as long as the block lasts; its address"
    program = [str(BIN / words[0]), *words[1:]]
    log = project / f"{words[1]}.log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            program, cwd=project, start_new_session=True, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        while not listens(port):
            if process.poll() is not None:
                raise SystemExit(f"pictures: {' '.join(words)}: {log.read_text()}")
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}{path}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 15)
            process.wait(20)


def listens(port: int) -> bool:
    "Whether somebody answers at a port of this machine"
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def shoot(page: Page, url: str, path: Path, ready: str, full: bool = False) -> None:
    "Open a page, wait until it shows `ready`, and keep its picture"
    page.goto(url)
    page.wait_for_selector(ready, timeout=60_000)
    page.wait_for_timeout(1500)
    page.screenshot(path=path, full_page=full)


def browser_pictures(project: Path, report: Path) -> None:
    "Report, dashboard and JupyterLab"
    if not CHROMIUM:
        raise SystemExit("pictures: no Chromium; run make test-services.")
    with visiting("http://127.0.0.1:", "file:", "data:", "blob:", width=1200) as visit:
        page = visit.page
        shoot(page, report.as_uri(), PICTURES / "report.png", "section")
        port = free_port()
        with server(project, port, "/", "scalai", "dash", "--port", str(port), "--no-open") as url:
            shoot(page, url, PICTURES / "dashboard.png", ".scalai-card")
        port, notebook = free_port(), "/lab/tree/nbs/tutorials/many_rows.ipynb"
        with server(project, port, notebook, "jupyter", "lab", f"--port={port}", *LAB) as url:
            shoot(page, url, PICTURES / "jupyterlab.png", ".jp-Notebook")
            page.get_by_role("tab", name="scalai: pipelines and runs").click()
            page.get_by_role("img", name="Graph: ").wait_for()
            page.screenshot(path=PICTURES / "panel.png")
    for url in visit.outside:
        print(f"pictures: refused {url}", file=sys.stderr)


def main() -> int:
    PICTURES.mkdir(exist_ok=True)
    house()
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
        project = Path(folder) / "project"
        shutil.copytree(ROOT, project, ignore=IGNORED, symlinks=True)
        call(project, "scalai", "run", "flights", "--env", "laptop")
        terminal(call(project, "scalai", "show"), "scalai show", PICTURES / "run.svg")
        terminal(
            call(project, "scalai", "plan", "flights"), "scalai plan flights", PICTURES / "plan.svg"
        )
        report = next((project / ".scalai/runs").glob("flights-*/report.html"))
        browser_pictures(project, report)
    for path in sorted(PICTURES.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
