"Two checkouts that share a lake run what they have in common once; `test_observed` has what counts"

import json
import shutil
from dataclasses import replace
from threading import Thread

import pytest
from toy import Project, statuses

from scalai_nb.environment import environment
from scalai_nb.pipeline.pipeline import Pipeline
from scalai_nb.pipeline.reading.observed import MEANWHILE, Observed
from scalai_nb.pipeline.staleness import Cache, Entry, key
from scalai_nb.pipeline.step import Step

IO = "from scalai_nb.pipeline import In, Out, read, write\n"


def checkout(folder) -> Project:
    "A project whose lake is beside its folder"
    folder.mkdir()
    p = Project(folder, "cluster = none\ntrackers = none\nlake = ../lake\n")
    made = (
        "import xarray as xr\nfrom helper import rows\nwrite(a, xr.Dataset({'x': ('row', rows)}))"
    )
    p.step("00_make", f'{IO}a: Out = "a"', made)
    doubled = "write(b, read(a) * 2, metrics={'mass': 7.0})"
    p.step("01_double", f'{IO}a: In = "a"\nb: Out = "b"', doubled)
    p.step("02_check", f'{IO}b: In = "b"', "assert read(b).sizes['row']")
    (folder / "pipelines/toy/helper.py").write_text("rows = [1.0, 2.0, 3.0]\n")
    return p


def run(project: Project) -> dict:
    done = project.said("run", "toy", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_one_checkout_has_run_the_other_does_not(tmp_path):
    ada, bo = checkout(tmp_path / "ada"), checkout(tmp_path / "bo")
    first = run(ada)
    planned = bo.said("plan", "toy", COLUMNS="200").stdout
    assert f"made by {first['id']} in {ada.root}" in planned, planned
    second = run(bo)
    assert {status for status, _ in statuses(second).values()} == {"cached"}
    double = second["steps"][1]
    assert double["written"] == first["steps"][1]["written"]
    assert double["metrics"] == {"mass": 7.0} and double["made"].startswith(first["id"])
    assert bo.said("show", "latest", "double").returncode == 0
    report = bo.root / ".scalai/runs" / second["id"] / "report.html"
    assert f"made by {first['id']}" in report.read_text()
    (bo.root / "pipelines/toy/helper.py").write_text("rows = [1.0, 2.0]\n")
    changed = run(bo)
    assert {status for status, _ in statuses(changed).values()} == {"completed"}
    assert "output a was changed since" in ada.said("plan", "toy", COLUMNS="200").stdout
    shutil.copy(bo.root / "pipelines/toy/helper.py", ada.root / "pipelines/toy/helper.py")
    ada.step("02_check", f'{IO}b: In = "b"', "assert read(b).sizes['row'] == 2")
    third = {name: status for name, (status, _) in statuses(run(ada)).items()}
    assert third == {"make": "cached", "double": "cached", "check": "completed"}


@pytest.fixture
def step(tmp_path):
    "A step, its cache in two checkouts that share a lake, and its good run in the first"
    p = checkout(tmp_path / "ada")
    here = environment("laptop", settings=p.root / "settings.ini")
    pipeline = Pipeline.load("toy", here)
    ours, theirs = Cache(here, pipeline), Cache(replace(here, runs=str(tmp_path / "bo")), pipeline)
    made = pipeline["make"]
    entry = Entry(key(made, {}), {"a": ["dataset", "v1"]}, run="r1")
    return made, ours, theirs, entry


def test_an_entry_that_is_damaged_is_none(step):
    made, ours, theirs, entry = step
    ours.share(made, entry)
    (file,) = (ours.env.root.parent / "lake/.cache/toy").iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:-9], whole.replace(b"v1", b"v2"), b"\xff\xfe", b"{}", b" {}"):
        file.write_bytes(damaged)
        assert theirs.shared(made, entry.key) is None
    file.write_bytes(whole)
    assert theirs.shared(made, entry.key).outputs == entry.outputs
    file.unlink()
    file.mkdir()
    assert theirs.shared(made, entry.key) is None
    ours.share(made, entry)  # which cannot be written, and is no error


def test_what_may_depend_on_what_was_not_seen_is_not_shared(step):
    made, ours, theirs, entry = step
    for seen in (Observed(unseen=["what a server answers"]), Observed({"x.csv": MEANWHILE})):
        ours.share(made, replace(entry, observed=seen))
        assert theirs.shared(made, entry.key) is None


def test_the_numbers_of_models_are_those_of_one_registry(step):
    _, ours, theirs, entry = step
    p = Project(ours.env.root)
    declared = f"from scalai_nb.pipeline import Model\n{IO}m: Out[Model] = 'm'"
    learned = Step.load(p.step("03_learn", declared, "write(m, 1)"))
    ours.share(learned, entry)
    assert theirs.shared(learned, entry.key)
    theirs.env = replace(theirs.env, tracking="sqlite:////elsewhere/tracking.db")
    assert theirs.shared(learned, entry.key) is None


def test_an_entry_is_replaced_as_a_whole(step):
    made, ours, theirs, entry = step
    ours.share(made, entry)

    def share(cache: Cache) -> None:
        for n in range(50):
            cache.share(made, replace(entry, seconds=float(n)))

    writers = [Thread(target=share, args=[cache]) for cache in (ours, theirs)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert theirs.shared(made, entry.key)
    (folder,) = (ours.env.root.parent / "lake/.cache").iterdir()
    assert [f.name for f in folder.iterdir()] == ["make.json"]
