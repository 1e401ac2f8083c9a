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


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    "A lake with a dataset of 160 MB"
    folder = tmp_path_factory.mktemp("lake")
    rng = np.random.default_rng(0)
    columns = {f"x{i}": ("row", rng.random(ROWS, np.float32)) for i in range(COLUMNS)}
    sn.Lake(folder).write("readings", xr.Dataset(columns))
    return folder


def told(code, lake):
    "What `code` prints, in a process of its own"
    env = {k: v for k, v in os.environ.items() if k not in thrifty(1)}
    asked = [sys.executable, "-c", code, str(lake)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, env=env)
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
