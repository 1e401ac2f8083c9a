"What a step was seen to read: whatever of it changes makes the step stale, and is named"

import json
import os
import shutil
import sqlite3
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from toy import Project

from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import environment
from scalai_nb.pipeline.execution.observer import Observer, Watch
from scalai_nb.pipeline.pipeline import Pipeline
from scalai_nb.pipeline.plan import Plan
from scalai_nb.pipeline.staleness import Cache

SETTINGS = "cluster = none\ntrackers = none\nworkers = 1\n"
CONTRACT = 'from scalai_nb.pipeline import In, Out\na: Out = "a"\nn: int = 1'
READS = {  # file: how it is read
    "plain.txt": "open('plain.txt').read()",
    "path.txt": "Path('path.txt').read_text()",
    "bytes.bin": "Path('bytes.bin').read_bytes()",
    "low.bin": "os.read(os.open('low.bin', os.O_RDONLY), 9)",
    "raw.bin": "io.FileIO('raw.bin').read()",
    "line.txt": "linecache.getline('line.txt', 1)",
    "mapped.bin": "f = open('mapped.bin'); mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:]",
    "prices.json": "json.load(open('prices.json'))",
    "rows.csv": "pd.read_csv('rows.csv')",
    "fast.csv": "pd.read_csv('fast.csv', engine='c', memory_map=True)",
    "array.npy": "np.load('array.npy')",
    "text.dat": "np.loadtxt('text.dat')",
    "lazy.npy": "np.load('lazy.npy', mmap_mode='r').sum()",
    "thing.pkl": "pickle.load(open('thing.pkl', 'rb'))",
    "base.db": "sqlite3.connect('base.db').execute('select 1').fetchall()",
    "options.ini": "configparser.ConfigParser().read('options.ini')",
    "packed.zip": "zipfile.ZipFile('packed.zip').namelist()",
    "copied.txt": "shutil.copy('copied.txt', tempfile.mkdtemp())",
    "run.py": "runpy.run_path('run.py')",
    "executed.py": "exec(open('executed.py').read())",
    "none.txt": "os.path.exists('none.txt') or contextlib.suppress(OSError).__enter__()",
    "linked.txt": "open('linked.txt').read()",
    "child.py": "subprocess.run([sys.executable, 'child.py'], check=True)",
    "shelled.sh": "subprocess.run('sh shelled.sh'.split(), check=True)",
    "late.py": "importlib.import_module('la' + 'te')",
    "extra/aside.py": "sys.path.insert(0, 'extra'); __import__('as' + 'ide')",
    "extra/beside.json": "pkgutil.get_data('aside', 'beside.json')",
    "helper.py": "__import__('helper')",
    "deep.txt": "helper.deep()",
    "threaded.txt": "threading.Thread(target=lambda: open('threaded.txt').read()).start()",
    "forked.txt": "multiprocessing.get_context('fork').Pool(1).map(helper.read, ['forked.txt'])",
}
VARIABLES = {
    "GOT": "os.environ.get('GOT')",
    "ASKED": "os.getenv('ASKED')",
    "TAKEN": "os.environ['TAKEN']",
    "CONTAINED": "'CONTAINED' in os.environ",
    "BYTES": "os.environb.get(b'BYTES')",
    "EXPANDED": "os.path.expandvars('$EXPANDED')",
    "BEHIND": "helper.variable()",
}
FOLDERS = {
    "listed": "os.listdir('listed')",
    "scanned": "list(os.scandir('scanned'))",
    "walked": "list(os.walk('walked'))",
    "globbed": "glob.glob('globbed/*.csv')",
    "iterated": "list(Path('iterated').iterdir())",
    "matched": "list(Path('matched').glob('*.csv'))",
}
IMPORTS = (
    "import configparser, contextlib, glob, importlib, io, json, linecache, mmap, multiprocessing\n"
    "import os, pickle, pkgutil, runpy, shutil, socket, sqlite3, subprocess, sys, tempfile\n"
    "import threading, zipfile\n"
    "from pathlib import Path\n"
    "import numpy as np, pandas as pd, xarray as xr\n"
    "import helper\n"
    "import scalai_nb as sn\n"
    "from scalai_nb.pipeline import write"
)
HELPER = (
    "import os\n"
    "def read(path): return open(path).read()\n"
    "def deep(): return read('deep.txt')\n"
    "def variable(): return os.environ.get('BEHIND')\n"
)
OWN = {  # what the step has written itself, at first or when it was not there
    "own.txt": "open('own.txt', 'w').close(); open('own.txt').read()",
    "kept.txt": "if not os.path.exists('kept.txt') or not open('kept.txt').read(): "
    "open('kept.txt', 'w').write('1')",
    "synced/own.txt": "os.fsync(os.open('synced', os.O_RDONLY)); "
    "open('synced/own.txt', 'w').close()",
    "moved.txt": "open('new.txt', 'w').close(); os.replace('new.txt', 'moved.txt')",
    "__pycache__/f.nbi": "os.makedirs('__pycache__', exist_ok=True); "
    "open('__pycache__/f.nbi').read() if os.path.exists('__pycache__/f.nbi') else 0",
}


