"What is added on a branch, by a step that goes on where the last run ended: all of it, or nothing"

import json

import numpy as np
import pytest
import xarray as xr
from toy import Project

import scalai_nb as sn
from scalai_nb.data.contract import Column
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.lake.staging import StagedLake
from scalai_nb.data.streams.embedded import Log, LogStream
from scalai_nb.data.streams.landing import Landing, land
from scalai_nb.errors import Conflict

CONTRACT = """picked: Out = "picked"
trees: Out = "trees"
file: str = "../../picked.csv"
fail: bool = False"""
ARRIVE = """import scalai_nb as sn
from scalai_nb.data.contract import Column
from scalai_nb.data.ingestion import ingest
from scalai_nb.pipeline import step_lake
kg = Column("kg", "float64", min=0, tolerance=0)
fresh = sn.Contract((Column("id", "int64"), kg))
ingest(step_lake(), file, picked, incremental="id", contract=fresh, on_breach="quarantine")
ingest(step_lake(), "../../trees.csv", trees, incremental="id")"""
NUMBERS = xr.Dataset({"x": ("row", np.arange(3))})


def test_a_step_brings_in_what_is_newer_or_nothing(tmp_path):
    "It fails after it has written; it has nothing new of one source; a quarantine comes along"
    project, lake = Project(tmp_path), Lake(tmp_path / ".scalai/lake")
    project.step("01_arrive", CONTRACT, ARRIVE, "assert not fail")
    (tmp_path / "trees.csv").write_text("id\n1\n")

    def run(*words, rows=()):
        with open(tmp_path / "picked.csv", "a") as file:
            file.writelines(f"{id},{kg}\n" for id, kg in rows)
        return project.said("run", "toy", "--force", *words).returncode

    assert run(rows=[("id", "kg"), (1, 2.5), (2, -1.0)]) == 0
    assert lake.state("picked") == {"ingested": {"id": "2"}, "owner": "toy"}
    before = lake.version("picked")
    assert run("-p", "arrive.fail=true", rows=[(3, 1.5), (4, -2.0)]) == 1
    assert lake.version("picked") == before and lake.version("picked.quarantine").rows == 1
    assert run() == 0
    assert lake.read("picked").id.values.tolist() == [1, 3]
    assert lake.read("picked.quarantine").id.values.tolist() == [2, 4]
    assert len(lake.log("picked")) == 2 and len(lake.log("trees")) == 1


def test_a_stream_hears_of_no_branch(tmp_path):
    "A broker that drops what is acknowledged must not be told of what may be dropped here"
    told = []
    columns = Column("at", "datetime64[ns]"), Column("n", "int64", max=5, tolerance=0)
    how = Landing(contract=sn.Contract(columns), on_breach="quarantine")
    with Log(tmp_path / "log") as log:
        log.append([json.dumps({"at": "2026-01-01", "n": n}).encode() for n in (1, 9)])
    lake, staged = Lake(tmp_path / "lake"), StagedLake(tmp_path / "lake", "monday")

    def bring(lake):
        stream = LogStream(tmp_path / "log")
        stream.acknowledge = told.append
        try:
            return land(stream, lake, "numbers", how, idle=0.05)
        finally:
            stream.close()

    first, again = bring(staged), bring(staged)
    assert (first.rows, first.aside, again.rows) == (1, 1, 0) and not told
    assert lake.names() == [] and staged.names() == ["numbers", "numbers.quarantine"]
    assert staged.read("numbers").at.dtype.kind == "M"
    lake.publish_all(staged.names(), "monday")
    assert lake.read("numbers").n.values.tolist() == [1]
    assert lake.read("numbers.quarantine").n.values.tolist() == [9]
    with Log(tmp_path / "log") as log:
        log.append([json.dumps({"at": "2026-01-02", "n": 2}).encode()])
    assert bring(lake).rows == 1 and told == [{"0": 3}]


def test_what_is_looked_at_stays_and_who_came_between_is_a_conflict(tmp_path):
    lake, staged = Lake(tmp_path / "lake"), StagedLake(tmp_path / "lake", "monday")
    lake.write("numbers", NUMBERS)
    assert staged.version("numbers").rows == 3
    lake.append("numbers", NUMBERS)
    assert staged.read("numbers").sizes["row"] == 3
    staged.append("numbers", NUMBERS)
    with pytest.raises(Conflict, match="main of 'numbers' moved"):
        lake.publish_all(["numbers"], "monday")
    lake.drop("numbers", "monday")
    assert staged.version("numbers").rows == 6
