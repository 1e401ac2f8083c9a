"""A disk that is read-only or fills up, two runs that write one dataset, a clock that goes back"""

import json
import shutil
import subprocess
import sys

import pytest
from toy import Project

from scalai_nb.data.lake.lake import Lake

DISK = 12  # MB of `small_disk`
OUT = "from pathlib import Path\nfrom scalai_nb.pipeline import In, Out\n"
WRITE = (
    "import numpy as np, xarray as xr\n"
    "from scalai_nb.pipeline import write\n"
    "write({0}, xr.Dataset({{'x': ('row', np.arange({1}))}}))"
)
FILL = (  # what fills the disk of the lake, as another program would
    "try:\n"
    "    with open(Path(LAKE).with_name('filler'), 'ab', buffering=0) as file:\n"
    "        while True:\n"
    "            file.write(bytes(512))\n"
    "except OSError:\n"
    "    pass"
)


@pytest.fixture
def on_disk(small_disk):
    "A project on a disk of its own, with a step that is done"
    project = Project(small_disk)
    project.step("00_a", OUT + 'a: Out = "a"', WRITE.format("a", 3))
    assert project.said("run", "toy").returncode == 0
    project.scalai("runs", "send")
    return project


def test_a_read_only_disk_can_be_looked_at(on_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(on_disk.root)], check=True)
    for words in (["plan", "toy"], ["show"], ["show", "latest", "a"], ["runs"], ["lake", "ls"]):
        done = on_disk.said(*words)
        assert done.returncode == 0, (words, done.stderr)
    for words in (
        ["run", "toy"],
        ["report"],
        ["lake", "expire", "--yes"],
        ["lake", "tag", "a", "first"],
        ["lake", "restore", "a", "main"],
    ):
        done = on_disk.scalai(*words)
        assert "Traceback" not in done.stderr, (words, done.stderr)
        assert done.returncode == 0 or "error:" in done.stderr, (words, done)


def test_a_disk_that_fills_between_two_publications(project_with_lake):
    project, lake, filler = project_with_lake
    done = project.said("run", "toy")
    assert done.returncode == 1, done.stdout
    steps = {s["name"]: s for s in project.show()["steps"]}
    assert (steps["a"]["status"], steps["b"]["cause"]) == ("completed", "disk_full"), steps
    assert Lake(lake).read("a").x.size == 3 and "b" not in Lake(lake).names()
    assert "Traceback" not in done.stdout + done.stderr
    filler.unlink()
    project.step("01_b", OUT + 'a: In = "a"\nb: Out = "b"', WRITE.format("b", 5))
    again = project.said("run", "toy")
    assert again.returncode == 0 and Lake(lake).read("b").x.size == 5, again.stdout
    assert project.said("lake", "verify").returncode == 0


@pytest.fixture
def project_with_lake(tmp_path, small_disk):
    "A project whose second step fills the disk of the lake when it has written its output"
    lake = small_disk / "lake"
    project = Project(tmp_path, f"cluster = none\ntrackers = none\nlake = {lake}\n")
    project.step("00_a", OUT + 'a: Out = "a"', WRITE.format("a", 3))
    fill = FILL.replace("LAKE", repr(str(lake)))
    project.step("01_b", OUT + 'a: In = "a"\nb: Out = "b"', WRITE.format("b", 4), fill)
    return project, lake, small_disk / "filler"


def test_two_pipelines_that_write_one_dataset_at_once(tmp_path):
    project = Project(tmp_path)
    for name, rows in (("one", 3), ("other", 5)):
        wait = "import time; time.sleep(1)"
        project.step("00_a", OUT + 'a: Out = "a"', wait, WRITE.format("a", rows), pipeline=name)
    runs = [project.start("run", name) for name in ("one", "other")]
    ended = [(run.communicate(timeout=120), run.returncode) for run in runs]
    assert 0 in [status for _, status in ended], ended
    for (out, err), status in ended:
        assert "Traceback" not in out + err
        assert status == 0 or "conflict" in out or "--take-over" in out, out
    assert Lake(tmp_path / ".scalai/lake").read("a").x.size in (3, 5)
    assert project.said("lake", "verify").returncode == 0


def test_a_run_of_a_day_when_the_clock_was_wrong_is_not_the_latest_for_ever(tmp_path):
    project = Project(tmp_path)
    project.step("00_a", "n: int = 1", "n")
    assert project.said("run", "toy").returncode == 0
    first = tmp_path / ".scalai/runs" / project.show()["id"]
    ahead = first.with_name("toy-20991231-235959")
    shutil.copytree(first, ahead)
    events = map(json.loads, (ahead / "events.jsonl").read_text().splitlines())
    later = [json.dumps({**event, "t": event["t"] + 2e9}) for event in events]
    (ahead / "events.jsonl").write_text("\n".join(later) + "\n")
    assert project.said("run", "toy").returncode == 0
    assert project.show()["id"] not in (first.name, ahead.name)


CLOCK = """
import itertools, sys, time
real, steps = time.time, itertools.count()
time.time = lambda: real() - 50 * next(steps)
from scalai_nb.cli import main
main(sys.argv[1:])
"""


def test_a_clock_that_goes_back_during_a_run(tmp_path):
    project = Project(tmp_path)
    project.step("00_a", "n: int = 1", "n", "n + 1")
    words = [sys.executable, "-c", CLOCK, "run", "toy", "--plain"]
    done = subprocess.run(words, cwd=tmp_path, env=project.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = project.show()
    assert run["finished"] >= run["started"] and all(s["seconds"] >= 0 for s in run["steps"])
