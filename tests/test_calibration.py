"""Calibration: scikit-learn's curves from counted scores, rising, honest at the ends

Whatever the rows come as.
"""

import numpy as np
import pytest
from dask import array as da
from hypothesis import given, settings, strategies as st
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from scalai_nb.errors import ContractViolation, ParameterError
from scalai_nb.evaluation import calibration
from scalai_nb.evaluation.calibration import (
    Calibrated,
    Calibration,
    calibrate,
    curve_of,
    log_odds,
    pooled,
)
from scalai_nb.evaluation.evaluation import evaluate


def rows(n, seed=0, power=2.0, dtype=np.float64):
    r = np.random.default_rng(seed)
    truth = r.beta(1, 4, n)
    return (
        r.random(n) < truth,
        (1 / (1 + np.exp(-power * log_odds(truth)))).astype(dtype),
        r.integers(0, 4, n).astype(float),
    )


# ---- isotonic


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 400), st.booleans(), st.booleans())
def test_isotonic_pools_are_scikit_learns(seed, n, ties, weighted):
    label, score, weight = rows(n, seed)
    if ties:
        score = score.round(2)
    label[:2], weight[:2] = (True, False), 1
    if not weighted:
        weight = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "STEEP", np.inf)
        mine = calibrate(label, score, weight=weight)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(score, label, sample_weight=weight)
    edge = 1 / ((n if weight is None else weight.sum()) + 2)
    assert (
        np.allclose(mine.y, theirs.predict(mine.x).clip(edge, 1 - edge), atol=1e-9)
        and (np.diff(mine.x) > 0).all()
    )
    assert set(np.unique(theirs.y_thresholds_.clip(edge, 1 - edge)).round(9)) == set(
        mine.y.round(9)
    ), "a point for each pool"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 400), st.booleans())
def test_the_last_bit_of_a_score_does_not_matter(seed, n, narrow):
    label, score, _ = rows(n, seed)
    label[:2] = True, False
    c = calibrate(label, 0.5 + score / 1000 if narrow else score)
    assert (np.diff(c.y) >= 0).all() and (np.diff(c.y) * c.x[1:] <= 10.001 * np.diff(c.x)).all()
    at = c.x.astype("float32")
    assert abs(c(np.nextafter(at, np.float32(1))) - c(at)).max() < 2e-6


def test_isotonic_of_binned_scores_differs_by_a_bin():
    label, score, _ = rows(300_000)
    assert evaluate(label, score).state.binned
    mine, theirs = (
        calibrate(label, score),
        IsotonicRegression(out_of_bounds="clip").fit(score, label),
    )
    apart = abs(mine(score) - theirs.predict(score))
    assert apart.mean() < 5e-3 and np.quantile(apart, 0.99) < 0.03
    assert len(mine.x) < 1000, "points, not rows: they go into a graph"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 10)), min_size=1, max_size=60))
def test_pools_rise_and_keep_the_mean(pairs):
    share, weight = np.array(pairs).T
    begins = pooled(share, weight)
    means = np.add.reduceat(share * weight, begins[:-1]) / np.add.reduceat(weight, begins[:-1])
    theirs = (
        IsotonicRegression()
        .fit(np.arange(len(share)), share, sample_weight=weight)
        .predict(np.arange(len(share)))
    )
    assert (np.diff(means) > -1e-12).all() and np.allclose(
        np.repeat(means, np.diff(begins)), theirs, atol=1e-9
    )


def test_no_probability_is_certain():
    c = calibrate([0] * 50 + [1] * 50, np.r_[np.full(50, 0.2), np.full(50, 0.9)])
    assert c([0, 0.2, 0.9, 1]).tolist() == [1 / 102, 1 / 102, 101 / 102, 101 / 102]


# ---- sigmoid


@pytest.mark.parametrize("n", [40, 5000])
def test_sigmoid_is_platts(n):
    label, score, weight = rows(n)
    for w in (None, weight + 1):
        c, theirs = (
            calibrate(label, score, "sigmoid", weight=w),
            _SigmoidCalibration().fit(log_odds(score), label, w),
        )
        if w is None:
            assert np.allclose([c.x[0], c.y[0]], [-theirs.a_, -theirs.b_], rtol=1e-3, atol=1e-4)
        assert np.allclose(c(score), theirs.predict(log_odds(score)), atol=2e-3)


@pytest.mark.parametrize("kind", ["isotonic", "sigmoid"])
def test_perfect_and_useless_scores_are_calibrated(kind):
    label = np.arange(1000) % 4 == 0
    for score in (label.astype(float), np.full(1000, 0.7)):
        c = calibrate(label, score, kind)
        assert np.isfinite(c(score)).all() and evaluate(label, c(score)).ece < 0.01


def test_it_becomes_true():
    label, score, _ = rows(50_000, power=3.0)
    half = slice(0, 25_000), slice(25_000, None)
    for kind in ("isotonic", "sigmoid"):
        c = calibrate(label[half[0]], score[half[0]], kind)
        before, after = (
            evaluate(label[half[1]], s).ece for s in (score[half[1]], c(score[half[1]]))
        )
        assert after < 0.01 < before


# ---- rows of any kind


def test_dask_float32_and_the_state_give_the_same():
    label, score, _ = rows(20_000, dtype=np.float32)
    at = np.linspace(0, 1, 99)
    here = calibrate(label, score)(at)
    assert np.allclose(
        calibrate(da.from_array(label, 3000), da.from_array(score, 3000))(at), here, atol=1e-12
    )
    assert np.allclose(curve_of(evaluate(label, score).state)(at), here, atol=1e-12)


def test_rows_without_weight_count_nothing():
    label, score, _ = rows(1000)
    weight = np.r_[np.ones(600), np.zeros(400)]
    for kind in ("isotonic", "sigmoid"):
        at = score[:600]
        assert np.allclose(
            calibrate(label, score, kind, weight=weight)(at),
            calibrate(label[:600], at, kind)(at),
            atol=1e-6,
        )


# ---- a calibrated estimator


def test_calibrated_estimator():
    label, score, _ = rows(2000)
    X = log_odds(score)[:, None].astype("float32")
    model = LogisticRegression().fit(X, np.where(label, "late", "on time"))
    c = Calibrated(model, Calibration("isotonic", np.array([0.0, 1.0]), np.array([0.2, 0.4])))
    p = c.predict_proba(X)
    assert (
        p.shape == (2000, 2)
        and np.allclose(p[:, 1], 0.2 + 0.2 * model.predict_proba(X)[:, 1])
        and np.allclose(p.sum(axis=1), 1)
    )
    assert (
        c.classes_.tolist() == ["late", "on time"]
        and set(c.predict(X)) == {"late"}
        and c.n_features_in_ == 1
    )


# ---- bad input


def test_bad_input():
    label, score, _ = rows(100)
    with pytest.raises(
        ParameterError,
        match="'isotone' is not in the kinds of calibration; known: isotonic, sigmoid",
    ):
        calibrate(label, score, "isotone")
    with pytest.raises(ContractViolation, match="both classes are needed"):
        calibrate(np.zeros(100), score)
    with pytest.raises(ContractViolation, match="both classes are needed"):
        calibrate(label, score, weight=label.astype(float))
    with pytest.raises(ParameterError, match="NaN"):
        calibrate(label, np.where(score > 0.1, score, np.nan))
    three = LogisticRegression().fit(score[:, None], np.arange(100) % 3)
    with pytest.raises(ParameterError, match="3 classes; a calibration is for two"):
        Calibrated(three, calibrate(label, score))
