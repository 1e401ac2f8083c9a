"""What serving.feedback promises: each truth finds its prediction whenever it comes

Production is measured as releases are.
"""

import time
from pathlib import Path

import numpy as np
import pytest

from scalai_nb.data.lake.lake import Lake
from scalai_nb.evaluation.evaluation import evaluate
from scalai_nb.serving.log import feedback
from scalai_nb.serving.scoring.calls import Call
from scalai_nb.serving.log.feedback import amendments, joined, quality, versions
from scalai_nb.serving.log.journal import Journal
from scalai_nb.serving.log.ingest import LogKeeper
from scalai_nb.metrics import METRICS, Metrics
from scalai_nb.serving.scoring.validation import Rows
from scalai_nb.serving.scoring.scorer import Column, Scorer


class Service:
    "A worker's journal and a keeper, without the worker"

    def __init__(self, folder: Path):
        self.folder, self.lake = folder / "late", Lake(folder / "lake", author="keeper")
        self.start()

    def start(self):
        self.keeper = LogKeeper(self.folder, self.lake, Metrics())

    def write(self, *what, force=False):
        "Predictions, (id, version, score), and feedback, records; then a step of the keeper"
        journal = Journal(self.folder, 0, secret=b"key")
        for one in what:
            if isinstance(one, dict):
                assert journal.feedback([one])
            else:
                self._predict(journal, *one)
        journal.close()
        assert self.keeper.step(force=force) is not None, self.keeper.trouble

    def _predict(self, journal, id, version, score, name="late", card=None):
        served, numbers = (
            Scorer(name, version, (Column("hour", "number"),), card or {}, {}, None),
            np.float32([[7]]),
        )
        assert journal.append(
            served,
            [Call(served, Rows(numbers), id, None, None, received=time.perf_counter())],
            numbers,
            (),
            np.float32([score]),
        )

    def gauge(self, what: str, version: str, name="late") -> float:
        return self.keeper.metrics.gauges["scalai_feedback_" + what, name, version]

    def counted(self) -> dict:
        return {
            kind: n
            for (name, *kinds), n in self.keeper.metrics.counters.items()
            if name == "scalai_feedback_total"
            for kind in kinds
            if n
        }


@pytest.fixture
def service(tmp_path):
    return Service(tmp_path)


def truth(id, value, **more) -> dict:
    return {"id": id, "truth": value, **more}


def test_truth_comes_before_with_after_and_again(service):
    service.write(truth("early", 1))
    service.write(("early", "3", 0.9), ("same", "3", 0.2), truth("same", False))
    service.write(("late", "3", 0.6), force=True)
    service.write(truth("late", True), truth("late", False), truth("never", 1), force=True)
    both = joined(service.lake, "late")
    assert dict(zip(both.id.values.tolist(), both.truth.values.tolist(), strict=True)) == {
        "early": 1,
        "same": 0,
        "late": 0,
    }
    assert service.counted() == {"first": 3, "amended": 1} and service.gauge("count", "3") == 3
    assert (
        service.lake.read("late-feedback").sizes["row"] == 5
    )  # what nobody asked about, and what was said before, are kept


@pytest.mark.parametrize("seed", range(4))
def test_each_version_is_measured_at_its_own_threshold(service, seed, monkeypatch):
    "Whichever version came first, in which commit, and whoever looks for its truths when"
    rng = np.random.default_rng(seed)
    cards = {str(v): {"threshold": round(float(rng.uniform(0.1, 0.9)), 2)} for v in range(1, 4)}
    score = {(v, i): (i + 0.5) / 20 for v in cards for i in range(20)}
    asked = [(f"{v}-{i}", v, x, "late", cards[v]) for (v, i), x in score.items()]
    rng.shuffle(asked)
    for part in (asked[:20], asked[20:40], asked[40:]):
        service.write(*((i, v, float(x), n, c) for i, v, x, n, c in part), force=True)
    service.start()  # the predictions are known from the lake alone
    monkeypatch.setattr(feedback, "LATE", 0.0)
    service.write(*(truth(f"{v}-{i}", True) for v, i in score), force=True)
    service.write(truth("1-0", True), force=True)
    found = quality(joined(service.lake, "late"))
    for v, card in cards.items():
        recall = np.mean([x >= card["threshold"] for (of, _), x in score.items() if of == v])
        assert found.recall[v] == pytest.approx(recall)
        assert service.gauge("recall", v) == pytest.approx(recall)
    stored = service.lake.state("late-predictions")["thresholds"]
    assert stored == {v: card["threshold"] for v, card in cards.items()}


