"Differences of two models: against brute force and other software; intervals keep their promise"

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from scalai_nb.errors import ParameterError
from scalai_nb.evaluation.comparison import BETTER, Confidence, compare, placements, simultaneous
from scalai_nb.evaluation.evaluation import evaluate


def two_models(rows, seed=0, days=None, gap=0.3, spread=0.0):
    "Labels, and scores of two models that share most; with `days`, rows of a day share an effect"
    rng = np.random.default_rng(seed)
    risk, day = (
        rng.normal(size=rows),
        np.arange(rows) if days is None else rng.integers(0, days, rows),
    )
    label = rng.random(rows) < 1 / (1 + np.exp(1 - risk))
    common = rng.normal(size=rows)
    effect = spread * rng.normal(size=(2, day.max() + 1))[:, day]
    # scores are ranked within days by skill and shifted by the day, differently for either model
    new = 1 / (1 + np.exp(1 - risk - 0.5 * common + effect[0]))
    old = 1 / (1 + np.exp(1 - risk - 0.5 * common - gap * rng.normal(size=rows) + effect[1]))
    return label, new, old, day


def brute(label, new, old):
    "AUCs and DeLong's standard error of their difference from all pairs"
    kernel = [(np.sign(s[label][:, None] - s[~label][None]) + 1) / 2 for s in (new, old)]
    difference = kernel[0] - kernel[1]
    m, n = difference.shape
    variance = difference.mean(axis=1).var(ddof=1) / m + difference.mean(axis=0).var(ddof=1) / n
    return kernel[0].mean(), kernel[1].mean(), np.sqrt(variance)


def line(table, measure="roc_auc", value="all"):
    (row,) = table[(table.measure == measure) & (table.slice == value)].itertuples()
    return row


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=60
    )
)
@settings(max_examples=150, deadline=None)
def test_delong_equals_all_pairs_ties_included(rows):
    label, new, old = (np.array(x) for x in zip(*rows, strict=True))
    if min(label.sum(), (~label).sum()) < 2:
        return
    row = line(compare(label, new / 6, old / 6, measures=["roc_auc"]))
    np.testing.assert_allclose([row.new, row.old, row.error], brute(label, new, old), atol=1e-12)


def test_delong_by_the_covariance_of_placements():
    "Two markers of 8 + 8 persons, ties between the classes included"
    label = np.repeat([True, False], 8)
    a = np.array([9, 8, 8, 7, 6, 6, 5, 4, 7, 5, 4, 4, 3, 2, 2, 1]) / 10
    b = np.array([8, 9, 5, 7, 4, 6, 6, 2, 6, 7, 4, 5, 1, 3, 2, 2]) / 10
    row = line(compare(label, a, b, measures=["roc_auc"]))
    placed = [placements(label, s) for s in (a, b)]
    cov = sum(np.cov([p[c] for p in placed]) / c.sum() for c in (label, ~label))
    assert row.error == pytest.approx(np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]))
    assert (row.new, row.old) == pytest.approx(
        (evaluate(label, a).roc_auc, evaluate(label, b).roc_auc)
    )


def test_values_are_those_of_evaluate():
    label, new, old, _ = two_models(5000)
    table = compare(label, new, old.astype(np.float32), threshold=(0.3, 0.4))
    assert list(table.measure) == list(BETTER)
    for column, score, threshold in (("new", new, 0.3), ("old", old.astype(np.float32), 0.4)):
        e = evaluate(label, score)
        expected = [e.roc_auc, e.log_loss, e.brier, e.ece, e.at(threshold).recall]
        np.testing.assert_allclose(table[column], expected, rtol=1e-6)
    np.testing.assert_allclose(table.difference, table.new - table.old)
    assert ((table.low < table.difference) & (table.difference < table.high)).all()


