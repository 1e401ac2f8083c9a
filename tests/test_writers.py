"""Writers that come at once and die: what was said to be there is there, once

`pytest -m campaign tests/test_writers.py` goes on for ten minutes, in a folder and in a bucket,
or for as many seconds as WRITERS_SECONDS says."""

import os
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT, tool

from buckets import s3_server, variables
from scalai_nb.data.lake.lake import Lake

WRITERS = 4
LONG = int(os.environ.get("WRITERS_SECONDS", "600"))
WRITER = """
import sys, numpy as np, xarray as xr
from scalai_nb.data.lake.lake import Lake
lake, start = Lake(sys.argv[1]), int(sys.argv[2])
for k in range(start, start + 1_000_000):
    rows = xr.Dataset({"id": ("row", np.array([k]))})
    lake.upsert("sales", rows, key="id") if k % 5 == 4 else lake.append("sales", rows)
    print(k, flush=True)
"""


class Writer(threading.Thread):
    "A process that writes and says what it has written, begun again whenever it has died"

    def __init__(self, lake: str, number: int, until: float) -> None:
        super().__init__()
        self.lake, self.number, self.until = lake, number, until
        self.said: list[int] = []
        self.lives = self.killed = 0

    def run(self) -> None:
        chance = random.Random(self.number)
        while time.monotonic() < self.until:
            start = self.number * 10**9 + self.lives * 10**6
            self.lives += 1
            words = [sys.executable, "-c", WRITER, self.lake, str(start)]
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
                self.said.append(int(process.stdout.readline()))
                end = min(self.until, time.monotonic() + chance.uniform(1, 20))
                killer = threading.Timer(max(0, end - time.monotonic()), process.kill)
                killer.start()
                self.said += [int(line) for line in process.stdout]
            self.killed += process.returncode == -9


@pytest.fixture(params=["folder", "bucket"])
def lake(request, tmp_path, monkeypatch):
    if request.param == "folder":
        yield Lake(tmp_path / "lake")
        return
    pytest.importorskip("obstore")
    with s3_server(tool("moto")) as port:
        for name, value in variables(port).items():
            monkeypatch.setenv(name, value)
        yield Lake("s3://lake/writers")


@pytest.mark.parametrize(
    "seconds", [6, pytest.param(LONG, marks=[pytest.mark.campaign, pytest.mark.timeout(1200)])]
)
def test_what_four_writers_were_told_is_there(lake, seconds):
    lake.write("sales", xr.Dataset({"id": ("row", np.array([-1]))}))
    until = time.monotonic() + seconds
    writers = [Writer(str(lake.path), number, until) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    while time.monotonic() < until:
        time.sleep(seconds / 4)
        lake.compact("sales")
    for writer in writers:
        writer.join()
    said = [k for writer in writers for k in writer.said]
    ids = lake.read("sales").id.values.tolist()
    print(f"{len(said)} commits of {sum(w.lives for w in writers)} lives in {seconds} s")
    assert min(len(writer.said) for writer in writers) > 0
    assert {w.killed == w.lives for w in writers} == {True}
    assert not {*said} - {*ids}, "said to be there"
    assert len(ids) == len({*ids})
    assert len(ids) - 1 - len(said) <= sum(w.lives for w in writers), "a death leaves one at most"
    assert not [found for found in lake.verify("sales") if found.bad]
