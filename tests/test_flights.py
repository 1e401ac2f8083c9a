"""The reference pipeline on its real data, as `make demo` runs it, and what must hold of it."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from outputs import refresh, steps
from toy import statuses

import scalai_nb as sn
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.sources import to_frame, type_of
from scalai_nb.environment import environment
from scalai_nb.errors import WorkFailed
from scalai_nb.models.registry import gate
from scalai_nb.models.registry.registry import Registry
from scalai_nb.models.registry.release import release

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


def test_the_steps_show_what_they_showed(demo):
    differ = [
        line
        for path, ran in steps("flights", demo.folder).items()
        for line in refresh(path, ran, check=True)
    ]
    assert not differ


def test_three_kinds_of_models_were_compared_and_the_package_says_so(demo):
    card = json.loads((demo.folder / ".scalai/models/late-flight/1/card.json").read_text())
    assert set(card["compared"]) == {"linear", "boosted", "network"} and all(
        x["roc_auc"] > 0.68 for x in card["compared"].values()
    )
    assert card["compared"][card["candidate"]]["roc_auc"] == max(
        x["roc_auc"] for x in card["compared"].values()
    )
    assert card["split"].startswith("By the folds in 'fold'") and card["calibration"] == "isotonic"


def test_the_gate_judges_a_worse_model_and_rollback_restores_the_champion_in_one_call(
    demo, lake, tmp_path
):
    "In a copy, as a new version of the model would make the demo's steps stale"
    for name in ("models", "tracking.db"):
        (shutil.copytree if name == "models" else shutil.copy)(
            demo.folder / ".scalai" / name, tmp_path / name
        )
    env = replace(
        environment(settings=demo.folder / "settings.ini"),
        models=str(tmp_path / "models"),
        tracking=f"sqlite:///{tmp_path}/tracking.db",
    )
    registry, april = Registry(env), lake.read("features")
    april = april.isel(row=april.month.values == 4).load()
    champion = registry.load("late-flight")
    blind = sn.Transform(numeric=["seats"]).fit(april)  # which says next to nothing
    worse = sn.package(
        blind,
        sn.LogisticRegression().fit(blind.transform(april).values, april.late.values),
        sn.Contract.of(april),
        name="late-flight",
        card={"threshold": champion.card["threshold"]},
    )
    version = registry.register(worse, "late-flight").version
    verdict = gate.judge(
        worse,
        april,
        "late",
        {"auc": ">= 0.5"},
        champion=champion,
        by=["origin"],
        limits=sn.Limits(groups="date"),
    )
    assert "roc_auc of all rows" in [c.name for c in verdict.checks if not c.met and c.decides]
    with pytest.raises(WorkFailed, match="is not promoted"):
        release(registry, "late-flight", version, verdict)
    release(registry, "late-flight", version, verdict, override="a test of the way back")
    assert registry.get("late-flight").version == version
    assert (
        registry.rollback("late-flight").version == 1
        and registry.load("late-flight").card["candidate"] == champion.card["candidate"]
    )
    assert (
        np.abs(
            registry.load("late-flight").predict(april).values - champion.predict(april).values
        ).max()
        == 0
    )


def test_the_network_becomes_a_third_of_its_size_and_no_slice_loses_more_than_is_allowed(lake):
    flights = lake.read("features")
    known, april = (
        flights.isel(row=np.flatnonzero(np.isin(flights.month.values, m))).load()
        for m in ([1, 2, 3], [4])
    )
    names = [n for n in known.data_vars if known[n].attrs.get("long_name") and n != "late"]
    categories = [n for n in names if type_of(known[n]) == "category"]
    t = sn.Transform(numeric=[n for n in names if n not in categories], categorical=categories).fit(
        known
    )
    net = sn.Network(hidden=(32, 16), epochs=4).fit(known, "late", transform=t)
    slimmed = sn.slim(
        sn.package(t, net, name="late-flight"),
        april,
        "late",
        {"auc": ">= 0.68"},
        by=["origin", "carrier"],
        tolerance=0.01,
    )
    assert slimmed.proposed and len(slimmed.best.graph) * 3 <= slimmed.full.size, slimmed.proposal
    assert slimmed.table.loc[slimmed.proposed.method, "its loss"] <= 0.01


def test_the_run_is_in_the_tracker_with_its_steps_below_it(demo):
    code = (
        "from mlflow import MlflowClient; c = MlflowClient('sqlite:///.scalai/tracking.db');"
        "print(*sorted(r.info.run_name for r in c.search_runs([e.experiment_id for e in "
        "c.search_experiments()])), sep='\\n')"
    )
    demo("scalai runs send")
    names = demo(f'python -W ignore -c "{code}"').stdout.split()
    assert set(STEPS) <= set(names) and any(n.startswith("flights-") for n in names)


def test_the_demo_ends_by_naming_what_to_look_at(demo):
    assert "model    late-flight version 1 is the champion: auc 0.7" in demo.first
    assert "report.html" in demo.first and "scalai dash" in demo.first


def test_later_months_are_as_good_as_is_fair_and_drift_is_told_from_decay(lake):
    months = to_frame(lake.read("replay"))
    assert months.auc.between(0.66, 0.78).all()
    assert (months.drift_max > 0.2).all() and months.drifted.str.contains(
        "temp"
    ).sum() >= 5  # the temperature drifts
    assert (
        months[~months.retrain].drift_max.gt(0.2).any()
    )  # and drift alone is no reason to train again


def test_no_column_leaks_the_label(lake):
    assert not {"dep_time", "dep_delay", "arr_time", "air_time", "arr_delay"} & set(
        lake.read("features").variables
    )


def test_the_report_needs_nothing_from_outside(demo):
    page = min(demo.folder.glob(".scalai/runs/flights-*/report.html")).read_text()  # the first
    assert (
        page.count('<section id="') == 8
        and "<script" not in page
        and "<link" not in page
        and page.count("<img") + page.count("<svg") > 10
    )


def test_a_second_run_takes_every_step_from_the_cache_in_seconds(demo):
    start = time.monotonic()
    done = demo("make demo")
    assert (
        done.returncode == 0
        and done.stdout.count("= cached") >= 8
        and time.monotonic() - start < 30
    )


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
            "evaluate": ["code"],
            "release": ["after evaluate"],
            "replay": ["after release"],
        }
    finally:
        path.write_text(text)


def test_a_step_runs_alone_under_plain_papermill(demo, lake):
    done = demo(
        "cp -r .scalai/lake other && SCALAI_LAKE=other papermill --engine scalai "
        "nbs/pipelines/flights/03_features.ipynb out.ipynb -p late_minutes 60"
    )
    assert done.returncode == 0, done.stderr
    later, former = (
        Lake(demo.folder / "other").read("features").late.values,
        lake.read("features").late.values,
    )
    assert len(later) == len(former) and 0 < later.mean() < former.mean()


def test_the_year_is_watched(demo):
    "Its first six weeks: a goal is broken, a training is asked for, judged and promoted"
    done = demo("scalai run flights_watched -p year.until=2013-05-11")
    assert done.returncode == 0, done.stdout + done.stderr
    lake = Lake(demo.folder / ".scalai/lake")
    made = lake.read("watched_decisions").load()
    assert made.action.values.tolist() == ["train", "challenge", "promote"]
    planted = lake.read("watched_planted").load()
    assert (planted.windows.values[:-1] <= 3).all() and planted.windows.values[-1] == 0


@pytest.mark.campaign
def test_the_whole_year_is_watched(demo):
    done = demo("scalai run flights_watched")
    assert done.returncode == 0, done.stdout + done.stderr
    account = to_frame(Lake(demo.folder / ".scalai/lake").read("watched_account"))
    summer = account[account.month >= "2013-06"]
    assert (summer.pr_auc > summer.pr_auc_alone).sum() >= 4
    assert "refuse" in " ".join(account.decisions)
