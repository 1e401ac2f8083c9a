"""The tree is as the notebooks say: exported, clean, layered and light to import"""

import ast
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

import scalai_nb

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "scalai_nb"
NOTEBOOKS = sorted(
    p
    for folder in ("nbs", "dashboards")
    for p in (ROOT / folder).rglob("*.ipynb")
    if ".ipynb_checkpoints" not in p.parts
)
STEPS = [p for p in NOTEBOOKS if "pipelines" in p.parts]

UNDO = "from scalai_nb.jupyter.docstrings import undo; undo('scalai_nb')"
HAND_WRITTEN = re.compile(r"__init__\.py|__main__\.py|.*/__init__\.py|kernels/.*|jupyter/lab/.*")
HEAVY = (
    "numpy numba pandas xarray dask distributed zarr icechunk mlflow papermill IPython "
    "matplotlib sklearn xgboost onnx onnxruntime rich typer"
).split()


def short(path) -> str:
    return str(path.relative_to(ROOT))


def cells(path, kind="code"):
    return [
        c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind
    ]


def source(cell) -> str:
    return "".join(cell["source"])


def call(*command, cwd=ROOT):
    "Run a command of this environment; fail with what it printed"
    env = {
        k: v for k, v in os.environ.items() if k != "IN_TEST"
    }  # nbdev-export does nothing where IN_TEST is set
    done = subprocess.run(
        [Path(sys.executable).with_name(command[0]), *command[1:]],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


# ---- exported and clean


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the notebooks and of the files that say what to do with them"
    folder = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "dashboards", "scalai_nb"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def files(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*.py") if p.name != "_modidx.py"}


@pytest.fixture(scope="module")
def exported(copy) -> dict[str, bytes]:
    "What nbdev-export writes into a package that has only what is written by hand"
    package = copy / "scalai_nb"
    for name in files(package):
        if not HAND_WRITTEN.fullmatch(name):
            (package / name).unlink()
    call("nbdev-export", cwd=copy)
    return {name: (package / name).read_bytes() for name in files(package)}


@pytest.fixture(scope="module")
def cleaned(copy) -> dict[Path, bytes]:
    "What nbdev-clean leaves of the notebooks, by their path here"
    for folder in ("nbs", "dashboards"):
        call("nbdev-clean", "--fname", folder, cwd=copy)
    return {p: (copy / p.relative_to(ROOT)).read_bytes() for p in NOTEBOOKS}


def test_the_export_is_in_sync_and_no_module_is_an_orphan(exported):
    here = files(PACKAGE)
    orphans, missing = sorted(here - exported.keys()), sorted(exported.keys() - here)
    assert not orphans, "no notebook exports these modules"
    assert not missing, "these are not exported yet; run nbdev-export"
    stale = [name for name in sorted(here) if (PACKAGE / name).read_bytes() != exported[name]]
    assert not stale, (
        "these differ from what their notebook exports; run nbdev-export, or nbdev-update after "
        "editing the module"
    )


def test_every_notebook_is_clean(cleaned):
    noisy = [short(p) for p in NOTEBOOKS if p.read_bytes() != cleaned[p]]
    assert not noisy, "run nbdev-clean --fname on these"


def test_what_is_exported_finds_its_way_back(copy, exported, cleaned):
    "nbdev-update after nbdev-export changes no notebook; nbdev reads back `from .. import x` wrong"
    call("python", "-c", UNDO, cwd=copy)
    call("nbdev-update", cwd=copy)
    changed = [
        short(p) for p in NOTEBOOKS if (copy / p.relative_to(ROOT)).read_bytes() != cleaned[p]
    ]
    assert not changed


def contracts(notebook: bytes) -> int:
    "How many code cells are contracts"
    found = json.loads(notebook)["cells"]
    code = [c for c in found if c["cell_type"] == "code"]
    return sum("parameters" in c["metadata"].get("tags", []) for c in code)


def test_every_step_has_one_contract_cell_and_cleaning_keeps_it(cleaned):
    found = {short(p): (contracts(p.read_bytes()), contracts(cleaned[p])) for p in STEPS}
    wrong = {name: n for name, n in found.items() if n != (1, 1)}
    assert STEPS and not wrong, "contract cells before and after nbdev-clean"


def test_exported_cells_import_by_full_name():
    "No `from .x import y` or `from x import *`: a cell runs in a notebook too, and names sources"
    wrong = []
    for path in NOTEBOOKS:
        for cell in cells(path):
            if not re.match(r"#\s*\|\s*exports?\b", source(cell)):
                continue
            wrong += [
                f"{short(path)}: {ast.unparse(n)}"
                for n in ast.walk(ast.parse(source(cell)))
                if isinstance(n, ast.ImportFrom) and (n.level or n.names[0].name == "*")
            ]
    assert not wrong


def test_ruff_finds_nothing():
    call("ruff", "check", "--quiet")


# ---- light


def test_every_public_name_resolves():
    for name in scalai_nb.__all__:
        assert getattr(scalai_nb, name) is not None
    assert set(scalai_nb.__all__) <= set(dir(scalai_nb))
    with pytest.raises(AttributeError, match="'Lak'"):
        _ = scalai_nb.Lak


def test_import_loads_nothing_heavy():
    loaded = call("python", "-c", "import sys, scalai_nb; print(*sys.modules)").split()
    heavy = [name for name in HEAVY if name in loaded]
    assert not heavy


def cpu_seconds(code: str) -> float:
    "Processor time of a fresh Python that runs `code`: steadier than the clock where others work"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call("python", "-c", code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_import_is_cheap():
    cpu_seconds("import scalai_nb")  # compiles it, once
    rounds = [(cpu_seconds("pass"), cpu_seconds("import scalai_nb")) for _ in range(7)]
    bare, ours = (median(r[i] for r in rounds) for i in (0, 1))
    assert ours - bare < 0.3, (
        f"import scalai_nb costs {ours - bare:.2f} s, {ours / bare:.1f} times `python -c pass`"
    )
    assert ours / bare < 4, f"import scalai_nb costs {ours / bare:.1f} times `python -c pass`"
