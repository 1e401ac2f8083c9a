"""What a served model was worth, as labels come: each counts once, and nothing odd is lost"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT
from toy import Project

from scalai_nb.commands.observing.measured import Beside, measuring, plain_quality
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import Conflict, ParameterError
from scalai_nb.evaluation.binary import evaluate_binary
from scalai_nb.evaluation.multiclass import evaluate_classes
from scalai_nb.evaluation.residuals import evaluate_regression
from scalai_nb.monitoring import label_windows
from scalai_nb.monitoring.estimate import estimates
from scalai_nb.monitoring.label_windows import QualityWatch, freshness, unknown_ids
from scalai_nb.monitoring.quality import goal_signals, merged, qualities

HOUR = np.timedelta64(3600, "s")
START = np.datetime64("2026-01-01", "us")
CLASSES = ["a", "b", "c"]


def asked(hour, rows=100, version="1", output="probability", seed=None, score=None) -> xr.Dataset:
    "An hour of predictions, as the log has them"
    rng = np.random.default_rng(hour if seed is None else seed)
    at = START + hour * HOUR + np.arange(rows) * (HOUR // rows)
    columns = {
        "id": np.array([f"{version}-{hour}-{i}" for i in range(rows)], object),
        "time": at.astype("M8[us]"),
        "version": np.array([version] * rows, object),
        "score": rng.beta(2, 3, rows).astype(np.float32) if score is None else score,
        "latency_ms": rng.gamma(2, 2, rows).astype(np.float32),
        "share": np.full(rows, 0.5, np.float32),
    }
    record = {"name": "late", "output": output, "threshold": 0.4}
    if output == "probabilities":
        shares = rng.dirichlet([1, 1, 1], rows).astype(np.float32)
        columns |= {f"score_{c}": shares[:, i] for i, c in enumerate(CLASSES)}
        record["classes"] = CLASSES
    return xr.Dataset({n: ("row", v) for n, v in columns.items()}, attrs=record)


def told(ids, truth, at) -> xr.Dataset:
    "Feedback, as the log has it"
    named = isinstance(truth[0], str)
    columns = {
        "id": np.array(ids, object),
        "truth": np.full(len(ids), np.nan) if named else np.array(truth, float),
        "truth_class": np.array(truth if named else [None] * len(ids), object),
        "received": np.broadcast_to(np.array(at, "M8[us]"), len(ids)).copy(),
    }
    return xr.Dataset({n: ("row", v) for n, v in columns.items()})


def truths(ds, seed=0) -> list:
    "What came true of predictions"
    rng = np.random.default_rng(seed)
    if ds.attrs["output"] == "probabilities":
        return rng.choice(CLASSES, ds.sizes["row"]).tolist()
    if ds.attrs["output"] == "value":
        return rng.normal(ds.score.values, 1).tolist()
    return (rng.random(ds.sizes["row"]) < ds.score.values).astype(float).tolist()


def all_labels(ds, later=2 * HOUR) -> xr.Dataset:
    return told(ds.id.values, truths(ds), ds.time.values + later)


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake", author="ada")


def put(lake, *predictions, feedback=()):
    for name, parts in (("late-predictions", predictions), ("late-feedback", feedback)):
        for part in parts:
            new = name not in lake.names()
            (lake.write if new else lake.append)(name, part)


def look(lake, **options) -> list:
    return QualityWatch(lake, "late", every=3600, **options).look()


def test_each_version_of_a_window_flags_at_its_own_threshold(lake):
    put(lake, asked(0), asked(0, version="2"), asked(1))
    lake.append("late-predictions", asked(2), state={"thresholds": {"2": 0.7}})
    look(lake)
    kept = {w.version: w.threshold for w in qualities(lake, "late") if w.start == START}
    assert kept == {"1": 0.4, "2": 0.7}


def test_what_a_thousand_predictions_cost_is_the_time_of_their_requests_at_the_price(lake):
    hours = [asked(0), asked(1)]
    together = hours[0].isel(row=[0] * 50).assign(id=hours[0].id[:50])  # a request of fifty rows
    put(lake, xr.concat([together, *hours], "row").assign(id=("row", [*map(str, range(250))])))
    (w,) = look(lake, price=2.0)
    ms = float(hours[0].latency_ms.sum())  # the fifty rows took as long as their one request
    assert w.served.cost_per_1000 == pytest.approx(2 * ms / 3.6e6 / 150 * 1000)
    assert plain_quality(w)["cost_per_1000"] == w.served.cost_per_1000
    limit = w.served.cost_per_1000
    dear, cheap = ({"cost_per_1000": f"<= {x * limit}"} for x in (0.9, 1.1))
    assert goal_signals(lake, "late", dear)[0].alarm
    assert not goal_signals(lake, "late", cheap)[0].alarm


def test_windows_of_an_earlier_scalai_have_no_cost_and_later_ones_do(lake):
    put(lake, asked(0), asked(1))
    look(lake)
    state = lake.state("late.quality")
    lake.evolve("late.quality", drop=["served_cost_per_1000"], breaking=True)
    assert np.isnan(qualities(lake, "late")[0].served.cost_per_1000)
    put(lake, asked(2))
    assert lake.state("late.quality") == state
    look(lake, price=1.0)
    first, second = (w.served.cost_per_1000 for w in qualities(lake, "late"))
    assert np.isnan(first) and second > 0


# --- each label once ------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["probability", "probabilities", "value"])
def test_in_whatever_pieces_labels_come_the_windows_are_those_of_all_at_once(lake, output):
    hours = [asked(h, output=output) for h in range(4)]
    put(lake, xr.concat(hours[:3], "row", coords="minimal"))
    assert [w.rows for w in look(lake)] == [100, 100]
    every = xr.concat([all_labels(h) for h in hours[:3]], "row")
    for rows in np.array_split(np.random.default_rng(0).permutation(300), 2):
        put(lake, feedback=[every.isel(row=rows)])
        look(lake)
    put(lake, hours[3])
    look(lake)
    kept = qualities(lake, "late")
    assert [w.labels.labels for w in kept] == [100, 100, 100]
    assert [w.text for w in kept] == [w.text for w in look(lake, restart=True)]
    label = sum((truths(h) for h in hours[:3]), [])
    score = np.concatenate([h.score.values for h in hours[:3]])
    e = merged(kept)
    if output == "probability":
        assert e.roc_auc == pytest.approx(evaluate_binary(np.array(label), score).roc_auc)
        assert kept[0].figures()["recall"][0] == kept[0].evaluation.at(0.4).recall
    elif output == "value":
        assert e.rmse == pytest.approx(evaluate_regression(np.array(label), score).rmse)
    else:
        shares = np.concatenate(
            [np.stack([h[f"score_{c}"] for c in CLASSES], 1) for h in hours[:3]]
        )
        number = np.array([CLASSES.index(x) for x in label])
        assert e.accuracy == evaluate_classes(number, shares).accuracy
        assert set(kept[0].figures()) == {"accuracy", "log_loss", "brier"}


def test_only_the_windows_concerned_are_measured_and_no_feedback_is_read_twice(lake, monkeypatch):
    hours = [asked(h) for h in range(10)]
    put(lake, xr.concat(hours, "row"), feedback=[xr.concat(map(all_labels, hours[:8]), "row")])
    look(lake)
    measured, read = [], []
    was, latest = label_windows.measure, label_windows.latest_truths
    monkeypatch.setattr(label_windows, "measure", lambda *a: measured.append(a[2].start) or was(*a))
    monkeypatch.setattr(
        label_windows, "latest_truths", lambda ds: read.append(ds.sizes["row"]) or latest(ds)
    )
    put(lake, feedback=[all_labels(hours[8])])
    (w,) = look(lake)
    assert measured == [w.start] == [START + 8 * HOUR] and read == [100]
    assert look(lake) == [] and len(measured) == 1


def test_two_watchers_do_not_both_keep(lake, monkeypatch):
    put(lake, asked(0), asked(1))
    slow = QualityWatch(lake, "late", every=3600)
    measured = slow._measured

    def meanwhile(*given):
        if not qualities(lake, "late"):
            look(lake)
        return measured(*given)

    monkeypatch.setattr(slow, "_measured", meanwhile)
    with pytest.raises(Conflict, match="Another watcher of 'late'"):
        slow.look()
    assert len(qualities(lake, "late")) == 1


def test_a_log_that_was_written_anew_is_watched_anew(lake):
    put(lake, asked(0), asked(1))
    look(lake)
    lake.write("late-predictions", asked(0))
    with pytest.raises(ParameterError, match="was written anew"):
        look(lake)
    put(lake, asked(5))
    assert [w.start for w in look(lake, restart=True)] == [START]
    with pytest.raises(ParameterError, match="--restart"):
        QualityWatch(lake, "late", every=60).look()


class Killed(BaseException):
    "What a kill is to a look: nothing after it runs"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_look_that_dies_at_its_first_commit_loses_no_label(lake, monkeypatch, when):
    hours = [asked(h, rows=20) for h in range(4)]
    put(lake, xr.concat(hours[:2], "row"), feedback=[all_labels(hours[0])])
    look(lake)
    put(lake, xr.concat(hours[2:], "row"), feedback=[all_labels(hours[1]), all_labels(hours[2])])
    commit = Lake._commit_through

    def dying(*given, **more):
        if when == "before":
            raise Killed
        commit(*given, **more)
        raise Killed

    monkeypatch.setattr(Lake, "_commit_through", dying)
    with pytest.raises(Killed):
        look(lake)
    monkeypatch.setattr(Lake, "_commit_through", commit)
    look(lake)
    kept = qualities(lake, "late")
    assert [(w.start, w.labels.labels) for w in kept] == [(START + h * HOUR, 20) for h in range(3)]


LOOK = """
import sys
from scalai_nb.data.lake.lake import Lake
from scalai_nb.monitoring.label_windows import QualityWatch
lake = Lake(sys.argv[1])
QualityWatch(lake, "late", every=3600).look()
print("ready", flush=True)
while True:
    QualityWatch(lake, "late", every=3600).look()
