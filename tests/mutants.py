"""Break the code in a hundred small ways and count how many the tests notice: `make mutants`

A seeded sample of mutants over pipeline, data, evaluation, models and serving. Each is made in a
copy of the project, in the notebook, exported from there, and judged by the notebook itself and by
the tests that import its module, the nearest first. What survives is listed, and answered by a test
or by a reason in mutants_answered.txt.
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from scalai_nb import _MODULE as PUBLIC

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
ROOMS = ("pipeline", "data", "evaluation", "models", "serving")
WANTED = 90  # killed of a hundred
PATIENCE = (
    420  # seconds for all tests of a mutant; one that takes longer hangs, and counts as noticed
)
EXPORT = re.compile(r"#\s*\|\s*exporti?\b")
THROUGH_COMMANDS = {  # tests that reach a room without importing it, the quick ones first
    "pipeline": ("test_plan", "test_pipeline", "test_faults"),
    "data": ("test_lake", "test_contract"),
    "evaluation": ("test_evaluation", "test_training"),
    "models": ("test_registry", "test_tracking"),
    "serving": ("test_protocols", "test_http", "test_serve", "test_log"),
}
OF_ALL = {  # of the whole project: they take minutes
    f"test_{name}"
    for name in ("bench", "docs", "flights", "house", "hygiene", "outputs", "project", "site")
}
ANSWERED = Path(__file__).with_name("mutants_answered.txt")


# ---- what can be broken


class Site:
    "A place of a tree and what takes its place"

    def __init__(self, node: ast.AST, change, what: str):
        self.node, self.change, self.what = node, change, what


SWAPS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}


def swap(node: ast.AST) -> list[Site]:
    "Another operator"
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        new = SWAPS[type(node.ops[0])]
        return [Site(node, lambda n: n.ops.__setitem__(0, new()), f"operator → {new.__name__}")]
    path = isinstance(node, ast.BinOp) and any(
        isinstance(x, ast.Constant) and isinstance(x.value, str) for x in (node.left, node.right)
    )
    if isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in SWAPS and not path:
        new = SWAPS[type(node.op)]
        return [Site(node, lambda n: setattr(n, "op", new()), f"operator → {new.__name__}")]
    return []


def constant(node: ast.AST) -> list[Site]:
    "Another number or truth value"
    if not isinstance(node, ast.Constant) or type(node.value) not in (int, float, bool):
        return []
    new = not node.value if isinstance(node.value, bool) else node.value + 1
    return [Site(node, lambda n: setattr(n, "value", new), f"{node.value} → {new}")]


def condition(node: ast.AST) -> list[Site]:
    "A condition the other way round"
    if not isinstance(node, ast.If | ast.IfExp | ast.While):
        return []

    def negate(n):
        n.test = ast.UnaryOp(ast.Not(), n.test)

    return [Site(node, negate, "condition negated")]


def dropped(node: ast.AST) -> list[Site]:
    "A call whose result nobody takes, left out"
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return []
    return [Site(node, lambda n: setattr(n, "value", ast.Constant(None)), "call left out")]


KINDS = (swap, constant, condition, dropped)
TEXTS = (ast.Raise, ast.JoinedStr, ast.FormattedValue, ast.arguments)


def sites(tree: ast.Module) -> list[Site]:
    "All places inside functions that can be broken; not what an error says, nor a type"
    found = []

    def visit(node, inside: bool):
        if isinstance(node, TEXTS):
            return
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if inside:
            found.extend(site for kind in KINDS for site in kind(node))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "msg"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, inside)

    visit(tree, False)
    return found


@dataclass(frozen=True)
class Mutant:
    "One break"

    notebook: str  # below nbs/
    cell: str  # its id
    line: int  # of the cell
    what: str
    code: str  # the line before
    cell_source: str  # the cell before
    number: int  # of the site in the cell

    @property
    def source(self) -> str:
        "The cell, broken"
        tree = ast.parse(self.cell_source)
        site = sites(tree)[self.number]
        site.change(site.node)
        return "\n".join(["#| export", ast.unparse(ast.fix_missing_locations(tree))])

    @property
    def module(self) -> str:
        "Dotted name below the package"
        return self.notebook.removesuffix(".ipynb").replace("/", ".")

    def __str__(self) -> str:
        return f"{self.notebook} {self.cell}:{self.line} {self.what}: {self.code}"


def mutants_of(path: Path) -> list[Mutant]:
    "Every mutant of a notebook"
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or not EXPORT.match(source):
            continue
        name = str(path.relative_to(ROOT / "nbs"))
        for i, site in enumerate(sites(ast.parse(source))):
            line = site.node.lineno
            code = source.splitlines()[line - 1].strip()
            found.append(Mutant(name, cell["id"], line, site.what, code, source, i))
    return found


def sample(count: int, seed: int) -> list[Mutant]:
    "So many mutants, drawn from all of them; of one line at most one"
    paths = [p for room in ROOMS for p in sorted((ROOT / "nbs" / room).rglob("*.ipynb"))]
    pool = [m for path in paths for m in mutants_of(path)]
    random.Random(seed).shuffle(pool)
    first = {(m.notebook, m.cell, m.line): m for m in reversed(pool)}
    return list(first.values())[::-1][:count]


# ---- who judges


@cache
def imports(path: Path) -> frozenset[str]:
    "The modules of the package that a file names"
    text = path.read_text(encoding="utf-8")
    package = ".".join(path.relative_to(ROOT).parent.parts)
    found = set(re.findall(r"scalai_nb\.([\w.]+)", text))
    found |= {
        f"{m}.{n}"
        for m, names in re.findall(r"from scalai_nb\.([\w.]+) import ([\w, ]+)", text)
        for n in names.split(", ")
    }
    for dots, rest in re.findall(r"^\s*from (\.+)([\w.]*) import", text, re.M):
        base = package.split(".")[: len(package.split(".")) + 1 - len(dots)]
        found.add(".".join([*base[1:], rest]).strip("."))
    found |= {PUBLIC[name] for name in re.findall(r"\bsn\.(\w+)", text) if name in PUBLIC}
    return frozenset(found)


@cache
def distances() -> dict[str, dict[Path, int]]:
    "For each module, how many imports away each test file is"
    files = {
        p: ".".join(p.relative_to(ROOT / "scalai_nb").with_suffix("").parts)
        for p in (ROOT / "scalai_nb").rglob("*.py")
    }
    users = {name: [n for p, n in files.items() if name in imports(p)] for name in files.values()}
    tests = [p for p in sorted((ROOT / "tests").glob("test_*.py")) if p.stem not in OF_ALL]
    found = {}
    for module in users:
        near, reached, found[module] = [module], {module}, {}
        for distance in range(4):
            for test in tests:
                if imports(test) & set(near):
                    found[module].setdefault(test, distance)
            near = [u for name in near for u in users.get(name, ()) if u not in reached]
            reached |= set(near)
    return found


def judges(module: str) -> list[str]:
    "The nine test files that are nearest to a module, that of its name first"
    by_distance = distances().get(module, {})
    stem = module.rpartition(".")[2]
    tests = sorted(by_distance, key=lambda t: (t.stem != f"test_{stem}", by_distance[t], t.stem))
    near = [str(t.relative_to(ROOT)) for t in tests[:7]]
    through_commands = [f"tests/{name}.py" for name in THROUGH_COMMANDS[module.partition(".")[0]]]
    return list(dict.fromkeys([*near, *through_commands]))


def call(project: Path, *words: str, seconds: float) -> bool:
    "Whether a command of this environment succeeds in the project; one that hangs does not"
    without = ("CI", "PYTHONDONTWRITEBYTECODE")  # every process would compile every module
    env = {k: v for k, v in os.environ.items() if k not in without}
    env["PYTHONPATH"] = str(project)
    program = [str(BIN / words[0]), *words[1:]]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(program, cwd=project, env=env, start_new_session=True, **quiet)
    try:
        return process.wait(max(1.0, seconds)) in (0, 5)  # 5: no test was chosen
    except subprocess.TimeoutExpired:
        return False
    finally:
        try:
            os.killpg(process.pid, 9)
        except ProcessLookupError:
            pass
        process.wait()


def judge(mutant: Mutant) -> tuple[Mutant, str]:
    "What noticed a mutant; empty: nothing did"
    with tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True) as folder:
        project = Path(folder) / "project"
        ignored = shutil.ignore_patterns(
            ".git", ".venv*", ".scalai", "site", ".services", ".*_cache"
        )
        shutil.copytree(ROOT, project, ignore=ignored, symlinks=True)
        if (ROOT / ".services").exists():
            (project / ".services").symlink_to(ROOT / ".services")
        path = project / "nbs" / mutant.notebook
        nb = json.loads(path.read_text(encoding="utf-8"))
        for cell in nb["cells"]:
            if cell["id"] == mutant.cell:
                cell["source"] = mutant.source.splitlines(keepends=True)
        path.write_text(json.dumps(nb), encoding="utf-8")
        end = time.monotonic() + PATIENCE
        if not call(project, "nbdev-export", "--path", str(path), seconds=60):
            return mutant, "export"
        if not call(project, "nbdev-test", "--n-workers", "0", str(path), seconds=120):
            return mutant, "its lesson"
        options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
        for test in judges(mutant.module):
            if not call(project, "pytest", *options, test, seconds=end - time.monotonic()):
                return mutant, test
        return mutant, ""


def answered() -> str:
    "What is said of earlier survivors"
    return ANSWERED.read_text(encoding="utf-8") if ANSWERED.exists() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--list", action="store_true", help="name the mutants and their judges only"
    )
    words = parser.parse_args()
    chosen = sample(words.count, words.seed)
    if words.list:
        for mutant in chosen:
            print(mutant, "\n    ", *judges(mutant.module))
        return 0
    survivors = []
    with ThreadPoolExecutor(words.processes) as pool:
        for i, (mutant, noticed) in enumerate(pool.map(judge, chosen), 1):
            print(f"[{i:3}/{len(chosen)}] {noticed or 'SURVIVES'}: {mutant}", flush=True)
            survivors += [] if noticed else [mutant]
    killed = len(chosen) - len(survivors)
    print(f"mutants: {killed} of {len(chosen)} noticed; {WANTED} % are wanted")
    said = answered()
    open_ones = [m for m in survivors if m.code not in said]
    for mutant in open_ones:
        print(f"not answered in {ANSWERED.name}: {mutant}")
    return 0 if 100 * killed >= WANTED * len(chosen) and not open_ones else 1


if __name__ == "__main__":
    sys.exit(main())