def fill(folder: Path) -> None:
    "Every file that is read"
    for name in (*FOLDERS, "extra", "synced", "__pycache__"):
        (folder / name).mkdir()
    for name in ("kept.txt", "moved.txt", "__pycache__/f.nbi"):
        (folder / name).touch()
    for name in READS:
        if name != "none.txt":
            (folder / name).write_text("1")
    for name in ("run.py", "executed.py", "child.py", "late.py", "extra/aside.py"):
        (folder / name).write_text("x = 1\n")
    (folder / "helper.py").write_text(HELPER)
    (folder / "shelled.sh").write_text("true\n")
    (folder / "linked.txt").rename(folder / "target.txt")
    (folder / "linked.txt").symlink_to("target.txt")
    for name in ("array.npy", "lazy.npy"):
        np.save(folder / name, np.arange(3))
    for name in ("rows.csv", "fast.csv"):
        pd.DataFrame({"a": [1]}).to_csv(folder / name)
    (folder / "options.ini").write_text("[a]\nb = 1\n")
    pd.to_pickle({"a": 1}, folder / "thing.pkl")
    shutil.make_archive(folder / "packed", "zip", folder / "listed")
    with sqlite3.connect(folder / "base.db") as db:
        db.execute("create table a (b)")
    db.close()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A project whose step has read everything once"
    root = tmp_path_factory.mktemp("observed")
    project = Project(root, SETTINGS)
    lines = [*READS.values(), *VARIABLES.values(), *FOLDERS.values(), *OWN.values()]
    lines += ["importlib.import_module('ya' + 'ml')", "socket.getaddrinfo('localhost', 80)"]
    lines[lines.index(READS["none.txt"])] = "try: open('none.txt')\nexcept OSError: pass"
    body = "\n".join(lines)
    write = "write(a, xr.Dataset({'x': ('row', np.arange(3.0))}))"
    project.step("00_a", CONTRACT, IMPORTS, body, "%run run.py", "sn.environment().workers", write)
    project.step("01_b", CONTRACT.replace('"a"', '"b"'), IMPORTS, write)
    fill(root / "pipelines/toy")
    ran = project.scalai("run", "toy", TAKEN="1")
    assert ran.returncode == 0, ran.stdout
    return root


def share(env) -> None:
    "Tell other checkouts of what was run, as if all that it read had been seen"
    cache = Cache(env, "toy")
    for step in Pipeline.load("toy", env).steps:
        entry = cache.get(step)
        cache.share(step, replace(entry, observed=replace(entry.observed, unseen=[])))


@contextmanager
def copied(done: Path, tmp_path: Path):
    "The reasons of both steps in a copy of the project, once it is changed"
    root = tmp_path / "copy"
    shutil.copytree(done, root, symlinks=True)
    share(environment("laptop", settings=root / "settings.ini"))

    def reasons(**variables: str) -> list[list[str]]:
        with patch.dict(os.environ, {"TAKEN": "1", **variables}):
            env = environment("laptop", settings=root / "settings.ini")
            found = Plan.make(Pipeline.load("toy", env), env).steps
            other = replace(env, runs=str(tmp_path / "other"))
            there = Plan.make(Pipeline.load("toy", other), other).steps
        # a checkout that has run nothing finds in the lake what this one has, and nothing more
        ran = [bool(step.reasons or step.entry.accepted) for step in found]
        assert [bool(step.reasons) for step in there] == ran
        return [step.reasons for step in found]

    yield root / "pipelines/toy", reasons