"""


@pytest.mark.campaign
@pytest.mark.parametrize("kills", [50])
def test_a_watcher_that_is_killed_counts_each_label_once(lake, kills):
    chance, when = random.Random(kills), 2
    put(lake, asked(0), asked(1), feedback=[all_labels(asked(0))])
    look(lake)
    for _ in range(kills):
        words = [sys.executable, "-c", LOOK, str(lake.path)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout.readline() == "ready\n"
            until = time.monotonic() + chance.uniform(0.02, 1.5)
            while time.monotonic() < until:
                put(lake, asked(when), feedback=[all_labels(asked(when - 1))])
                when += 1
            os.kill(process.pid, signal.SIGKILL)
    look(lake)
    kept = qualities(lake, "late")
    assert [w.start for w in kept] == [START + k * HOUR for k in range(when - 1)]
    assert {w.labels.labels for w in kept} == {100} and merged(kept).count == 100 * (when - 1)
    assert lake.state("late.quality")["feedback"] == 100 * (when - 1)


# --- what is odd is said, and counted ------------------------------------------------------------


def test_no_labels_ever(lake):
    put(lake, asked(0), asked(1))
    (w,) = look(lake)
    assert w.figures() == {} and w.remarks() == ["no label has come"]
    assert w.served.latency_ms > 0 and w.served.per_second == pytest.approx(200 / 3600)
    assert all("no record yet" in e.reason and not e.shown for e in estimates([w]))
    assert list(freshness(lake, "late")) == ["prediction"]


def test_labels_of_unknown_ids_wait_for_their_predictions(lake):
    late = asked(1, rows=10, version="9")
    put(lake, asked(0), feedback=[told([*late.id.values, "nobody"], [1.0] * 11, START + HOUR)])
    put(lake, asked(3))
    look(lake)
    assert unknown_ids(lake, "late") == 11
    put(lake, late)
    (w,) = look(lake)
    assert (w.version, w.labels.labels, unknown_ids(lake, "late")) == ("9", 10, 1)


def test_of_contradictory_labels_the_last_counts_whatever_comes_first(lake):
    put(lake, asked(0), asked(1))
    look(lake)
    ids = asked(0).id.values[:2]
    put(lake, feedback=[told(ids, [1, 1], START + 5 * HOUR)])
    (first,) = look(lake)
    put(lake, feedback=[told(ids[:1], [0], START + 3 * HOUR), told(ids[1:], [0], START + 9 * HOUR)])
    (w,) = look(lake)
    assert (first.evaluation.positives, w.evaluation.positives, w.labels.changed) == (2, 1, 2)
    assert w.remarks()[-2:] == [
        "2 labels were told otherwise before, the last counts",
        "amended: 2 → 2 labels",
    ]


def test_a_label_that_is_told_again_came_when_it_came_first(lake):
    put(lake, asked(0), asked(1))
    ids = asked(0).id.values[:1]
    put(lake, feedback=[told(ids, [1], START + HOUR // 2), told(ids, [1], START + 9 * HOUR)])
    (w,) = look(lake)
    assert (w.labels.early, w.labels.changed, w.labels.delay) == (1, 0, 1800.0)


def test_one_class_and_ten_rows(lake):
    few = asked(0, rows=10)
    put(lake, few, asked(1), feedback=[told(few.id.values, [0.0] * 10, START + HOUR)])
    (w,) = look(lake)
    assert w.remarks()[:2] == [
        "10 labels: intervals say little",
        "labels of one class only: no ROC-AUC",
    ]
    assert "roc_auc" not in w.figures() and w.figures()["brier"][0] > 0


def test_labels_before_their_predictions_and_predictions_from_the_future(lake):
    future = asked(24 * 365 * 200, rows=5)
    put(lake, asked(0), future, feedback=[told(asked(0).id.values, [1.0] * 100, START - HOUR)])
    assert look(lake) == []  # what is yet to come closes nothing
    put(lake, asked(1))
    (w,) = look(lake)
    assert w.labels.ahead == 100 and np.isnan(w.labels.delay)
    assert "100 labels came before their prediction: compare the clocks" in w.remarks()
    assert len(lake.state("late.quality")["open"]) == 2  # of hour 1, and of the future


def test_labels_and_scores_that_cannot_be_judged(lake):
    score = np.full(100, 0.5, np.float32)
    score[:3] = [np.nan, 7, -1]
    ds = asked(0, score=score)
    truth = [1.0] * 50 + [5.0] * 40 + [0.0] * 10
    put(lake, ds, asked(1), feedback=[told(ds.id.values, truth, START + HOUR)])
    (w,) = look(lake)
    assert (w.rows, w.labels.labels, w.labels.unusable) == (100, 57, 43)
    assert "43 labels or scores cannot be judged" in w.remarks()


def test_versions_are_apart_whether_the_registry_has_them_or_not(lake):
    put(lake, asked(0), asked(0, version="2", rows=50), asked(1), asked(9))
    put(lake, feedback=[all_labels(asked(0, version="2", rows=50))])
    found = look(lake)
    assert [(w.start, w.version, w.labels.labels) for w in found] == [
        (START, "1", 0),
        (START, "2", 50),
        (START + HOUR, "1", 0),  # a gap of windows is no window
    ]


# --- estimates ------------------------------------------------------------------------------------


def history(
    lake, hours, worth=lambda h: 1.0, later=HOUR // 2, output="probability", steady=False
) -> list:
    "Windows whose labels come a while later; scores are worth more or less"
    parts, labels = [], []
    for h in range(hours):
        rng = np.random.default_rng(h)
        score = rng.beta(1, 4 if steady else rng.uniform(2, 6), 2000)
        truth = rng.random(2000) < worth(h) * score + (1 - worth(h)) * score.mean()
        values = truth.astype(float)
        if output == "value":
            values = rng.normal(score, 0.1 + score)  # larger ones are further off
        ds = asked(h, rows=2000, score=score.astype(np.float32), output=output)
        parts.append(ds)
        labels.append(told(ds.id.values, values.tolist(), ds.time.values + later))
    put(lake, xr.concat(parts, "row", coords="minimal"))
    put(lake, feedback=[xr.concat(labels, "row")])
    return look(lake)


def error(found, measure, name="value") -> float:
    off = [getattr(e, name) - e.observed for e in found if e.measure == measure and e.windows]
    return float(np.abs(off).mean())


def test_with_labels_half_a_window_late_estimates_are_twice_as_good_as_the_last_window(lake):
    found = estimates(history(lake, 12))
    for m in ("recall", "precision", "rate"):
        assert error(found, m) < error(found, m, "last") / 2
    shown = [e for e in found if e.shown]
    inside = np.mean([e.low <= e.observed <= e.high for e in shown])
    assert len(shown) > 20 and inside > 0.8


def test_nothing_that_came_after_a_window_is_used_for_its_estimate(lake, tmp_path):
    whole = history(lake, 8, later=3 * HOUR)
    until = START + 6 * HOUR
    other = Lake(tmp_path / "other", author="ada")
    rows, labels = lake.read("late-predictions").load(), lake.read("late-feedback").load()
    put(other, rows)
    put(other, feedback=[labels.isel(row=labels.received.values <= until)])
    newest = [e for e in estimates(look(other)) if e.start == until - HOUR]
    then = [e for e in estimates(whole) if e.start == until - HOUR]
    assert [(e.value, e.last, e.reason) for e in newest] == [
        (e.value, e.last, e.reason) for e in then
    ]
    assert [e.low for e in newest] == [e.low for e in then]


def test_scores_that_lost_their_meaning_are_not_shown(lake):
    found = estimates(history(lake, 12, lambda h: float(h < 2), later=HOUR, steady=True))
    last = [e for e in found if e.measure == "recall"][-1]
    assert not last.shown and last.off >= last.last_off
    assert last.reason.startswith(f"off by {last.off:.3f} so far, the last window")


def test_the_error_of_numbers_is_learned_from_their_size(lake):
    found = estimates(history(lake, 12, output="value", later=HOUR))
    assert {e.measure for e in found} == {"rmse"}
    assert error(found, "rmse") < error(found, "rmse", "last") / 2
    assert found[0].reason.endswith("no labels say how large errors are")


def test_of_several_classes_the_accuracy_is_estimated(lake):
    ds = [asked(h, output="probabilities", rows=500) for h in range(4)]
    rng = np.random.default_rng(0)
    put(lake, *ds)
    for part in ds[:3]:
        shares = np.stack([part[f"score_{c}"] for c in CLASSES], 1).astype(float)
        draws = [CLASSES[rng.choice(3, p=s / s.sum())] for s in shares]
        put(lake, feedback=[told(part.id.values, draws, part.time.values + 2 * HOUR)])
    newest = estimates(look(lake))[-1]
    assert newest.measure == "accuracy" and newest.low <= newest.observed <= newest.high


# --- goals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_goal_is_broken_after_so_many_windows_and_whole_when_one_meets_it(lake, seed):
    rng = random.Random(seed)
    good = [rng.random() < 0.5 for _ in range(8)]
    hours = [asked(h, rows=600) for h in range(9)]
    for hour, well in zip(hours, good, strict=False):
        labels = truths(hour)
        labels = labels if well else np.random.default_rng(seed).permutation(labels).tolist()
        put(lake, hour, feedback=[told(hour.id.values, labels, hour.time.values + HOUR / 2)])
    put(lake, hours[-1])
    look(lake)
    found = goal_signals(lake, "late", {"auc": ">= 0.6 for 2 windows", "latency_ms": "<= 1"})
    firing, missed = [], 0
    for well in good:
        missed = 0 if well else missed + 1
        firing.append(missed >= 2)
    assert [s.alarm for s in found] == firing
    assert all(s.shares == {"auc": 1.0} and "auc: 0." in s.what for s in found if s.alarm)
    begin = found[5].at
    later = goal_signals(lake, "late", {"auc": ">= 0.6 for 2 windows"}, begin)
    assert [vars(s) for s in later] == [vars(s) for s in found[5:]]


def test_a_goal_that_chance_may_have_missed_is_not_broken(lake):
    put(lake, asked(0), asked(1), feedback=[all_labels(asked(0))])
    (w,) = look(lake)
    value, _, high = w.figures()["recall"]
    for goal, alarm in ((value, False), ((value + high) / 2, False), (high + 0.01, True)):
        (signal,) = goal_signals(lake, "late", {"recall": f">= {goal:.6f}"})
        assert signal.alarm == alarm, goal
    flagged = (asked(0).score.values >= 0.4).mean()
    for goal, alarm in ((flagged + 0.01, False), (flagged - 0.01, True)):
        (signal,) = goal_signals(lake, "late", {"alerts": f"<= {goal:.6f}"})
        assert signal.alarm == alarm, goal


def test_a_window_with_a_handful_of_labels_breaks_no_goal(lake):
    few = all_labels(asked(0)).isel(row=slice(20))
    put(lake, asked(0), asked(1), feedback=[few])
    look(lake)
    assert [s.alarm for s in goal_signals(lake, "late", {"recall": ">= 1"})] == [False]


# --- the command ----------------------------------------------------------------------------------


def test_the_command(tmp_path):
    project = Project(tmp_path, "cluster = none\ntrackers = none\nlake = lake\n")
    lake = Lake(tmp_path / "lake", author="ada")
    with pytest.raises(ParameterError, match="scalai serve late"):
        measuring(lake, "late")
    hours = [asked(h) for h in range(4)]
    put(lake, xr.concat(hours, "row"), feedback=[all_labels(hours[0])])
    put(lake, feedback=[told(["nobody"], [1.0], START)])
    assert len(measuring(lake, "late", "1h", dry_run=True)) == 3
    assert "late.quality" not in lake.names()
    first = project.said("quality", "late", "--every", "1h", COLUMNS="160").stdout
    assert "100 (100 %)" in first.replace("\N{NO-BREAK SPACE}", " ")
    assert "no label has come" in first and "not shown" in first
    assert "1 labels name no prediction of the log" in first
    start, end = (np.datetime_as_string(START + h * HOUR, "m").replace("T", " ") for h in (3, 4))
    still = f"the window of {start} closes with a prediction of {end} or later"
    assert still in first.replace("\N{NO-BREAK SPACE}", " ")
    put(lake, feedback=[all_labels(hours[1])])
    found = json.loads(project.said("quality", "late", "--last", "2", "--json").stdout)
    assert [(w["labels"], w["amended"]) for w in found["windows"]] == [(100, 1), (0, 0)]
    assert {e["measure"] for e in found["estimates"]} == {"roc_auc", "recall", "precision", "rate"}


def test_a_model_that_is_watched_keeps_its_quality(lake):
    put(lake, asked(0), asked(1), feedback=[all_labels(asked(0))])
    beside = Beside(lake, "late", "1h", restart=False)
    assert [w.labels.labels for w in beside.look(dry_run=False)] == [100]
    put(lake, asked(2))
    assert beside.look(dry_run=False) == []  # not before a 24th of a window has gone by
    beside.due = 0
    assert [w.start for w in beside.look(dry_run=False)] == [START + HOUR]
    put(lake, asked(3))
    by_rows = Beside(lake, "late", "", restart=False)
    assert [w.start for w in by_rows.look(dry_run=False)] == [START + 2 * HOUR]
