"""Evaluations against scikit-learn, within the bounds that they state."""

import re

import numpy as np
import pytest
import xarray as xr
from dask import array as da
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics
from sklearn.calibration import calibration_curve

from scalai_nb.errors import ParameterError
from scalai_nb.learn.evaluation import BINS, SLICE_BINS, SLICES, Evaluation, Point, evaluate, key_scores, score_keys

RNG = np.random.default_rng
SCORES = {
    "even": lambda r, n: r.random(n), "usual": lambda r, n: r.beta(2, 6, n), "float32": lambda r, n: r.beta(2, 6, n).astype(np.float32),
    "piled at 0": lambda r, n: 1 / (1 + np.exp(-r.normal(-9, 3, n))), "piled at 1": lambda r, n: 1 / (1 + np.exp(-r.normal(9, 3, n))),
    "both ends": lambda r, n: 1 / (1 + np.exp(-r.normal(0, 15, n))), "rounded": lambda r, n: r.random(n).round(2), "hard": lambda r, n: r.integers(0, 2, n).astype(float),
}


def drawn(kind, n, seed=0):
    "Scores, and labels that are better sorted than by chance"
    r = RNG(seed)
    score = SCORES[kind](r, n)
    rank = np.argsort(np.argsort(score)) / n
    return (r.random(n) < rank * 0.6).astype(int), score


@settings(deadline=None, database=None, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=2, max_size=40))
def test_any_scores_are_evaluated_exactly(rows):
    label, score = np.array(rows, dtype=float).T
    e = evaluate(label.astype(bool), score)
    assert (e.count, e.positives) == (len(rows), label.sum()) and e.roc_auc_error == 0
    assert e.brier == pytest.approx(np.mean((score - label) ** 2)) and e.log_loss == pytest.approx(metrics.log_loss(label, score, labels=[0, 1]))
    if 0 < label.sum() < len(label):
        assert e.roc_auc == pytest.approx(metrics.roc_auc_score(label, score), abs=1e-12)
        assert e.pr_auc == pytest.approx(metrics.average_precision_score(label, score), abs=1e-12)


@pytest.mark.parametrize("kind", SCORES)
def test_many_scores_are_within_the_bounds(kind):
    label, score = drawn(kind, 300_000)
    e = evaluate(label, score)
    assert len(e.state.buckets.keys) <= BINS and (e.roc_auc_error > 0) == (len(np.unique(score)) > BINS)
    error = abs(e.roc_auc - metrics.roc_auc_score(label, score))
    assert error <= e.roc_auc_error + 1e-12 and error < 1e-6 and e.roc_auc_error < 1e-4
    assert e.pr_auc == pytest.approx(metrics.average_precision_score(label, score), abs=1e-4)
    assert e.brier == pytest.approx(metrics.brier_score_loss(label, score), rel=1e-6)
    assert e.log_loss == pytest.approx(metrics.log_loss(label, score), rel=1e-6)


def test_losses_are_sums_even_where_buckets_are_wide():
    label, score = drawn("usual", 300_000)
    e = evaluate(label, score)
    assert e.state.buckets.shift and e.brier == pytest.approx(metrics.brier_score_loss(label, score), rel=1e-12)
    assert e.log_loss == pytest.approx(metrics.log_loss(label, score), rel=1e-12)


@settings(deadline=None, database=None)
@given(arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1)))
def test_keys_of_scores(score):
    keys = score_keys(score + 0.0)
    assert (key_scores(keys) == score).all() and (np.argsort(keys, kind="stable") == np.argsort(score, kind="stable")).all()


# ---- calibration, curves and thresholds ----


@pytest.mark.parametrize("kind", ["usual", "rounded", "hard", "both ends"])
def test_calibration(kind):
    label, score = drawn(kind, 5000)
    e, c = evaluate(label, score), evaluate(label, score).curve("calibration")
    share, mean = calibration_curve(label, score, n_bins=10)
    assert np.allclose(c["share"], share) and np.allclose(c["score"], mean) and c["count"].sum() == 5000
    assert e.ece == pytest.approx(np.sum(c["count"] * np.abs(share - mean)) / 5000)


def test_a_perfectly_calibrated_score_has_no_calibration_error():
    assert evaluate(np.arange(10) < 3, np.full(10, 0.3)).ece == pytest.approx(0)


def test_curves():
    label, score = drawn("rounded", 3000)
    e = evaluate(label, score)
    roc = e.curve("roc")
    fpr, tpr, threshold = metrics.roc_curve(label, score, drop_intermediate=False)
    assert np.allclose(roc["false_positive_rate"], fpr) and np.allclose(roc["true_positive_rate"], tpr) and np.array_equal(roc["threshold"], threshold)
    pr = e.curve("pr")
    precision, recall, threshold = metrics.precision_recall_curve(label, score)
    assert np.allclose(pr["precision"][::-1], precision[:-1]) and np.allclose(pr["recall"][::-1], recall[:-1]) and np.array_equal(pr["threshold"][::-1], threshold)
    with pytest.raises(ParameterError, match="roc, pr and calibration, not 'lift'"): e.curve("lift")


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.505, 1.0, 2.0])
def test_at_a_threshold(threshold):
    label, score = drawn("rounded", 2000)
    p = evaluate(label, score).at(threshold)
    tn, fp, fn, tp = metrics.confusion_matrix(label, score >= threshold, labels=[0, 1]).ravel()
    assert p == Point(threshold, tp, fp, fn, tn) and p.flagged == tp + fp and p.share == (tp + fp) / 2000
    assert p.recall == tp / (tp + fn) and p.false_positive_rate == fp / (fp + tn)
    assert p.precision == (tp / (tp + fp) if tp + fp else pytest.approx(np.nan, nan_ok=True)) and p.f1 == pytest.approx(metrics.f1_score(label, score >= threshold))