@pytest.mark.parametrize("measure", ["log_loss", "brier", "recall"])
def test_the_bootstrap_agrees_with_the_formula(measure):
    label, new, old, _ = two_models(20_000)
    row = line(compare(label, new, old, threshold=0.3), measure)
    loss = {
        "log_loss": lambda s: -np.log(np.where(label, s, 1 - s)),
        "brier": lambda s: (s - label) ** 2,
        "recall": lambda s: (s >= 0.3)[label] * 1.0,
    }[measure]
    each = loss(new) - loss(old)
    assert row.difference == pytest.approx(each.mean()) and row.error == pytest.approx(
        each.std() / np.sqrt(len(each)), rel=0.12
    )


def test_groups_count_as_one():
    "A day repeated ten times is still one day"
    label, new, old, _ = two_models(300)
    once = compare(label, new, old, groups=np.arange(300))
    ten = compare(
        *(np.repeat(x, 10) for x in (label, new, old)), groups=np.repeat(np.arange(300), 10)
    )
    blind = compare(*(np.repeat(x, 10) for x in (label, new, old)))
    for measure in ("roc_auc", "log_loss", "brier"):
        a, b, c = (line(t, measure) for t in (once, ten, blind))
        assert a.error == pytest.approx(b.error, rel=1e-9) and c.error == pytest.approx(
            b.error / np.sqrt(10), rel=0.15
        )


def test_groups_of_one_are_rows():
    label, new, old, _ = two_models(2000)
    a, b = (
        line(compare(label, new, old, groups=g, measures=["roc_auc"]))
        for g in (None, np.arange(2000))
    )
    assert a.error == pytest.approx(b.error, rel=0.01)


def coverage(measure, days, rounds=200, rows=600, **kind):
    "Share of the intervals that hold the true difference, which a large sample tells"
    label, new, old, _ = two_models(400_000, seed=10_000, days=days and 200_000, **kind)
    truth = line(
        compare(label, new, old, measures=[measure], confidence=Confidence(rounds=2)), measure
    ).difference
    hits = 0
    for seed in range(rounds):
        label, new, old, day = two_models(rows, seed, days, **kind)
        row = line(
            compare(
                label,
                new,
                old,
                groups=day if days else None,
                measures=[measure],
                confidence=Confidence(rounds=200),
            ),
            measure,
        )
        hits += row.low <= truth <= row.high
    return hits / rounds


@pytest.mark.parametrize("measure", ["roc_auc", "log_loss", "brier"])
def test_intervals_hold_what_they_promise(measure):
    assert (
        0.91 <= coverage(measure, None) <= 0.985
    )  # 95 %, give or take three standard errors of 200 rounds


@pytest.mark.parametrize("measure", ["roc_auc", "brier"])
def test_intervals_hold_with_days(measure):
    assert 0.90 <= coverage(measure, 30, spread=0.5) <= 0.99


def test_without_groups_days_would_be_taken_for_rows():
    "What groups= is for: the interval that forgets the days is too narrow"
    label, new, old, day = two_models(6000, 1, 30, spread=0.5)
    aware, blind = (
        line(compare(label, new, old, groups=g, measures=["brier"]), "brier") for g in (day, None)
    )
    assert aware.error > 2 * blind.error


def test_slices_of_several_columns():
    label, new, old, day = two_models(3000)
    carrier = xr.DataArray(
        (np.arange(3000) % 3 - 1).astype("i1"), dims="row", attrs={"categories": ["AA", "UA"]}
    )
    table = compare(
        label,
        new,
        old,
        by={"carrier": carrier, "month": np.arange(3000) % 2 + 1},
        measures=["roc_auc", "brier"],
    )
    assert list(zip(table.slice_by, table.slice, strict=True))[::2] == [
        ("all", "all"),
        ("carrier", "AA"),
        ("carrier", "UA"),
        ("carrier", "missing"),
        ("month", 1),
        ("month", 2),
    ]
    mine = carrier.values == 1
    alone = compare(label[mine], new[mine], old[mine], measures=["roc_auc", "brier"])
    for measure in ("roc_auc", "brier"):
        assert (
            line(table, measure, "UA").error == pytest.approx(line(alone, measure).error)
            and line(table, measure, "UA").rows == 1000
        )