def test_nothing_has_changed(done, tmp_path):
    with copied(done, tmp_path) as (folder, reasons):
        assert reasons() == [[], []]
        for file in folder.rglob("*.txt"):
            os.utime(file, (1, 1))
        (folder / "helper.py").write_text(HELPER + "# a remark\n")
        (folder / "not_read.txt").write_text("1")
        (folder / "own.txt").write_text("what the step writes itself")
        (folder / "__pycache__/f.nbi").write_text("compiled")
        assert reasons(OTHER="1") == [[], []]


@pytest.mark.parametrize("name", READS)
def test_a_file_that_was_read(done, tmp_path, name):
    with copied(done, tmp_path) as (folder, reasons):
        path = folder / name
        path.write_text(
            path.read_text("latin-1") + "\ny = 2\n" if path.exists() else "1", "latin-1"
        )
        (one, other) = reasons()
        assert len(one) == 1 and Path(name).name.split(".")[0] in one[0], one
        assert other == (["library helper"] if name == "helper.py" else [])


@pytest.mark.parametrize("name", [n for n in READS if n != "none.txt"])
def test_a_file_that_is_gone(done, tmp_path, name):
    with copied(done, tmp_path) as (folder, reasons):
        (folder / name).unlink()
        assert any(Path(name).name.split(".")[0] in why for why in reasons()[0])


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_that_was_asked_for(done, tmp_path, name):
    with copied(done, tmp_path) as (_, reasons):
        assert reasons(**{name: "2"}) == [[f"variable {name}"], []]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_was_listed(done, tmp_path, name):
    with copied(done, tmp_path) as (folder, reasons):
        (folder / name / "new.csv").touch()
        assert reasons() == [[f"names in folder pipelines/toy/{name}"], []]


def test_settings_count_where_the_step_asks_for_them(done, tmp_path):
    with copied(done, tmp_path) as (folder, reasons):
        settings = folder.parents[1] / "settings.ini"
        settings.write_text(settings.read_text().replace("workers = 1", "workers = 2"))
        assert reasons() == [["file settings.ini"], []]


def test_what_cannot_be_seen_is_said(done):
    entry = json.loads((done / ".scalai/runs/cache/toy/a.json").read_text())
    unseen = entry["observed"]["unseen"]
    assert {f"what {sys.executable} reads", "what localhost:80 answers"} <= {*unseen}


def test_a_package_that_the_kernel_had_already_counts_when_it_is_asked_for_by_name(done):
    entry = json.loads((done / ".scalai/runs/cache/toy/a.json").read_text())
    assert entry["observed"]["packages"]["PyYAML"] == metadata.version("PyYAML")


def test_all_that_a_step_depends_on_is_listed(done):
    project = Project(done, SETTINGS)
    wide = {"TAKEN": "2", "COLUMNS": "200"}
    said = project.said("plan", "toy", "--explain", "a", **wide).stdout
    assert "changed  variable" in said and "pipelines/toy/prices.json" in said
    assert "not observed" in said and "library" in said
    facts = json.loads(project.said("plan", "toy", "--explain", "a", "--json", TAKEN="1").stdout)
    assert {fact["what"] for fact in facts} >= {"code", "kernel", "file", "variable", "package"}
    never = project.said("plan", "toy", "--explain", "z")
    assert never.returncode == 2 and "'z'" in never.stderr


def test_a_stale_step_is_accepted_on_the_record(done, tmp_path):
    with copied(done, tmp_path) as (folder, reasons):
        project = Project(folder.parents[1], SETTINGS)
        (folder / "plain.txt").write_text("2")
        (folder / "helper.py").write_text(HELPER + "more = 1\n")
        why = ["library helper", "file pipelines/toy/plain.txt"]
        assert reasons()[0] == why
        words = ("accept", "toy", "a", "--because", "a typing error")
        said = project.said(*words, TAKEN="1", SCALAI_USER="ada")
        assert f"ada: a typing error ({', '.join(why)})" in said.stdout, said
        assert reasons()[0] == [] and "accepted" in project.said("plan", "toy", TAKEN="1").stdout
        again = project.said(*words, TAKEN="1")
        assert again.returncode == 2 and "a is cached" in again.stderr
        (folder / "plain.txt").write_text("3")
        assert reasons()[0] == ["file pipelines/toy/plain.txt"]
        shutil.rmtree(folder.parents[1] / ".scalai/lake/a")
        gone = project.said(*words, TAKEN="1")
        assert gone.returncode == 2 and "output a is gone; run it" in gone.stderr