@pytest.mark.parametrize("kind", ["usual", "rounded", "piled at 0"])
@pytest.mark.parametrize("n", [500, 200_000])
def test_thresholds_keep_their_promise(kind, n):
    label, score = drawn(kind, n)
    e = evaluate(label, score)
    occurring = np.unique(score)
    for recall in (0.1, 0.6, 1.0):
        t = e.threshold(recall=recall)
        assert np.mean(score[label == 1] >= t) >= recall, "counted on the rows"
        higher = occurring[np.searchsorted(occurring, t, "right"):]
        if len(higher) and not e.state.buckets.shift: assert np.mean(score[label == 1] >= higher[0]) < recall, "and the highest that does"
    best = e.curve("pr")["precision"]
    for precision in (0.2, 0.5):
        if best.max() < precision: continue
        t = e.threshold(precision=precision)
        assert np.mean(label[score >= t]) >= precision - 1e-12 and not (best[e.curve("pr")["threshold"] < t] >= precision).any()
    for share in (0.1, 1.0):
        if kind == "rounded" or share == 1 or n > 500: assert np.mean(score >= e.threshold(share=share)) <= share


def test_a_wish_that_cannot_be_met():
    e = evaluate([0, 1, 0], [0.9, 0.5, 0.1])
    with pytest.raises(ParameterError, match="No threshold has a precision of 0.9: it is from 0.000 to 0.500 here"): e.threshold(precision=0.9)
    with pytest.raises(ParameterError, match="No threshold has a share of 0.1"): e.threshold(share=0.1)
    with pytest.raises(ParameterError, match="No threshold has a recall of 0.6"): evaluate([0, 0], [0.1, 0.2]).threshold(recall=0.6)
    with pytest.raises(ParameterError, match="one wish: recall, precision or share; 2 were"): e.threshold(recall=0.5, precision=0.5)
    with pytest.raises(ParameterError, match="one wish: recall, precision or share; 0 were"): e.threshold()


# ---- the interval ----


def delong(label, score):
    "The standard error by the formula over all pairs (DeLong, DeLong & Clarke-Pearson 1988)"
    p, n = score[label == 1], score[label == 0]
    wins = (p[:, None] > n[None]) + 0.5 * (p[:, None] == n[None])
    return np.sqrt(np.var(wins.mean(1), ddof=1) / len(p) + np.var(wins.mean(0), ddof=1) / len(n))


@pytest.mark.parametrize("kind", ["usual", "rounded", "hard"])
def test_the_interval_is_delongs(kind):
    label, score = drawn(kind, 600)
    low, high = evaluate(label, score).roc_auc_interval()
    assert high - low == pytest.approx(2 * 1.959964 * delong(label, score), rel=1e-6) and (low + high) / 2 == pytest.approx(evaluate(label, score).roc_auc)


def test_the_interval_covers_the_truth():
    "Binormal scores with an AUC of 0.76: a 90 % interval holds it in about 90 % of 400 experiments"
    truth, held = 0.7602499, 0
    for seed in range(400):
        r = RNG(seed)
        label = np.arange(300) % 3 == 0
        low, high = evaluate(label, 1 / (1 + np.exp(-(r.normal(size=300) + label)))).roc_auc_interval(0.9)
        held += low <= truth <= high
    assert 0.85 < held / 400 < 0.95


def test_a_perfect_score_has_a_narrow_interval(): assert evaluate([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]).roc_auc_interval() == (1, 1)


# ---- slices ----


def test_slices_are_evaluations_of_their_rows():
    label, score = drawn("usual", 60_000)
    by = RNG(1).choice(np.array(["UA", "AA", None], dtype=object), 60_000)
    e = evaluate(label, score, by)
    assert list(e.slices) == ["AA", "UA", None] and sum(x.count for x in e.slices.values()) == e.count
    for value, x in e.slices.items():
        rows = by == value
        assert len(x.state.buckets.keys) <= SLICE_BINS and x.count == rows.sum() and x.positives == label[rows].sum()
        error = abs(x.roc_auc - metrics.roc_auc_score(label[rows], score[rows]))
        assert error <= x.roc_auc_error < 1e-3 and error < 1e-5 and x.brier == pytest.approx(metrics.brier_score_loss(label[rows], score[rows]))
    assert evaluate(label, score).slices == {}


