"""Render the site into site/: README, tutorials, lessons, reference, architecture and measurements

`make docs` calls it. Nothing is run and nothing is fetched: notebooks bring their outputs.
`python docs/build.py FOLDER ROOM` renders it elsewhere, with the lessons of one room only.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import scalai_nb

ROOT = Path(__file__).parent.parent
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
ROOMS = {  # in the order in which data pass through them
    "": "The ground",
    "data": "Data",
    "compute": "Compute",
    "describe": "Describe",
    "evaluation": "Evaluate",
    "learn": "Learn",
    "tracking": "Track",
    "models": "Models",
    "pipeline": "Pipelines",
    "serving": "Serve",
    "client": "Client",
    "export": "Export",
    "operations": "Operations",
    "bench": "Bench",
    "jupyter": "Jupyter",
    "commands": "Commands",
}
NO_ROOMS = ("pipelines", "tutorials")

SKLEARN = "get_metadata_routing, set_fit_request, set_score_request, set_partial_fit_request"
MEMBERS = f"   :members:\n   :exclude-members: {SKLEARN}\n"


def toctree(title: str, pages: list[str]) -> str:
    "A part of the table of contents"
    return "\n".join([f"```{{toctree}}\n:caption: {title}\n:maxdepth: 1\n", *pages, "```\n"])


def title_of(notebook: Path) -> str:
    "The first heading of a notebook"
    first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"]
    return "".join(first).splitlines()[0].lstrip("# ")


def lessons(room: str) -> list[Path]:
    "The notebooks of a room; those beside the rooms for the ground"
    folder = ROOT / "nbs" / room
    return sorted(folder.glob("*.ipynb") if not room else folder.rglob("*.ipynb"))


def lesson_pages(source: Path, rooms: list[str]) -> list[str]:
    "A page for each room that lists its lessons"
    pages = []
    for room, title in ((room, ROOMS[room]) for room in rooms):
        page = f"lessons/{room or 'ground'}"
        listed = [f"/{p.relative_to(ROOT).with_suffix('')}" for p in lessons(room)]
        said = sys.modules.get(f"scalai_nb.{room}") if room else None
        text = (said and said.__doc__ or "").strip()
        (source / f"{page}.md").write_text(f"# {title}\n\n{text}\n\n{toctree(title, listed)}")
        pages.append(page)
    return pages


def reference_pages(source: Path) -> list[str]:
    "A page for each module that public names come from"
    pages = []
    for module, names in scalai_nb._WHERE.items():
        body = [f"# {', '.join(names)}\n"]
        for name in names:
            kind = "class" if name[0].isupper() else "function"
            members = MEMBERS if kind == "class" else ""
            target = f"scalai_nb.{module}.{name}"
            body.append(f"```{{eval-rst}}\n.. auto{kind}:: {target}\n{members}```\n")
        page = f"reference/{module}"
        (source / f"{page}.md").write_text("\n".join(body))
        pages.append(page)
    return sorted(pages)


def assemble(source: Path, rooms: list[str]) -> None:
    "Lay out the pages in the folder `source`, lessons of these rooms; of all, if none is named"
    shutil.copytree(ROOT / "nbs", source / "nbs", ignore=shutil.ignore_patterns("*.py", ".*"))
    for folder in (source / "nbs").iterdir():
        if rooms and folder.is_dir() and folder.name not in (*rooms, *NO_ROOMS):
            shutil.rmtree(folder)
    shutil.copytree(
        ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    for name in PAGES:
        shutil.copy(ROOT / name, source)
    for name in ("lessons", "reference"):
        (source / name).mkdir()
    listed = {
        "Learn it": tutorials(),
        "The flights pipeline": notebooks("nbs/pipelines/flights"),
        "Flights, month by month": notebooks("nbs/pipelines/flights_live"),
        "Flights, watched": notebooks("nbs/pipelines/flights_watched"),
        "How it works": ["docs/architecture", *measured()],
        "Lessons": lesson_pages(source, rooms or [*ROOMS]),
        "Reference": reference_pages(source),
        "Project": [Path(name).stem for name in PAGES],
    }
    trees = "\n".join(toctree(title, pages) for title, pages in listed.items())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (source / "index.md").write_text(f"{readme}\n\n{trees}", encoding="utf-8")


def notebooks(folder: str) -> list[str]:
    "The notebooks of a folder as pages"
    return [
        str(p.relative_to(ROOT).with_suffix("")) for p in sorted((ROOT / folder).glob("*.ipynb"))
    ]


def tutorials() -> list[str]:
    "The tutorials, those that begin with what you have first, and what they find on the desk last"
    pages = sorted(notebooks("nbs/tutorials"), key=lambda page: "your_" not in page)
    return pages + notebooks("nbs/tutorials/_desk")


def measured() -> list[str]:
    "The pages of figures"
    pages = sorted((ROOT / "docs").glob("*.md"))
    return [f"docs/{p.stem}" for p in pages if p.stem != "architecture"]


def main() -> int:
    site = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "site"
    with tempfile.TemporaryDirectory(prefix="site-") as folder:
        source = Path(folder) / "source"
        source.mkdir()
        for room in filter(None, ROOMS):
            __import__(f"scalai_nb.{room}")
        assemble(source, sys.argv[2:])
        made = Path(folder) / "html"
        options = ["-q", "-j", "auto", "-b", "html", "-c", str(ROOT / "docs")]
        command = [sys.executable, "-m", "sphinx", *options, str(source), str(made)]
        if code := subprocess.run(command, check=False).returncode:
            return code
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(made, site, ignore=shutil.ignore_patterns(".doctrees", ".buildinfo"))
    print(f"docs: {sum(1 for _ in site.rglob('*.html'))} pages; open {site / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