def test_what_is_edited_while_the_step_runs(tmp_path):
    project = Project(tmp_path)
    edit = "from pathlib import Path\nPath('rate.txt').write_text('2')"
    read = "import time; time.sleep(0.02); rate = open('rate.txt').read()"
    write = "import numpy as np, xarray as xr\nfrom scalai_nb.pipeline import write\n"
    write += "write(a, xr.Dataset({'x': ('row', np.arange(3.0))}))"
    process = "import subprocess, sys; subprocess.run([sys.executable, '-c', "
    project.step("00_a", CONTRACT, read, f"{process}{edit!r}], check=True)", write)
    (tmp_path / "pipelines/toy/rate.txt").write_text("1")
    assert project.said("run", "toy").returncode == 0
    plan = json.loads(project.said("plan", "toy", "--json").stdout)
    changed = "file pipelines/toy/rate.txt, which changed while the step read it"
    assert plan["steps"][0]["reasons"] == [changed]


@pytest.fixture
def kept(tmp_path):
    "A project whose step has written a dataset of several chunks, and a function for its reasons"
    project = Project(tmp_path)
    write = "import numpy as np, xarray as xr\nfrom scalai_nb.pipeline import write\n"
    columns = "{c: ('row', np.random.default_rng(n).random(5000)) for c in 'xy'}"
    project.step("00_a", CONTRACT, f"{write}write(a, xr.Dataset({columns}))")
    assert project.said("run", "toy").returncode == 0

    def reasons() -> list[str]:
        own = project.env.get("PYTHONPATH") != os.environ.get("PYTHONPATH")  # modules of its own
        ask = project.scalai if own else project.said
        plan = json.loads(ask("plan", "toy", "--json").stdout)
        return plan["steps"][0]["reasons"]

    return project, Lake(tmp_path / ".scalai/lake"), reasons


def test_an_output_that_has_lost_a_chunk_is_made_again(kept):
    project, lake, reasons = kept
    assert reasons() == []
    next((lake.path / "a/chunks").iterdir()).unlink()
    assert reasons() == ["output a has lost chunks"]
    assert project.said("run", "toy").returncode == 0
    assert reasons() == [] and lake.read("a").x.values.size == 5000


def test_an_output_that_is_restored_to_the_same_content_stands(kept):
    project, lake, reasons = kept
    first = lake.version("a")
    lake.write("a", xr.Dataset({"x": ("row", np.zeros(3))}))
    assert reasons() == ["output a was changed since"]
    again = lake.restore("a", first)
    assert again.id != first.id and reasons() == []
    lake.append("a", lake.read("a").isel(row=slice(0, 1)).load())
    assert reasons() == ["output a was changed since"]
    assert lake.restore("a", again).content == first.id and reasons() == []


def test_a_package_that_was_uninstalled_between_two_runs(kept):
    project, lake, reasons = kept
    site = project.root / "site-packages"
    about = site / "prices_of_ada-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: prices-of-ada\nVersion: 1.0\n")
    (about / "top_level.txt").write_text("prices_of_ada\n")
    (site / "prices_of_ada.py").write_text("price = 3.0\n")
    project.env["PYTHONPATH"] = f"{site}:{os.environ.get('PYTHONPATH', '')}"
    write = "import numpy as np, xarray as xr\nfrom scalai_nb.pipeline import write\n"
    write += "write(a, xr.Dataset({'x': ('row', np.full(4, prices_of_ada.price))}))"
    project.step("00_a", CONTRACT, "import prices_of_ada", write)
    assert project.scalai("run", "toy").returncode == 0 and reasons() == []
    before = lake.version("a")
    shutil.rmtree(site)
    assert "package prices-of-ada 1.0 -> none" in reasons()
    ran = project.scalai("run", "toy")
    assert ran.returncode == 1 and "No module named 'prices_of_ada'" in ran.stdout
    assert lake.version("a") == before


def test_packages_are_not_the_projects_though_they_lie_in_its_folder(tmp_path):
    "As in a project with its virtual environment: what pandas asks of os.environ is not its code"
    project = str(Path(pd.__file__).parents[5])
    observer = Observer(Watch(str(tmp_path / "seen"), project, (), ""))
    assert not observer._counts(pd.__file__)
    assert observer._counts(f"{project}/prices.py")