@pytest.mark.parametrize(("by", "values"), [
    (np.array([2, 1, 2, 1]), [1, 2]), (xr.DataArray(np.array([1, 0, 1, -1], dtype="i1"), dims="row", attrs={"categories": ["x", "y"]}), ["x", "y", None]),
    (np.array([True, False, True, False]), [False, True]), (np.array([1.5, np.nan, 1.5, np.nan]), [1.5, None]),
    (np.array(["2013-01", "2013-02", "2013-01", "NaT"], dtype="M8[ns]"), [np.datetime64("2013-01"), np.datetime64("2013-02"), None]), (["b", "a", "b", "a"], ["a", "b"]),
])
def test_slices_by_any_kind(by, values):
    e = evaluate([0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4], by)
    assert list(e.slices) == values and sum(x.count for x in e.slices.values()) == 4
    assert len(e.to_frame()) == len(values) + 1 and e._repr_html_()


def test_too_many_slices():
    with pytest.raises(ParameterError, match="`by` has more than 1,000 values"): evaluate(np.arange(SLICES + 1) % 2, np.zeros(SLICES + 1), np.arange(SLICES + 1))


# ---- edges ----


@pytest.mark.parametrize("label", [[1, 1, 1], [0, 0, 0]])
def test_one_class_only(label):
    e = evaluate(label, [0.2, 0.5, 0.5])
    assert np.isnan(e.roc_auc) and np.isnan(e.roc_auc_interval()).all() and not np.isnan(e.log_loss) and e.brier == pytest.approx(np.mean((np.array(label) - [0.2, 0.5, 0.5]) ** 2))
    assert (e.pr_auc == 1) if label[0] else np.isnan(e.pr_auc)
    for text in (repr(e), e._repr_html_()): assert "one class only: ROC-AUC is not defined" in text
    assert len(e.curve("roc")) == 3 and len(e.curve("pr")) == 2


def test_no_rows_and_one_row():
    e = evaluate([], [])
    assert (e.count, e.positives) == (0, 0) and all(np.isnan(x) for x in (e.roc_auc, e.pr_auc, e.log_loss, e.brier, e.ece, *e.roc_auc_interval()))
    assert "no rows: ROC-AUC is not defined" in e._repr_html_() and len(e.curve("calibration")) == 0 and e.at(0.5).flagged == 0
    assert evaluate([1], [0.75]).brier == 0.0625 and np.isnan(evaluate([1], [0.75]).roc_auc)


def test_certain_and_wrong_is_a_finite_loss_as_in_scikit_learn():
    for kind in (np.float64, np.float32):
        score = np.array([1, 0, 1], dtype=kind)
        assert evaluate([0, 1, 1], score).log_loss == pytest.approx(metrics.log_loss([0, 1, 1], score), rel=1e-6)


@pytest.mark.parametrize(("label", "score", "message"), [
    ([0, 1], [0.2, 1.0001], "from 0 to 1; these go from 0.2 to 1.0001"), ([0, 1], [-0.1, 0.5], "these go from -0.1 to 0.5"),
    ([0, 1], [0.1, np.inf], "to inf"), ([0, 1, 1], [np.nan, np.nan, 1], "2 scores are NaN"),
    ([0, 3], [0.1, 0.2], "A label is 0 or 1 (or bool), not 3"), ([0, np.nan], [0.1, 0.2], "not nan"), (["no", "yes"], [0.1, 0.2], "not no"), ([0, 1], ["a", "b"], "these have dtype <U1"),
    ([0, 1], [0.1], "2 of label, 1 of score"), ([[0], [1]], [0.1, 0.2], "label has 2 dimensions"), ([0], [[0.1]], "score has 2 dimensions"),
])
def test_what_cannot_be_evaluated_is_refused(label, score, message):
    with pytest.raises(ParameterError, match=re.escape(message)): evaluate(label, score)


def test_slices_of_another_length_are_refused():
    with pytest.raises(ParameterError, match="2 of label, 2 of score, 3 of by"): evaluate([0, 1], [0.1, 0.2], [1, 2, 3])


# ---- larger than memory, and as a page ----


def test_dask_backed_arrays_give_the_same():
    label, score = drawn("usual", 10_000)
    whole = evaluate(label, score)
    e = evaluate(xr.DataArray(da.from_array(label, chunks=3000), dims="row"), xr.DataArray(da.from_array(score, chunks=3000), dims="row"))
    assert isinstance(e, Evaluation) and e.roc_auc == whole.roc_auc and e.log_loss == pytest.approx(whole.log_loss, rel=1e-12)


def test_the_page_is_sound():
    from test_summary import Page
    label, score = drawn("usual", 5000)
    e = evaluate(label, score, np.where(np.arange(5000) % 2, "<a>", "b").astype(object))
    html = e._repr_html_()
    page = Page(html)
    assert f"{e.count:,} rows, {e.positives:,} positive" in page.text and "<a>" in page.text and f"{e.roc_auc:.3f}" in page.text
    assert not re.search(r"https?:|src=|href=|@import|url\(|<script", html) and sum(t == "svg" for t, _ in page.tags) == 2
    assert list(e.to_frame().index) == ["all", "<a>", "b"] and repr(e).startswith("Evaluation of 5,000 rows\n")
