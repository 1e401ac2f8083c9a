"A process that is held to little memory works in smaller blocks and sets little aside"

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import scalai_nb as sn
from scalai_nb.memory import thrifty
from scalai_nb.pipeline.execution.forkserver import ForkServer

ROWS, COLUMNS = 2_000_000, 20
CUTS = """
import json, sys
from scalai_nb.memory import TIGHT, hold, side_by_side
import scalai_nb as sn
from scalai_nb.compute.cuts import BLOCK, enough

def cuts():
    part = sn.Lake(sys.argv[1]).read("readings").isel(row=slice(1, None))
    largest = max(sn.Blocks.of(part).sizes)
    return largest, enough(BLOCK, width=40, rows=10**8), side_by_side(64, 2**27)

found = [cuts()]
for limit in (2 * TIGHT, 600_000_000):
    hold(limit, -1)
    found.append(cuts())
kept = bytearray(150_000_000)
print(json.dumps([*found, cuts()]))
"""
SUMMARY = """
import json, sys
from scalai_nb.memory import hold, memory_used
hold(600_000_000, 600_000_000)
import pyarrow, scipy.linalg
import scalai_nb as sn
ds = sn.Lake(sys.argv[1]).read("readings")
summary = sn.summarize(ds)
print(json.dumps([memory_used(), {name: summary[name].mean for name in ds}]))
"""

LARGE = """
import json, sys, numpy as np, xarray as xr
from scalai_nb.memory import hold, memory_used
hold(4 * 10**9, 4 * 10**9)
import scalai_nb as sn
GB, ROWS, COLUMNS = int(sys.argv[2]), 500_000, 20
rng = np.random.default_rng(0)

def blocks(shift):
    for k in range(GB * 10**9 // (8 * ROWS * COLUMNS)):
        yield xr.Dataset({f"x{i}": ("row", rng.random(ROWS) + shift) for i in range(COLUMNS)})

lake = sn.Lake(sys.argv[1])
first = lake.write_blocks("wide", blocks(0))
lake.write_blocks("wide", (b for b, _ in zip(blocks(1), range(2))))
lake.restore("wide", first.id)
back = sn.summarize(lake.read("wide"))
print(json.dumps([back["x0"].count, back["x0"].mean, memory_used(), lake.verify("wide") == []]))
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    "A lake with a dataset of 160 MB"
    folder = tmp_path_factory.mktemp("lake")
    rng = np.random.default_rng(0)
    columns = {f"x{i}": ("row", rng.random(ROWS, np.float32)) for i in range(COLUMNS)}
    sn.Lake(folder).write("readings", xr.Dataset(columns))
    return folder


def told(code, *words, timeout=120):
    "What `code` prints, in a process of its own"
    env = {k: v for k, v in os.environ.items() if k not in thrifty(1)}
    asked = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=timeout, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_blocks_are_cut_by_the_limit_and_not_by_what_is_free(lake):
    usual, wide, tight, later = told(CUTS, lake)
    assert wide[:2] == usual[:2] and wide[2] == 64
    assert all(few < many for few, many in zip(tight, usual, strict=True))
    assert later == tight


def test_libraries_set_little_aside_within_a_tight_limit(lake):
    used, means = told(SUMMARY, lake)
    rows = sn.Lake(lake).read("readings").astype(float).mean().compute()
    assert used < 500_000_000
    assert means == pytest.approx({name: float(x) for name, x in rows.items()}, rel=1e-6)


def test_threads_that_come_and_go_leave_nothing_behind_that_is_free():
    code = """
from threading import Barrier, Thread
from psutil import Process
from scalai_nb.memory import few_arenas, give_back
few_arenas()
met, kept = Barrier(16), []
def work():
    met.wait()
    parts = [bytes(9_000) for _ in range(1_000)]
    kept.extend(parts[::200])
    met.wait()
threads = [Thread(target=work) for _ in range(16)]
before = Process().memory_info().rss
[t.start() for t in threads]
[t.join() for t in threads]
give_back()
print((Process().memory_info().rss - before) / 1e6)"""
    words = [sys.executable, "-c", code]
    assert float(subprocess.run(words, capture_output=True, text=True, check=True).stdout) < 20


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_ten_gigabytes_are_written_described_and_restored_within_four(tmp_path):
    count, mean, used, sound = told(LARGE, tmp_path / "lake", 10, timeout=1700)
    assert (count, sound) == (125 * 500_000, True)
    assert mean == pytest.approx(0.5, abs=1e-3)
    assert used < 4 * 10**9


def test_a_forked_process_is_held_and_what_its_owner_has_decided_stays(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    code = "import json, os, resource; "
    code += "print(json.dumps([resource.getrlimit(resource.RLIMIT_DATA), dict(os.environ)]))"
    with ForkServer(memory=10**9) as server:
        env = dict(os.environ) | {"MALLOC_ARENA_MAX": "3"}
        asked = [sys.executable, "-c", code]
        server.spawn(asked, env, log=tmp_path / "log", memory=10**9).ended.result(60)
    limits, seen = json.loads((tmp_path / "log").read_text())
    assert limits == [10**9, 10**9]
    assert seen["MALLOC_ARENA_MAX"] == "3" and seen["OPENBLAS_NUM_THREADS"] == "1"
