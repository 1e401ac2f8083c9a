"""The house: rooms of about a dozen files, arrows that point down, and no circle between files"""

import ast
import re
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "scalai_nb"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py")
ROOMS = sorted(p for p in PACKAGE.rglob("*") if p.is_dir() and (p / "__init__.py").exists())
MOST = 13  # files in a room

# Who may import whom: a line may import the lines above it, and what is in its own line's rooms.
FLOORS = """
    errors types
    environment files goals metrics exposition memory redaction words show pictures
    kernels
    data compute
    describe
    evaluation
    learn.features
    learn.linear
    learn.trees learn.networks
    learn.training
    tracking
    models.package
    models.registry models.slim models.search
    client
    pipeline.reading
    pipeline.execution
    pipeline pipeline.running pipeline.showing
    pipeline.sweeps
    serving.refusal serving.exchange serving.tracing
    serving.door serving.decoding
    serving.scoring
    serving.protocols serving.documents serving.log
    serving.app serving.wire serving.offline
    serving.process
    monitoring governance
    export operations bench jupyter jupyter.page jupyter.pages start
    commands
    commands.observing
    cli
    __main__
"""
FLOOR = {room: i for i, line in enumerate(FLOORS.split("\n")) for room in line.split()}


def dotted(path: Path) -> str:
    "`learn.linear.solver` for its file, `learn.linear` for the `__init__` of its folder"
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(p): p for p in MODULES}


def room_of(module: str) -> str:
    "The longest part of a module's name that FLOORS lists"
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if (room := ".".join(parts[:n])) in FLOOR:
            return room
    raise AssertionError(f"{module}: which room is this? Add it to FLOORS")


@cache
def imported(module: str) -> set[str]:
    "What a module takes from the package, anywhere in its text, by the name of the file it is in"
    path, found = NAMES[module], set()
    package = path.relative_to(PACKAGE).parent.parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            start = ("scalai_nb", *package)[: len(package) + 2 - node.level] if node.level else ()
            source = ".".join([*start, *([node.module] if node.module else [])])
            found |= {f"{source}.{a.name}" for a in node.names}
    names = (n.removeprefix("scalai_nb.") for n in found if n.startswith("scalai_nb."))
    return {file for name in names if (file := file_of(name))} - {module}


def file_of(name: str) -> str:
    "The module that a dotted name is, or is defined in"
    while name and name not in NAMES:
        name = name.rpartition(".")[0]
    return name


def test_arrows_point_downwards():
    wrong = [
        f"{module} imports {other}"
        for module in NAMES
        if module
        for other in sorted(imported(module))
        if room_of(other) != room_of(module) and FLOOR[room_of(other)] > FLOOR[room_of(module)]
    ]
    assert not wrong


def test_files_make_no_circles():
    graph = {m: imported(m) for m in NAMES if m and NAMES[m].name != "__init__.py"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        raise AssertionError(" <- ".join(e.args[1])) from None


def test_a_file_name_is_unique():
    "But for the twins in kernels/, which carry the name of what they are the twins of"
    stems = [p.stem for p in MODULES if p.stem != "__init__" and "kernels" not in p.parts]
    twice = [name for name, n in Counter(stems).items() if n > 1]
    assert not twice
    twins = {p.stem for p in MODULES if "kernels" in p.parts} - {"__init__"}
    assert not twins & set(stems) - {"linear", "features"}, "of rooms, not of files"


def test_a_room_holds_about_a_dozen_files():
    sizes = {dotted(room / "__init__.py"): len(list(room.glob("*.py"))) - 1 for room in ROOMS}
    assert not {room: n for room, n in sizes.items() if n > MOST}


def test_every_room_says_what_it_is_for():
    "In about five lines: what for, what comes in, what goes out, what it may import"
    silent = []
    for room in ROOMS:
        said = (
            ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
        )
        words = said.lower()
        if (
            not all(word in words for word in ("in:", "out:", "imports:"))
            or len(said.split("\n")) > 8
        ):
            silent.append(dotted(room / "__init__.py"))
    assert not silent


DEMO = re.compile(r"\b(nycflights\w*|(late-)?flights?|airports?|airlines?|carriers?)\b", re.I)
TELLING = ("jupyter", "pipeline", "commands")  # rooms where no column of the demo may be named
COLUMNS = {"month", "late", "carrier", "origin", "replay", "evaluation", "release"}


def said(module: str) -> list[str]:
    "The texts of a module that are no documentation"
    tree = ast.parse(NAMES[module].read_text(encoding="utf-8"))
    told = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    texts = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in told)
    return [n.value for n in texts if isinstance(n.value, str)]


def test_no_text_of_the_library_names_the_demo():
    "But for the bench, which measures it; a flight of the client is a request under way"
    ours = [m for m in NAMES if not m.startswith("bench") and m != "client.flight"]
    assert not {m: text for m in ours for text in said(m) if DEMO.search(text)}
    rooms = [m for m in ours if m.partition(".")[0] in TELLING]
    assert not {m: text for m in rooms for text in said(m) if text in COLUMNS}