def test_lazy_data_give_the_same():
    label, new, old, day = two_models(3000)
    lazy = xr.Dataset(
        {
            "label": ("row", label),
            "new": ("row", new),
            "old": ("row", old),
            "day": ("row", day % 20),
        }
    ).chunk(row=700)
    a = compare(lazy.label, lazy.new, lazy.old, by=lazy.day, groups=lazy.day)
    b = compare(label, new, old, by=day % 20, groups=day % 20)
    assert a.equals(b)


def test_slices_that_cannot_tell():
    label = np.array([True] * 5 + [False] * 5 + [True] * 3)
    score = np.linspace(0.9, 0.1, 13)
    table = compare(
        label, score, score, by=np.repeat(["both", "one"], [10, 3]), measures=["roc_auc", "brier"]
    )
    one = line(table, "roc_auc", "one")
    assert (
        np.isnan(one.new)
        and np.isnan(one.low)
        and np.isnan(simultaneous(table).low[list(table.slice).index("one")])
    )
    single = compare(label, score, score[::-1], groups=np.zeros(13), measures=["roc_auc", "brier"])
    assert single.low.isna().all() and simultaneous(single).low.isna().all()


def test_the_same_model_does_not_differ():
    label, new, _, _ = two_models(500)
    table = simultaneous(compare(label, new, new))
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)


def test_together_is_bonferroni():
    label, new, old, day = two_models(4000)
    table = compare(
        label, new, old, by=day % 10, measures=["roc_auc"], confidence=Confidence(1 - 0.05 / 11)
    )
    pd.testing.assert_frame_equal(
        simultaneous(compare(label, new, old, by=day % 10, measures=["roc_auc"])), table
    )
    lost = table.assign(error=table.error.where(table.slice != 3))
    assert (
        simultaneous(lost).low.isna().sum() == 1 and simultaneous(lost).low[0] > table.low[0]
    )  # a line that cannot tell does not count


def test_twenty_slices_raise_few_false_alarms():
    "Equal models in twenty slices: one by one, every third table has an interval wholly below 0"
    alone = joint = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        label, risk = rng.random(4000) < 0.4, rng.normal(size=4000)
        new, old = (1 / (1 + np.exp(-risk - label - rng.normal(size=4000))) for _ in range(2))
        table = compare(label, new, old, by=np.arange(4000) % 20, measures=["roc_auc"])
        alone, joint = alone + (table.high < 0).any(), joint + (simultaneous(table).high < 0).any()
    assert joint <= 5 and alone >= 12


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label": [0, 1, 2, 1]}, "A label is 0 or 1"),
        ({"label": [0, 1, np.nan, 1]}, "A label is 0 or 1"),
        ({"new": [0.1, np.nan, 0.2, 0.3]}, "1 scores are NaN"),
        ({"old": [0.1, 2.0, 0.2, 0.3]}, "A score is a probability"),
        ({"new": [0.1, 0.2]}, "4 of label, 2 of new"),
        ({"new": [[0.1], [0.2], [0.3], [0.4]]}, "2 dimensions"),
        ({"measures": ["auc"]}, "'auc' is not in the measures that can be compared; known: brier"),
        ({"measures": ["recall"]}, "recall needs a threshold"),
        ({"label": [], "new": [], "old": []}, "no rows"),
        ({"groups": np.array(["a", None, "b", "b"], object)}, "1 rows have no group"),
    ],
)
def test_what_cannot_be_compared(change, message):
    with pytest.raises(ParameterError, match=message):
        compare(
            **(
                {"label": [0, 1, 0, 1], "new": [0.1, 0.4, 0.3, 0.2], "old": [0.1, 0.4, 0.3, 0.2]}
                | change
            )
        )