def test_another_truth_amends_and_the_same_repeats(service):
    service.write(("a", "3", 0.9), ("b", "3", 0.9), truth("a", 1), truth("b", 1), force=True)
    assert service.gauge("precision", "3") == 1
    service.write(truth("a", True), truth("b", 0), force=True)
    assert service.counted() == {"first": 2, "repeated": 1, "amended": 1}
    assert service.gauge("precision", "3") == 0.5 and service.gauge("count", "3") == 2
    both = joined(service.lake, "late").compute()
    assert both.truth.values.tolist() == [1, 0] and both.amended.values.tolist() == [False, True]
    assert quality(both).amended["3"] == 1
    told = amendments(service.lake, "late")
    assert told.index.tolist() == ["b", "b"] and told.truth.tolist() == [1, 0]
    assert told.received.is_monotonic_increasing
    service.start()  # who comes new knows the later one, too
    service.write(truth("b", 0), force=True)
    assert service.counted() == {"repeated": 1} and service.gauge("precision", "3") == 0.5


def test_truths_told_before_their_prediction_amend_each_other(service):
    service.write(truth("a", 1), truth("a", 1), truth("a", 0))
    assert not service.counted()
    service.write(("a", "3", 0.9))
    assert service.counted() == {"first": 1, "repeated": 1, "amended": 1}
    assert service.gauge("precision", "3") == 0


def test_the_truth_that_was_received_last_counts_whoever_brings_it(service):
    "Journals of workers come in turn, not in the order of what is in them"
    one, two = (Journal(service.folder, slot, secret=b"key") for slot in (0, 1))
    service._predict(one, "a", "3", 0.9)
    service._predict(one, "b", "3", 0.9)  # its journal is the elder
    two.feedback([truth("a", 0)])
    time.sleep(0.001)
    one.feedback([truth("a", 1)])
    two.close()
    one.close()
    service.keeper.step(force=True)
    assert service.counted() == {"first": 1, "amended": 1}
    assert service.gauge("precision", "3") == 1
    assert joined(service.lake, "late").truth.values.tolist() == [1]


def test_classes_are_amended_by_name(service):
    card = {"output": "probabilities", "classes": ["AA", "1"]}
    service.folder.mkdir()
    journal = Journal(service.folder, 0, secret=b"key")
    served = Scorer("late", "3", (Column("hour", "number"),), card, {}, None)
    numbers, scores = np.float32([[7]]), np.float32([[0.2, 0.8]])
    for id in "ab":
        call = Call(served, Rows(numbers), id, None, None, received=time.perf_counter())
        assert journal.append(served, [call], numbers, (), scores)
    for id, value in (("a", "AA"), ("a", "1"), ("a", 1), ("b", 1), ("b", "1")):
        journal.feedback([truth(id, value)])
    journal.close()
    service.keeper.step(force=True)
    assert service.counted() == {"first": 2, "amended": 1, "repeated": 2}
    both = joined(service.lake, "late").compute()
    assert both.truth.values.tolist() == [1, 1] and both.amended.values.tolist() == [True, False]


def test_running_and_lake_agree_with_evaluate(service):
    rng = np.random.default_rng(0)
    for version in ("3", "4"):
        scores = rng.random(300)
        service.write(
            *((f"{version}-{i}", version, s) for i, s in enumerate(scores)),
            *(truth(f"{version}-{i}", bool(rng.random() < s)) for i, s in enumerate(scores)),
        )
    service.keeper.step(force=True)
    both = joined(service.lake, "late")
    for version, row in quality(both).iterrows():
        of = versions(both) == version
        e = evaluate(both.truth.values[of], both.score.values[of])
        assert row.to_dict() == {
            "count": 300,
            "precision": e.at(0.5).precision,
            "recall": e.at(0.5).recall,
            "brier": e.brier,
            "calibration_error": e.ece,
            "amended": 0,
        }
        for what, value in row.drop("amended").items():
            assert service.gauge(what, version) == pytest.approx(value)


