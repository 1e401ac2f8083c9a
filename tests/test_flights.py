"""The reference pipeline on its real data, as `make demo` runs it, and what must hold of it."""

import json
import time

import pytest
from toy import statuses

from scalai_nb.data.lake import Lake
from scalai_nb.data.sources import to_frame
from scalai_nb.environment import environment
from scalai_nb.models.registry import Registry

STEPS = ["use_case", "ingest", "quality", "features", "train", "evaluate", "release", "replay"]
pytestmark = pytest.mark.slow


@pytest.fixture
def lake(demo):
    return Lake(demo.folder / ".scalai/lake")


def executed(run: dict) -> list[str]:
    return [name for name, (status, _) in statuses(run).items() if status == "completed"]


def run(demo) -> dict:
    done = demo("scalai run flights --json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_step_completes_and_the_model_is_promoted(demo, lake):
    id = next(line.split()[0] for line in demo.first.splitlines() if "worker-seconds" in line)
    assert executed(json.loads(demo(f"scalai show {id} --json").stdout)) == STEPS
    rows = {name: lake.version(name).rows for name in ("flights", "weather", "planes", "airports")}
    assert rows == {"flights": 336_776, "weather": 26_115, "planes": 3_322, "airports": 1_458}
    champion = Registry(environment(settings=demo.folder / "settings.ini")).get("late-flight")
    assert 0.70 < champion.metrics["auc"] < 0.76  # a higher one means a leak


def test_the_demo_ends_by_naming_what_to_look_at(demo):
    assert "model    late-flight version 1 is the champion: auc 0.7" in demo.first
    assert "report.html" in demo.first and "scalai dash" in demo.first


def test_later_months_are_as_good_as_is_fair_and_drift_is_told_from_decay(lake):
    months = to_frame(lake.read("replay"))
    assert months.auc.between(0.66, 0.78).all()
    assert (months.drift_max > 0.2).all() and months.drifted.str.contains("temp").sum() >= 5  # the temperature drifts
    assert months[~months.retrain].drift_max.gt(0.2).any()  # and drift alone is no reason to train again


def test_no_column_leaks_the_label(lake):
    assert not {"dep_time", "dep_delay", "arr_time", "air_time", "arr_delay"} & set(lake.read("features").variables)


def test_the_report_needs_nothing_from_outside(demo):
    page = next(demo.folder.glob(".scalai/runs/flights-*/report.html")).read_text()
    assert page.count('<section id="') == 8 and "<script" not in page and "<link" not in page and page.count("<img") + page.count("<svg") > 10


def test_a_second_run_takes_every_step_from_the_cache_in_seconds(demo):
    start = time.monotonic()
    done = demo("make demo")
    assert done.returncode == 0 and done.stdout.count("= cached") >= 8 and time.monotonic() - start < 30


def test_prose_changes_nothing_and_one_character_of_code_one_step_and_what_depends_on_it(demo):
    path = demo.folder / "nbs/pipelines/flights/05_evaluate.ipynb"
    text = path.read_text()
    try:
        path.write_text(text.replace("# Evaluate", "# Judge", 1))
        assert text != path.read_text() and executed(run(demo)) == []
        path.write_text(text.replace('fmt=\\"o\\"', 'fmt=\\"s\\"', 1))
        assert text != path.read_text()
        planned = json.loads(demo("scalai plan flights --json").stdout)["steps"]
        assert {s["name"]: s["reasons"] for s in planned if s["status"] == "stale"} == {
            "evaluate": ["code"], "release": ["after evaluate"], "replay": ["after release"]}
    finally: path.write_text(text)


def test_a_step_runs_alone_under_plain_papermill(demo, lake):
    done = demo("cp -r .scalai/lake other && SCALAI_LAKE=other papermill --engine scalai nbs/pipelines/flights/03_features.ipynb out.ipynb -p late_minutes 60")
    assert done.returncode == 0, done.stderr
    later, former = Lake(demo.folder / "other").read("features").late.values, lake.read("features").late.values
    assert len(later) == len(former) and 0 < later.mean() < former.mean()
