"""What follows from scores may change while they do not: it is found soon, and seldom where not"""

from dataclasses import replace

import numpy as np
import pytest

from scalai_nb.compute.state import to_text
from scalai_nb.data.lake.lake import Lake
from scalai_nb.monitoring.alarms import alarms, follow
from scalai_nb.monitoring.concept import Concepts, concept, concept_signals, followed
from scalai_nb.monitoring.quality import Labels, Quality, Served, Span, as_rows, quality_of
from scalai_nb.monitoring.window_states import BINARY, states_of

DAY = np.timedelta64(86_400_000_000, "us")
START = np.datetime64("2026-03-01", "us")


def window(i, score, truth, output="probability", version="1") -> Quality:
    n = len(truth)
    text = to_text(vars(states_of(output, truth.astype(float), score, np.ones(n, bool))))
    where = START + i * DAY, version, 86_400.0, n, Labels(n, n), Served(), Span(0, n)
    return Quality(*where, output, 0.5, text)


@pytest.mark.parametrize("n, m", [(20, 10), (300, 100), (100, 2_000)])
def test_evidence_is_one_or_less_on_average(n, m):
    "The mean of e-values of labels that follow alike, for few rows as for many"
    rng = np.random.default_rng(n)
    found = []
    for _ in range(300):
        score = rng.beta(1, 4, n + m)
        label = (rng.random(n + m) < score).astype(float)
        sides = BINARY.make(label[:n], score[:n]), BINARY.make(label[n:], score[n:])
        found.append(np.exp(followed(*sides).evidence))
    assert np.mean(found) - 3 * np.std(found) / np.sqrt(len(found)) < 1


def faulty(kind, score, day):
    "The probability of a label on a day, of a fault that begins on the tenth"
    past = day - 10
    if past < 0:
        return score
    if kind == "label rate doubled":
        return np.minimum(1, 2 * score)
    if kind == "one slice broken":
        return np.where(score > 0.4, 0.15, score)
    if kind == "sudden":
        return 1 - score
    return np.clip(score * (1 + 0.15 * (past + 1)), 0, 1)  # slow


@pytest.mark.parametrize("kind", ["label rate doubled", "one slice broken", "sudden", "slow"])
def test_a_change_is_found_within_three_windows_and_named(kind):
    rng = np.random.default_rng(3)
    days = []
    for day in range(14):
        score = rng.beta(1.5, 5, 1_000)
        days.append(window(day, score, rng.random(1_000) < faulty(kind, score, day)))
    found = {int((s.at - START) / DAY): s for s in concept(days)}
    first = min(day for day, s in found.items() if s.alarm)
    assert 10 <= first <= 12
    assert "came true" in found[13].what and found[13].since >= START + 9 * DAY


def test_a_change_is_over_soon_after_its_cause():
    rng = np.random.default_rng(8)
    days = []
    for day in range(30):
        score = rng.random(600)
        chance = 1 - score if 10 <= day < 16 or day >= 26 else score
        days.append(window(day, score, rng.random(600) < chance))
    found = {int((s.at - START) / DAY): s.alarm for s in concept(days)}
    assert not any(found[day] for day in [*range(1, 10), *range(18, 26)])
    assert all(found[day] for day in [*range(11, 16), *range(27, 30)])


def test_scores_that_drift_are_no_change_of_the_concept():
    rng = np.random.default_rng(4)
    days = []
    for day in range(20):
        score = rng.beta(1.5 + 0.3 * day, 5, 1_000)
        days.append(window(day, score, rng.random(1_000) < score))
    assert not any(s.alarm for s in concept(days))


def test_several_classes_are_right_as_often_as_they_were_sure():
    rng = np.random.default_rng(5)
    days = []
    for day in range(8):
        score = rng.dirichlet([1, 1, 1], 800).astype("f4")
        true = (score.cumsum(axis=1) > rng.random((800, 1))).argmax(axis=1)
        wrong = (true + 1) % 3 if day >= 5 else true
        days.append(window(day, score, wrong, "probabilities"))
    assert [s.alarm for s in concept(days)] == [False] * 4 + [True] * 3


@pytest.mark.parametrize("what", ["no labels", "few labels", "numbers"])
def test_where_nothing_can_be_said_nothing_is(what):
    rng = np.random.default_rng(6)
    n = {"no labels": 0, "few labels": 10, "numbers": 900}[what]
    output = "value" if what == "numbers" else "probability"
    days = [window(i, rng.random(n), rng.random(n) < 0.5, output) for i in range(6)]
    assert [*concept(days)] == []


def test_a_new_version_has_a_concept_of_its_own_and_alarms_are_records(tmp_path):
    lake, rng = Lake(tmp_path), np.random.default_rng(7)
    days = []
    for day in range(20):
        score, version = rng.random(900), "1" if day < 10 else "2"
        chance = 1 - score if day >= 6 else score
        days.append(window(day, score, rng.random(900) < chance, version=version))
    lake.write(quality_of("late"), as_rows(days))
    signals = concept_signals(lake, "late")
    assert [s.alarm for s in signals] == [False] * 5 + [True] * 4 + [False] * 9
    with_model = lambda lake, dataset, begin: concept_signals(lake, "late", begin=begin)
    (alarm,) = follow(lake, "late-predictions", kind="concept", signals=with_model)
    assert alarm.state == "resolved" and alarm.opened == START + 6 * DAY
    assert alarm.title == "Concept of late-predictions" and "came true" in alarm.what
    assert follow(lake, "late-predictions", kind="concept", signals=with_model) == []
    assert [a.id for a in alarms(lake, "late-predictions")] == [alarm.id]


def test_the_states_that_a_look_reads_do_not_grow_with_the_history(tmp_path, monkeypatch):
    lake, rng, read = Lake(tmp_path), np.random.default_rng(8), []
    name, concepts = quality_of("late"), Concepts("late")

    def day(i, turned=False):
        score = rng.random(300)
        return window(i, score, rng.random(300) < (1 - score if turned else score))

    lake.write(name, as_rows([day(i) for i in range(100)]))
    concepts(lake)
    asked = type(concepts)._read
    count = lambda *given: read.append(len(found := asked(*given))) or found
    monkeypatch.setattr(Concepts, "_read", count)
    concepts(lake)
    assert read == []
    for i in range(100, 110):
        lake.append(name, as_rows([day(i, turned=i >= 104)]))
        concepts(lake)
    assert read == [64] * 10
    lake.upsert(name, as_rows([replace(day(107), amended=1)]), ("start", "version"))
    assert concepts(lake) == concept_signals(lake, "late")
    assert read[10:] == [64 + 2, 110] and concepts(lake)[-1].alarm