def test_a_keeper_that_starts_again_remembers_what_the_lake_has(service):
    service.write(("a", "3", 0.9), ("b", "3", 0.8), truth("a", 1), force=True)
    service.start()
    service.write(truth("b", 0))
    assert (
        service.gauge("count", "3") == 2
        and service.gauge("precision", "3") == 0.5
        and service.counted() == {"first": 1}
    )


def test_a_prediction_that_is_forgotten_is_sought_in_the_lake(service, monkeypatch):
    monkeypatch.setattr(feedback, "RECENT", 2)
    service.write(*((f"{i}", "3", 0.9) for i in range(7)), force=True)
    service.write(truth("0", 1), truth("never", 1))
    assert not service.counted() and list(service.keeper.running.waiting) == [
        ("late", "0"),
        ("late", "never"),
    ]
    monkeypatch.setattr(feedback, "LATE", 0)
    service.write()
    assert (
        service.counted() == {"first": 1, "unknown": 1}
        and service.gauge("count", "3") == 1
        and not service.keeper.running.waiting
    )


def test_memory_is_bounded(service, monkeypatch):
    monkeypatch.setattr(feedback, "RECENT", 10)
    monkeypatch.setattr(feedback, "WINDOW", 5)
    service.write(*((f"{i}", "3", 0.9) for i in range(50)), *(truth(f"{i}", 1) for i in range(100)))
    running = service.keeper.running
    assert len(running.recent) == len(running.waiting) == 10 and service.gauge("count", "3") == 5


def test_models_of_a_service_share_feedback_that_names_none(service):
    service.folder.mkdir()
    (service.folder / "routes.json").write_text('{"models": {"late": {}, "Cost": {}}}')
    service.write(
        ("a", "3", 0.9),
        ("b", "1", 12.5, "Cost", {"output": "value"}),
        truth("a", 1),
        truth("b", 10, model="Cost"),
        force=True,
    )
    assert (
        service.gauge("count", "3") == 1
        and service.gauge("count", "1", "Cost") == 1
        and not service.keeper.running.waiting
    )
    assert quality(joined(service.lake, "Cost")).to_dict("index") == {
        "1": {"count": 1, "mae": 2.5, "rmse": 2.5, "bias": 2.5, "amended": 0}
    }
    assert service.lake.read("late-feedback").id.values.tolist() == ["a"] and service.lake.read(
        "cost-feedback"
    ).id.values.tolist() == ["a", "b"]


def test_a_truth_that_is_no_answer_does_not_count(service):
    service.write(("a", "3", 0.9), ("b", "3", 0.9), truth("a", 7), truth("b", True))
    assert service.gauge("count", "3") == 1


@pytest.mark.parametrize(
    "given, stored",
    [
        ("2013-01-01T06:00:00+01:00", "2013-01-01T05:00:00"),
        (1357016400, "2013-01-01T05:00:00"),
        ("soon", "NaT"),
        (1e300, "NaT"),
        (None, "NaT"),
    ],
)
def test_when_it_came_true(service, given, stored):
    service.write(truth("a", 1, time=given), truth("b", 1), force=True)
    told = service.lake.read("late-feedback").compute()
    np.testing.assert_array_equal(told.time.values, np.array([stored, "NaT"], "M8[us]"))


def test_the_threshold_is_the_cards(service):
    service.write(("a", "3", 0.4, "late", {"threshold": 0.3}), truth("a", 1), force=True)
    assert (
        service.gauge("recall", "3") == 1 == quality(joined(service.lake, "late")).recall["3"]
        and quality(joined(service.lake, "late"), 0.5).recall["3"] == 0
    )


def test_every_gauge_is_declared(service):
    service.write(("a", "3", 0.4), truth("a", 1))
    assert {
        name for name, *_ in (*service.keeper.metrics.gauges, *service.keeper.metrics.counters)
    } <= METRICS.keys()
