"""Measure how the code reads: `make style`; `python tests/style.py ROOM` says what a room lacks"""

import argparse
import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "scalai_nb"
EXPORT = re.compile(r"#\s*\|\s*exporti?\b")
HIDDEN = re.compile(r"#\s*\|\s*(default_exp|exporti?|hide|eval: false)")
# options of a command, scalars of a kernel, and a word for each role that a column may have
WIDE = re.compile(r"cli|commands|kernels|data/contract.py:infer")
WINDOW = 3  # code cells within which a definition is shown at work


@dataclass
class Bound:
    "A figure, what it may be at most or must be at least, and the places that spoil it"

    name: str
    value: float
    most: float | None = None
    least: float | None = None
    unit: str = ""
    places: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool:
        "Whether the figure is within its bound; one without a bound is"
        above = self.most is None or self.value <= self.most
        return above and (self.least is None or self.value >= self.least)

    def __str__(self) -> str:
        wanted = f"≤ {self.most:g}" if self.most is not None else ""
        wanted = f"≥ {self.least:g}" if self.least is not None else wanted
        mark = "✔" if self.met else "✘"
        return f"{mark} {self.name:<56} {self.value:>8.1f} {self.unit:<2} {wanted}"


# ---- modules


def modules(room: str) -> list[Path]:
    "The modules of a room, or of all"
    found = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py")
    return [p for p in found if str(p.relative_to(PACKAGE)).startswith(room)]


def lines(paths: list[Path]) -> list[Bound]:
    "How long lines of code are; indentation counts where it takes room, not in the mean"
    code = [
        (f"{path.relative_to(ROOT)}:{n}", line.rstrip())
        for path in paths
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.strip()
    ]
    over = {limit: [where for where, line in code if len(line) > limit] for limit in (100, 120)}
    mean = sum(len(line.strip()) for _, line in code) / len(code)
    share = 100 * len(over[100]) / len(code)
    return [
        Bound("mean line, characters", mean, most=42),
        Bound("lines over 100 characters", share, most=6, unit="%", places=over[100]),
        Bound("lines over 120 characters", len(over[120]), most=0, places=over[120]),
    ]


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    "Public functions, and public methods and `__init__` of public classes"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    tops = [n for n in tree.body if not getattr(n, "name", "_").startswith("_")]
    methods = [m for n in tops if isinstance(n, ast.ClassDef) for m in n.body]
    found = [
        *(n for n in tops if isinstance(n, kinds)),
        *(m for m in methods if isinstance(m, kinds)),
    ]
    return [f for f in found if not f.name.startswith("_") or f.name in ("__init__", "__call__")]


def types(paths: list[Path]) -> list[Bound]:
    "Public functions without a return type, parameters without a type, and those with too many"
    returns, arguments, many = [], [], []
    for path in paths:
        for f in functions(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{f.lineno} {f.name}"
            a = f.args
            given = [*a.posonlyargs, *a.args, *a.kwonlyargs]
            named = [p for p in given if p.arg not in ("self", "cls")]
            if f.returns is None and f.name != "__init__":
                returns.append(where)
            arguments += [f"{where}({p.arg})" for p in named if p.annotation is None]
            if len(named) > 8 and not WIDE.match(f"{path.relative_to(PACKAGE)}:{f.name}"):
                many.append(f"{where}: {len(named)}")
    return [
        Bound("public functions without a return type", len(returns), most=0, places=returns),
        Bound(
            "parameters of public functions without a type",
            len(arguments),
            most=0,
            places=arguments,
        ),
        Bound("public functions with more than eight parameters", len(many), most=0, places=many),
    ]


def errors(room: str) -> list[Bound]:
    "What the type checker finds"
    checker = Path(sys.executable).with_name("basedpyright")
    where = PACKAGE / room
    where = where if where.exists() else where.with_suffix(".py")
    done = subprocess.run(
        [checker, "--outputjson", where], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = [d for d in json.loads(done.stdout)["generalDiagnostics"] if d["severity"] == "error"]
    places = [
        f"{Path(d['file']).relative_to(ROOT)}:{d['range']['start']['line'] + 1} {d['message']}"
        for d in found
    ]
    return [Bound("errors of the type checker", len(found), most=0, places=places)]


# ---- notebooks


def notebooks(room: str) -> list[Path]:
    "The notebooks of a room, or of all"
    found = sorted((ROOT / "nbs").rglob("*.ipynb"))
    found = [p for p in found if ".ipynb_checkpoints" not in p.parts]
    found = [p for p in found if str(p.relative_to(ROOT / "nbs")).startswith(room)]
    return found if room else [*found, *sorted((ROOT / "dashboards").glob("*.ipynb"))]


def code_cells(path: Path) -> list[dict]:
    "The code cells of a notebook, each with its `text`"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c | {"text": "".join(c["source"])} for c in cells if c["cell_type"] == "code"]


def is_patch(node: ast.AST) -> bool:
    "Whether a function is put onto a class from outside"
    names = (ast.unparse(d).partition("(")[0] for d in getattr(node, "decorator_list", ()))
    return any(name in ("patch", "patch_to") for name in names)


def lessons(paths: list[Path]) -> list[Bound]:
    "Methods patched onto classes, definitions that are shown at work, and examples with an output"
    patched, shown, hidden, silent = [], 0, [], []
    for path in paths:
        cells = code_cells(path)
        name = str(path.relative_to(ROOT))
        for i, cell in enumerate(cells):
            if not EXPORT.match(cell["text"]):
                continue
            after = [c["text"] for c in cells[i + 1 : i + 1 + WINDOW]]
            after = [text for text in after if not EXPORT.match(text)]
            for node in ast.parse(cell["text"]).body:
                patched += [f"{name} {node.name}"] if is_patch(node) else []
                if getattr(node, "name", "_").startswith("_") or is_patch(node):
                    continue
                if any(re.search(rf"\b{node.name}\b", text) for text in after):
                    shown += 1
                else:
                    hidden.append(f"{name} {node.name}")
        examples = [c for c in cells if not HIDDEN.match(c["text"])]
        if examples and not any(c["outputs"] for c in examples):
            silent.append(name)
    share = 100 * shown / max(1, shown + len(hidden))
    label = f"definitions used within {WINDOW} cells"
    return [
        Bound("methods patched onto classes of ours", len(patched), most=0, places=patched),
        Bound(label, share, least=75, unit="%", places=hidden),
        Bound("notebooks without an output", len(silent), most=0, places=silent),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("room", nargs="?", default="", help="a folder or file, say learn/linear")
    parser.add_argument("--no-types", action="store_true", help="without the type checker")
    words = parser.parse_args()
    paths = modules(words.room)
    bounds = [*lines(paths), *lessons(notebooks(words.room)), *types(paths)]
    bounds += [] if words.no_types else errors(words.room)
    for bound in bounds:
        print(bound)
        if words.room and not bound.met:
            print("\n".join(f"    {place}" for place in bound.places))
    return 0 if all(b.met for b in bounds) else 1


if __name__ == "__main__":
    sys.exit(main())
