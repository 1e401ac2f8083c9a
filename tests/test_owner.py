"A dataset has one owner: who else would write it is told, and how it is handed over"

import json
import os
from dataclasses import asdict

import pytest
import xarray as xr
from toy import Project

from scalai_nb.cli import main
from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import environment
from scalai_nb.errors import GraphError
from scalai_nb.pipeline.io import Context, context, write
from scalai_nb.pipeline.pipeline import Pipeline, owners
from scalai_nb.pipeline.run import all_runs

NUMBERS = xr.Dataset({"x": ("row", [1.0, 2.0])})
WRITE = """import xarray as xr
from scalai_nb.pipeline import write
write(numbers, xr.Dataset({"x": ("row", [1.0, 2.0])}))"""
BY_NIGHTLY = {"state": {"owner": "nightly"}}


@pytest.fixture
def project(tmp_path, monkeypatch):
    "Two pipelines, nightly and reports, that write the dataset numbers"
    project = Project(tmp_path)
    for pipeline in ("nightly", "reports"):
        project.step("01_numbers", 'numbers: Out = "numbers"', WRITE, pipeline=pipeline)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return project


def validate(name, **options):
    env = environment("laptop")
    Pipeline.load(name, env).validate(env, **options)


def test_a_dataset_is_handed_over(project, capsys):
    "It belongs to the first that writes it until another takes it over, and then to that"
    assert project.said("run", "nightly").returncode == 0
    for words in (["plan"], ["run"], ["run", "--dry-run"]):
        with pytest.raises(SystemExit, match="2"):
            main([*words, "reports"])
        said = capsys.readouterr().err
        assert (
            "reports/01_numbers.ipynb" in said
            and "pipeline 'reports' would write 'numbers' of pipeline 'nightly'" in said
            and "scalai run reports --take-over" in said
        )
    lake = Lake(environment("laptop").lake)
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "reports", "--take-over"])
    assert len(lake.log("numbers")) == 1 and lake.state("numbers") == {"owner": "nightly"}
    assert project.said("run", "reports", "--take-over").returncode == 0
    assert lake.state("numbers") == {"owner": "reports"}
    validate("reports")
    with pytest.raises(GraphError, match="of pipeline 'reports'"):
        validate("nightly")


def test_who_owns_a_dataset(project):
    "By hand a dataset keeps its owner; what has none is anybody's; two checkouts share a name"
    lake = Lake(environment("laptop").lake)
    validate("reports")
    assert not lake.path.exists()
    lake.write("numbers", NUMBERS)  # as by ingest, a stream, or an earlier scalai-nb
    validate("reports")
    validate("nightly")
    lake.write("numbers", NUMBERS, **BY_NIGHTLY)
    write("numbers", NUMBERS * 2)
    lake.append("numbers", NUMBERS)
    validate("nightly")
    with pytest.raises(GraphError, match="'numbers' of pipeline 'nightly'"):
        validate("reports")
    validate("reports", take_over=True)


def test_all_that_others_own_is_named_at_once(project):
    project.step("02_more", 'goals: Out = "goals"', pipeline="reports")
    lake = Lake(environment("laptop").lake)
    lake.write("numbers", NUMBERS, **BY_NIGHTLY)
    lake.write("goals", NUMBERS, state={"owner": "weekly"})
    with pytest.raises(GraphError) as e:
        validate("reports")
    assert "'numbers' of pipeline 'nightly', 'goals' of pipeline 'weekly'; " in str(e.value)


def test_a_sweep_takes_nothing(project):
    "What a combination writes is not published, so nobody need hand it over"
    contract = 'numbers: Out = "numbers"\nk: int = 1'
    project.step("01_numbers", contract, WRITE, pipeline="reports")
    lake = Lake(environment("laptop").lake)
    lake.write("numbers", NUMBERS, **BY_NIGHTLY)
    done = project.said("run", "reports", "--sweep", "numbers.k=1,2", "--json")
    assert done.returncode == 0, done.stderr
    assert len(lake.log("numbers")) == 1
    branches = [f"{run.id}.numbers" for run in all_runs(environment("laptop"))]
    owned = [lake.state("numbers", ref) for ref in ["main", *branches]]
    assert owned == [{"owner": "nightly"}] * 3


@pytest.mark.parametrize("take_over", [False, True])
def test_what_another_wrote_since_the_plan(project, tmp_path, monkeypatch, take_over):
    "Two pipelines that were planned before either wrote: the second is told when it writes"
    lake = Lake(environment("laptop").lake)
    lake.write("numbers", NUMBERS, **BY_NIGHTLY)
    place = tmp_path / "context.json"
    ctx = Context(
        "reports-1",
        "numbers",
        outputs={"numbers": "dataset"},
        branch="reports-1.numbers",
        written=os.devnull,
        owner="reports",
        take_over=take_over,
    )
    place.write_text(json.dumps(asdict(ctx)))
    monkeypatch.setenv("SCALAI_STEP", str(place))
    context.cache_clear()
    try:
        if take_over:
            write("numbers", NUMBERS)
            assert lake.state("numbers@reports-1.numbers") == {"owner": "reports"}
        else:
            with pytest.raises(GraphError, match="write: pipeline 'reports' would write 'numbers'"):
                write("numbers", NUMBERS)
    finally:
        context.cache_clear()
    assert owners(environment("laptop"))("numbers") == "nightly"


def test_a_damaged_dataset_can_be_written_anew(project):
    "Nobody can say whose it is, so planning does not stand in the way"
    lake = Lake(environment("laptop").lake)
    lake.write("numbers", NUMBERS, **BY_NIGHTLY)
    for file in (lake.path / "numbers" / "snapshots").iterdir():
        file.write_bytes(b"")
    assert owners(environment("laptop"))("numbers") is None
    validate("reports")
