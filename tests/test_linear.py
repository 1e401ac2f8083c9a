"""Linear models: scikit-learn's contract and coefficients, whatever the rows come as

Kernels against float64 NumPy.
"""

import tracemalloc
from dataclasses import astuple

import numpy as np
import pytest
import xarray as xr
from dask import array as da
from hypothesis import given, settings, strategies as st
from sklearn import linear_model
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator
from threadpoolctl import threadpool_info

from scalai_nb.compute.cluster import connect
from scalai_nb.compute.laws import alike, check_mergeable
from scalai_nb.environment import Environment
from scalai_nb.errors import ContractViolation, ParameterError, ScalaiError
from scalai_nb.kernels import linear as kernels
from scalai_nb.learn.features import rows as rows_module
from scalai_nb.learn.linear import solver
from scalai_nb.learn.features.labels import COUNTS, LABELS
from scalai_nb.learn.linear.regression import (
    SCATTER,
    LinearRegression,
    LogisticRegression,
    PoissonRegression,
)
from scalai_nb.learn.features.rows import Rows, fold_arrays
from scalai_nb.learn.linear.solver import slopes
from scalai_nb.learn.features.transform import Transform

LOCAL = Environment(
    name="test", root=None, cluster="local", workers=2, memory=2_000_000_000
)  # beyond 80 % a worker would pause
RNG = np.random.default_rng
ESTIMATORS = {
    "linear": LinearRegression(),
    "logistic": LogisticRegression(tol=1e-9),
    "poisson": PoissonRegression(tol=1e-9),
}


def data(kind, n=2000, features=4, classes=3, seed=0, dtype=np.float64):
    "Features, targets and weights, one in eight of them 0"
    r = RNG(seed)
    X = r.normal(0.5, np.linspace(0.5, 2, features), (n, features))
    W = r.normal(size=(features, classes))
    y = {
        "linear": lambda: X @ W[:, 0] + r.normal(size=n),
        "logistic": lambda: r.random(n) < 1 / (1 + np.exp(-(X @ W[:, 0]))),
        "poisson": lambda: r.poisson(np.exp(0.3 * X @ W[:, 0])),
        "softmax": lambda: (X @ W + r.gumbel(size=(n, classes))).argmax(axis=1),
    }[kind]()
    return X.astype(dtype), y, r.integers(0, 8, n) / 4


# ---- scikit-learn's contract


@pytest.mark.parametrize(
    "estimator",
    [
        LinearRegression(),
        LinearRegression(alpha=1.0),
        LogisticRegression(),
        LogisticRegression(C=0.5, l1_ratio=0.5),
        PoissonRegression(),
    ],
)
def test_contract(estimator):
    done = check_estimator(estimator, on_skip=None)
    assert [c["check_name"] for c in done if c["status"] != "passed"] == [
        "check_array_api_input"
    ], "it wants SCIPY_ARRAY_API"


# ---- kernels against NumPy in float64


def reference(X, y, weight, W, family):
    "Loss, gradient and hessian in plain float64 NumPy"
    A = np.column_stack([X.astype(np.float64), np.ones(len(X))])
    w = np.ones(len(X)) if weight is None else weight
    eta = A @ W.T
    if family == "softmax":
        lift = eta - eta.max(axis=1, keepdims=True)
        P = np.exp(lift) / np.exp(lift).sum(axis=1, keepdims=True)
        one = np.eye(len(W))[y]
        loss = w @ (np.log(np.exp(lift).sum(axis=1)) - lift[np.arange(len(X)), y])
        curve = np.einsum("i,ik,kl->ikl", w, P, np.eye(len(W))) - np.einsum("i,ik,il->ikl", w, P, P)
        return (
            loss,
            ((P - one) * w[:, None]).T @ A,
            np.einsum("ikl,ia,ib->kalb", curve, A, A).reshape(W.size, W.size),
        )
    z = eta[:, 0]
    part, slope, curve = {
        "squared": lambda: ((z - y) ** 2 / 2, z - y, np.ones(len(z))),
        "logistic": lambda: (
            np.logaddexp(0, z) - y * z,
            1 / (1 + np.exp(-z)) - y,
            1 / (2 + np.exp(z) + np.exp(-z)),
        ),
        "poisson": lambda: (np.exp(z) - y * z, np.exp(z) - y, np.exp(z)),
    }[family]()
    return w @ part, (A.T @ (w * slope))[None], (A * (w * curve)[:, None]).T @ A


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(sorted(kernels.FAMILIES)),
    st.sampled_from([0, 1, 3, 5, 1100]),
    st.sampled_from([1, 2, 7, 33]),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
)
def test_slopes_are_those_of_numpy(seed, family, n, features, dtype, weighted):
    r = RNG(seed)
    X = r.normal(size=(n, features)).astype(dtype)
    weight = np.where(r.random(n) < 0.2, 0, r.random(n)) if weighted else None
    outputs = 3 if family == "softmax" else 1
    y = r.integers(0, {"softmax": 3, "logistic": 2}.get(family, 5), n)
    W = r.normal(size=(outputs, features + 1)) / np.sqrt(features)
    for curved in (False, True):
        loss, gradient, hessian = kernels.slopes(X, y, weight, W, family, curved)
        exact = reference(X, y, weight, W, family)
        tol = {"rtol": 0, "atol": (n + 1) * (1e-6 if dtype == np.float32 else 1e-13) * 10}
        np.testing.assert_allclose(loss, exact[0], **tol)
        np.testing.assert_allclose(gradient, exact[1], **tol)
        if curved:
            np.testing.assert_allclose(hessian, exact[2], **tol)
        else:
            assert hessian.shape == (0, 0)


def test_margins_far_from_zero_neither_overflow_nor_vanish():
    X, y = np.array([[800.0], [-800.0], [1e6], [-1e6]]), np.array([0, 1, 1, 0])
    loss, gradient, hessian = kernels.slopes(X, y, None, np.array([[1.0, 0.0]]), "logistic", True)
    assert loss == 1600 and gradient.tolist() == [[1600, 0]] and np.isfinite(hessian).all()
    long = np.full(
        (2000, 1), 1e-3
    )  # the product of 1 + exp(-|margin|) over all rows would be 2 ** 2000
    assert np.isclose(
        kernels.slopes(long, np.zeros(2000), None, np.zeros((1, 2)), "logistic")[0],
        2000 * np.log(2),
    )


def test_a_weight_of_zero_hides_an_overflow_but_not_what_is_not_finite():
    X, y, W = np.array([[1.0], [1e6], [2.0]]), np.array([0, 1, 1]), np.array([[1.0, 0.0]])
    weight = np.array([1.0, 0, 1])
    for got, want in zip(
        kernels.slopes(X, y, weight, W, "poisson", True),
        kernels.slopes(X[[0, 2]], y[[0, 2]], None, W, "poisson", True),
        strict=True,
    ):
        np.testing.assert_allclose(got, want)
    for family in kernels.FAMILIES:
        for bad in (np.inf, -np.inf, np.nan):
            X[1] = bad
            assert not np.isfinite(
                kernels.slopes(X, y, weight, np.ones((2 if family == "softmax" else 1, 2)), family)[
                    1
                ]
            ).all()


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.ones((3, 2), np.int32), "X is int32; accepted: float32 and float64"),
        (np.ones((3, 2), np.float16), "X is float16"),
        (np.ones((3, 2), order="F"), "C-contiguous"),
        (np.ones(3), "C-contiguous"),
        (np.ones((6, 2))[::2], "C-contiguous"),
    ],
)
def test_kernels_refuse_what_they_cannot_take(X, words):
    with pytest.raises(ParameterError, match=words):
        kernels.slopes(X, np.zeros(3), None, np.zeros((1, 3)), "logistic")
    with pytest.raises(ParameterError, match=words):
        kernels.scatter(X, None, None)


@settings(max_examples=40, deadline=None, database=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 2, 700, 2500]),
    st.sampled_from([1, 3, 40]),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
)
def test_scatter_is_that_of_numpy_far_from_zero_too(seed, n, features, dtype, weighted):
    r = RNG(seed)
    X, y = (1e4 + r.normal(size=(n, features))).astype(dtype), r.normal(size=(n, 1))
    weight = np.where(r.random(n) < 0.3, 0, r.random(n)) if weighted else None
    total, mean, about = kernels.scatter(X, y, weight)
    w, Z = np.ones(n) if weight is None else weight, np.column_stack([X.astype(np.float64), y])
    assert np.isclose(total, w.sum())
    if total == 0:
        return
    center = w @ Z / w.sum()
    np.testing.assert_allclose(
        mean, center, rtol=1e-13, atol=1e-15
    )  # a mean near 0 is a difference of large sums, in NumPy too
    np.testing.assert_allclose(
        about, ((Z - center) * w[:, None]).T @ (Z - center), rtol=1e-9, atol=1e-10 * (n + 1)
    )


@settings(max_examples=40, deadline=None, database=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_descend_ends_where_no_coordinate_wants_to_move(seed, size):
    r = RNG(seed)
    B = r.normal(size=(size + 2, size))
    H, g, w, l1 = (
        B.T @ B,
        r.normal(size=size),
        r.normal(size=size) * (r.random(size) < 0.5),
        np.where(r.random(size) < 0.3, 0, r.random(size)),
    )
    s = kernels.descend(H, g, w, l1)
    assert (
        solver.steepness(g + H @ s, np.where(np.abs(w + s) < 1e-12, 0, w + s), l1)
        < 1e-7 * np.abs(H).max()
    )


# ---- laws


def blocks(kind, sizes=(300, 0, 71), **options):
    return [data(kind, n, seed=i, **options) for i, n in enumerate(sizes)]


def joined(blocks):
    return tuple(np.concatenate(x) for x in zip(*blocks, strict=True))


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize(
    ("kind", "family", "outputs"),
    [
        ("linear", "squared", 1),
        ("logistic", "logistic", 1),
        ("poisson", "poisson", 1),
        ("softmax", "softmax", 3),
    ],
)
def test_laws_of_a_pass(kind, family, outputs, curved):
    check_mergeable(
        slopes(RNG(1).normal(size=(outputs, 5)) / 4, family, curved), blocks(kind), joined
    )


@pytest.mark.parametrize("sizes", [(300, 0, 71), (0, 0, 0), (1, 1, 1), (0, 1, 2000)])
@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [(SCATTER, "linear"), (LABELS, "softmax"), (LABELS, "logistic"), (COUNTS, "poisson")],
)
def test_laws_of_what_comes_first(algorithm, kind, sizes):
    check_mergeable(algorithm, blocks(kind, sizes), joined)


def test_labels_of_any_kind_are_counted():
    words = np.array(["b", "a", "b"], object)
    for y in (
        words,
        words.astype(str),
        np.array([2.0, 1, 2]),
        np.array([True, False, True]),
        np.array([2**62, -5, 2**62]),
        np.array([7, 3, 7], "u1"),
    ):
        found = fold_arrays(LABELS, np.ones((3, 1)), y, np.array([1.0, 2, 4]))
        assert (
            found.values.tolist() == np.unique(y).tolist()
            and found.weight.tolist() == [2, 5]
            and found.counts.tolist() == [1, 2]
        )


# ---- the same coefficients as scikit-learn


def objective(model, X, y, w, C, l1_ratio):
    "What a logistic regression minimises, in float64"
    coef, classes = model.coef_, model.classes_
    eta = X @ coef.T + model.intercept_
    eta = np.column_stack([np.zeros(len(X)), eta]) if len(classes) == 2 else eta
    top = eta.max(axis=1)
    loss = (
        np.log(np.exp(eta - top[:, None]).sum(axis=1))
        + top
        - eta[np.arange(len(X)), np.searchsorted(classes, y)]
    )
    return C * (w @ loss) + l1_ratio * np.abs(coef).sum() + (1 - l1_ratio) / 2 * (coef**2).sum()


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l1_ratio", [0, 0.5, 1])
@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_logistic_regression_is_scikit_learns(kind, l1_ratio, weighted, intercept):
    X, y, w = data(kind, 500)
    w, C = w if weighted else np.ones(500), 0.05
    ours = LogisticRegression(C, l1_ratio=l1_ratio, fit_intercept=intercept, tol=1e-9).fit(
        X, y, w if weighted else None
    )
    solver, more = (
        ("saga", {"random_state": 0})
        if l1_ratio
        else ("newton-cg" if kind == "softmax" else "newton-cholesky", {})
    )
    theirs = linear_model.LogisticRegression(
        C=C,
        l1_ratio=l1_ratio,
        fit_intercept=intercept,
        solver=solver,
        tol=1e-9,
        max_iter=20_000,
        **more,
    ).fit(X, y, w)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-4)
    assert objective(ours, X, y, w, C, l1_ratio) <= objective(theirs, X, y, w, C, l1_ratio) * (
        1 + 1e-8
    )
    assert not l1_ratio or ((ours.coef_ == 0) == (theirs.coef_ == 0)).all()
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)
    np.testing.assert_allclose(ours.predict_log_proba(X), theirs.predict_log_proba(X), atol=1e-3)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-3)


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_class_weights_and_no_penalty_are_scikit_learns(kind):
    X, y, w = data(kind, 800)
    y = y.astype(int)
    for class_weight in ("balanced", {0: 3.0}, {0: 0.5, 1: 2.0}):
        ours = LogisticRegression(C=np.inf, class_weight=class_weight, tol=1e-8).fit(X, y, w)
        theirs = linear_model.LogisticRegression(
            C=np.inf, class_weight=class_weight, solver="newton-cg", tol=1e-8, max_iter=1000
        ).fit(X, y, w)
        np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [0, 0.3])
@pytest.mark.parametrize("intercept", [True, False])
def test_regressions_are_scikit_learns(alpha, weighted, intercept):
    X, y, w = data("linear", 500)
    w = w if weighted else None
    ours = LinearRegression(alpha=100 * alpha, fit_intercept=intercept).fit(X, y, w)
    theirs = linear_model.Ridge(alpha=100 * alpha, fit_intercept=intercept, solver="cholesky").fit(
        X, y, w
    )
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-9)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-8, atol=1e-8)
    X, y, _ = data("poisson", 500)
    ours = PoissonRegression(alpha, fit_intercept=intercept, tol=1e-9).fit(X, y, w)
    theirs = linear_model.PoissonRegressor(
        alpha=alpha, fit_intercept=intercept, solver="newton-cholesky", tol=1e-9
    ).fit(X, y, w)
    np.testing.assert_allclose(
        np.r_[ours.coef_, ours.intercept_], np.r_[theirs.coef_, theirs.intercept_], atol=1e-6
    )
    assert np.isclose(ours.score(X, y, w), theirs.score(X, y, w))


def test_several_targets_at_once():
    X, y, w = data("linear")
    Y = np.column_stack([y, -2 * y + X[:, 0]])
    both = LinearRegression().fit(X, Y, w)
    for j in (0, 1):
        np.testing.assert_allclose(both.coef_[j], LinearRegression().fit(X, Y[:, j], w).coef_)
    assert both.predict(X).shape == Y.shape and both.intercept_.shape == (2,)


def test_rates_with_exposures_are_counts_with_offsets():
    """A count y over an exposure e is learnt from as y / e with weight e

    At the minimum of the unpenalised loss, expected and observed totals agree.
    """
    X, y, _ = data("poisson")
    exposure = RNG(3).uniform(0.5, 3, len(y))
    model = PoissonRegression(alpha=0, tol=1e-9).fit(X, y / exposure, exposure)
    assert np.isclose(model.predict(X) @ exposure, y.sum())


# ---- many rows: a sample first, then gradients over all


@pytest.mark.parametrize(
    ("kind", "l1_ratio"),
    [("logistic", 0), ("logistic", 0.7), ("softmax", 0), ("softmax", 1), ("poisson", 0)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_rows_reach_the_minimum_over_all_of_them(kind, l1_ratio, dtype):
    X, y, w = data(kind, 60_000, dtype=dtype)
    assert solver._levels(60_000, 15), "all rows are too few for a sample: nothing is tested"
    estimator = (
        PoissonRegression(0.01, tol=1e-6)
        if kind == "poisson"
        else LogisticRegression(1e-3, l1_ratio=l1_ratio, tol=1e-6)
    )
    sampled = clone(estimator).fit(X, y, w)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "_levels", lambda rows, size: [])
        whole = clone(estimator).set_params(tol=1e-8).fit(X.astype(np.float64), y, w)
    np.testing.assert_allclose(sampled.coef_, whole.coef_, atol=2e-5)
    assert sampled.n_iter_ <= 6


def test_a_sorted_table_is_sampled_from_everywhere():
    X, y, _ = data("logistic", 60_000)
    order = np.lexsort([X[:, 0], y])
    model = LogisticRegression(tol=1e-7).fit(X[order], y[order])
    np.testing.assert_allclose(model.coef_, LogisticRegression(tol=1e-7).fit(X, y).coef_, atol=1e-5)
    assert model.n_iter_ <= 6


@pytest.mark.parametrize("l1_ratio", [0, 0.5])
def test_many_coefficients_are_found_without_their_curvature(monkeypatch, l1_ratio):
    X, y, w = data("softmax", 3000)
    exact = LogisticRegression(0.02, l1_ratio=l1_ratio, tol=1e-9).fit(X, y, w)
    monkeypatch.setattr(solver, "LARGE", 3)
    np.testing.assert_allclose(
        LogisticRegression(0.02, l1_ratio=l1_ratio, tol=1e-7, max_iter=2000).fit(X, y, w).coef_,
        exact.coef_,
        atol=1e-4,
    )


def test_a_warm_start_keeps_what_is_known():
    X, y, w = data("logistic", 60_000)
    model = LogisticRegression(tol=1e-6, warm_start=True).fit(X, y, w)
    coef = model.coef_.copy()
    assert model.fit(X, y, w).n_iter_ == 1 and np.array_equal(model.coef_, coef)
    counts = PoissonRegression(tol=1e-7, warm_start=True).fit(X, y, w)
    assert counts.fit(X, y, w).n_iter_ == 1


def test_too_few_steps_warn():
    X, y, _ = data("logistic")
    with pytest.warns(
        ConvergenceWarning,
        match=(
            "The gradient is .*, not 1e-09: after max_iter=1 steps. Scale the features, or "
            "raise max_iter"
        ),
    ):
        LogisticRegression(tol=1e-9, max_iter=1).fit(X, y)


def test_what_rounding_hides_is_said():
    X, y, _ = data("poisson", 60_000, dtype=np.float32)
    with pytest.warns(ConvergenceWarning, match="rounding hides any descent after .* or raise tol"):
        PoissonRegression(0, tol=1e-10).fit(1e3 * X, y)


# ---- hard samples


def spy(monkeypatch, calls):
    "Append to `calls` how each minimisation ends"
    monkeypatch.setattr(
        solver, "minimise", lambda *a, f=solver.minimise, **k: calls.append(f(*a, **k)) or calls[-1]
    )


def test_rare_classes_are_sampled_more_often(monkeypatch):
    r, ends = RNG(0), []
    X = r.normal(size=(200_000, 3))
    y = (r.random(200_000) < 1 / (1 + np.exp(8 - X @ [1, 1, 0]))).astype(int) + 2 * (
        r.random(200_000) < 3e-4
    )
    assert 50 < np.bincount(y)[1:3].sum() < 2000
    for target in (y > 0, y):
        exact = LogisticRegression(tol=1e-8)
        with monkeypatch.context() as patch:
            patch.setattr(solver, "_levels", lambda rows, size: [])
            exact.fit(X, target)
        spy(monkeypatch, ends)
        model = LogisticRegression(tol=1e-8).fit(X, target)
        np.testing.assert_allclose(model.coef_, exact.coef_, atol=1e-3)
        assert model.n_iter_ <= 8


def test_features_that_a_sample_hardly_knows_do_not_run_away():
    r = RNG(0)
    code = np.minimum(r.zipf(1.7, 60_000), 60)
    X = np.column_stack([r.normal(size=(60_000, 2)), code[:, None] == np.arange(1, 60)]).astype(
        np.float32
    )
    y = r.random(60_000) < 1 / (1 + np.exp(-X @ r.normal(size=61)))
    assert solver._levels(60_000, 62) and X[:, 2:].sum(axis=0).min() < 60
    model = LogisticRegression(tol=1e-6).fit(X, y)
    theirs = linear_model.LogisticRegression(tol=1e-8, solver="newton-cholesky").fit(
        X.astype(float), y
    )
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=2e-2)
    assert (
        objective(model, X, y, np.ones(len(y)), 1.0, 0)
        <= objective(theirs, X, y, np.ones(len(y)), 1.0, 0) * (1 + 1e-8)
        and model.n_iter_ <= 8
    )


def test_the_curvature_of_what_a_sample_does_not_know_is_guessed():
    X, y, w = data("logistic", 40_000)
    X[:, 3] *= RNG(1).random(40_000) < 1e-3
    rare = X[:, 3] != 0
    W = np.array([[0.3, -0.2, 0.1, 0.2, 0.1]])
    problem = solver.Problem("logistic", 1, 4, l2=1e-5)

    def fold(algorithm):
        return fold_arrays(algorithm, X, y, w)

    exact = solver.value(problem, fold, curved=True)(W.ravel())[2]
    blind = solver.value(
        problem, lambda algorithm: fold_arrays(algorithm, X[~rare], y[~rare], w[~rare]), curved=True
    )(W.ravel())[2]
    guess = solver._supported(problem, fold, X[~rare], blind)
    assert blind[3, 3] < exact[3, 3] / 50 and 0.5 < guess[3, 3] / exact[3, 3] < 2
    assert np.array_equal(
        np.delete(np.delete(guess, 3, 0), 3, 1), np.delete(np.delete(blind, 3, 0), 3, 1)
    )


def test_where_the_sample_misleads_the_curvature_of_all_rows_is_summed(monkeypatch):
    "Counts with heavy tails: a few rows are most of the curvature"
    r, ends = RNG(0), []
    X = r.normal(size=(60_000, 3))
    y = r.poisson(np.exp(X @ [2.0, 1.5, 1.0]))
    spy(monkeypatch, ends)
    model = PoissonRegression(1e-3, tol=1e-5).fit(X, y)
    assert len(ends) > 2 and ends[-1].steep <= 1e-5
    theirs = linear_model.PoissonRegressor(
        alpha=1e-3, tol=1e-8, solver="newton-cholesky", max_iter=1000
    ).fit(X, y)
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=1e-5)


# ---- any source, the same result


def forms(X, y, w):
    "The same rows in all forms that are accepted: name -> arguments of fit"
    dims = ("row", "feature")
    chunked, parts = (700, X.shape[1]), [slice(i, i + 300) for i in range(0, len(X), 300)]

    def reused():
        buffer = np.empty((300, X.shape[1]), X.dtype)
        for p in parts:
            view = buffer[: len(y[p])]
            view[:] = X[p]
            yield view, y[p], w[p]

    columns = xr.Dataset(
        {**{f"x{j}": ("row", X[:, j]) for j in range(X.shape[1])}, "y": ("row", y), "w": ("row", w)}
    )
    return {
        "columns of memory": (np.asfortranarray(X), y, w),
        "every second row": (np.repeat(X, 2, axis=0)[::2], y, w),
        "lists": (X.tolist(), y.tolist(), w.tolist()),
        "DataArray": (
            xr.DataArray(X, dims=dims),
            xr.DataArray(y, dims="row"),
            xr.DataArray(w, dims="row"),
        ),
        "Dask": (
            da.from_array(X, chunks=chunked),
            da.from_array(y, chunks=500),
            da.from_array(w, chunks=500),
        ),
        "Dask with arrays": (da.from_array(X, chunks=(700, 2)), y, w),
        "DataArray on Dask": (xr.DataArray(da.from_array(X, chunks=chunked), dims=dims), y, w),
        "Dataset": (columns, "y", "w"),
        "Dataset on Dask": (columns.chunk(row=700), "y", "w"),
        "source": (Rows(reused),),
        "list of blocks": ([(X[p], y[p], w[p]) for p in parts],),
    }


@pytest.mark.parametrize("name", forms(*data("linear", 10)))
@pytest.mark.parametrize("kind", [*ESTIMATORS, "softmax"])
def test_any_form_of_rows_gives_the_same(kind, name):
    X, y, w = data(kind)
    estimator = ESTIMATORS.get(kind, ESTIMATORS["logistic"])
    plain, other = clone(estimator).fit(X, y, w), clone(estimator).fit(*forms(X, y, w)[name])
    np.testing.assert_allclose(other.coef_, plain.coef_, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(other.intercept_, plain.intercept_, rtol=1e-7, atol=1e-8)
    assert other.n_features_in_ == 4
    if hasattr(plain, "classes_"):
        assert np.array_equal(other.classes_, plain.classes_)


def test_whole_numbers_and_float32_are_learnt_from():
    X, y, _ = data("logistic")
    whole = (10 * X).astype("i2")
    np.testing.assert_allclose(
        LogisticRegression(tol=1e-9).fit(whole, y).coef_,
        LogisticRegression(tol=1e-9).fit(whole.astype(float), y).coef_,
    )
    np.testing.assert_allclose(
        LogisticRegression(tol=1e-6).fit(X.astype("f4"), y).coef_,
        LogisticRegression(tol=1e-9).fit(X, y).coef_,
        atol=1e-4,
    )


@pytest.fixture(scope="module")
def client():
    with connect(LOCAL) as client:
        yield client


@pytest.mark.parametrize("kind", [*ESTIMATORS, "softmax"])
def test_a_cluster_learns_the_same(kind, client):
    X, y, w = data(kind)
    estimator = ESTIMATORS.get(kind, ESTIMATORS["logistic"])
    X_, y_, w_ = forms(X, y, w)["Dask"]
    if kind == "logistic":
        X_ = X_.persist()
    there = clone(estimator).fit(X_, y_, w_, client=client)
    np.testing.assert_allclose(
        there.coef_, clone(estimator).fit(X, y, w).coef_, rtol=1e-7, atol=1e-8
    )


def test_the_targets_are_counted_without_reading_the_features():
    X, y, _ = data("logistic")
    read = []
    ds = xr.Dataset(
        {
            "x": (
                "row",
                da.from_array(X[:, 0], chunks=500).map_blocks(
                    lambda b: read.append(len(b)) or b, dtype=float, meta=np.empty(0)
                ),
            ),
            "y": ("row", da.from_array(y, chunks=500)),
        }
    )
    LogisticRegression(max_iter=100).fit(ds, "y")
    whole = sum(read)
    with pytest.raises(ValueError, match="one class only"):
        LogisticRegression().fit(ds.assign(y=ds.y & False), "y")
    assert whole and sum(read) == whole


def test_a_cluster_learns_from_a_sample_and_through_a_transform(client):
    X, y, _ = data("logistic", 60_000)
    ds = xr.Dataset(
        {
            "a": ("row", X[:, 0]),
            "b": ("row", X[:, 1]),
            "c": ("row", np.array(["x", "y", "z"], object)[RNG(5).integers(0, 3, 60_000)]),
            "late": ("row", y),
        }
    )
    t = Transform(numeric=["a", "b"], categorical=["c"]).fit(ds)
    plain = LogisticRegression(tol=1e-7).fit(t.transform(ds).values, y)
    there = LogisticRegression(tol=1e-7).fit(ds.chunk(row=9000), "late", transform=t, client=client)
    np.testing.assert_allclose(
        there.coef_, plain.coef_, atol=2e-4
    )  # the three categories and the intercept are nearly collinear
    np.testing.assert_allclose(
        there.predict_proba(ds, transform=t), plain.predict_proba(t.transform(ds)), atol=1e-5
    )


def test_columns_are_learnt_from_through_a_transform():
    X, y, w = data("logistic")
    ds = xr.Dataset(
        {
            "a": ("row", X[:, 0]),
            "b": ("row", X[:, 1]),
            "c": ("row", np.array(["x", "y", "z"], object)[RNG(5).integers(0, 3, len(X))]),
            "late": ("row", y),
            "w": ("row", w),
        }
    )
    t = Transform(numeric=["a", "b"], categorical=["c"]).fit(ds)
    plain = LogisticRegression(tol=1e-6).fit(t.transform(ds).values, y, w)
    for other in (
        LogisticRegression(tol=1e-6).fit(ds, "late", "w", transform=t),
        LogisticRegression(tol=1e-6).fit(t.blocks(ds, rows=300, label="late", weight="w")),
    ):
        np.testing.assert_allclose(other.coef_, plain.coef_, atol=1e-5)
    assert (
        PoissonRegression(tol=1e-6).fit(ds, "late", transform=t).n_features_in_
        == LinearRegression().fit(ds, "late", transform=t).n_features_in_
        == 5
    )


def test_predictions_for_dask_are_lazy_and_the_same():
    X, y, _ = data("softmax")
    lazy = da.from_array(X, chunks=(700, 2))
    model = LogisticRegression().fit(X, y)
    for name in ("predict", "predict_proba", "decision_function"):
        found = getattr(model, name)(lazy)
        assert isinstance(found, da.Array)
        np.testing.assert_allclose(found.compute(), getattr(model, name)(X))
        assert found.shape == getattr(model, name)(X).shape
    two = LogisticRegression().fit(X, y > 0)
    assert two.decision_function(lazy).compute().shape == (len(X),) and two.predict_proba(
        lazy
    ).shape == (len(X), 2)


def test_predictions_from_a_dataset_take_the_features_by_name():
    X, y, w = data("linear")
    ds = forms(X, y, w)["Dataset"][0]
    model = LinearRegression().fit(ds.drop_vars("w"), "y")
    assert model.feature_names_in_.tolist() == ["x0", "x1", "x2", "x3"]
    np.testing.assert_allclose(
        model.predict(ds[["x3", "x1", "x2", "x0"]]),
        model.predict(xr.DataArray(X, dims=("row", "feature"))),
    )


def test_more_rows_later_is_all_rows_at_once():
    X, y, w = data("linear")
    whole, parts = LinearRegression(alpha=2.0).fit(X, y, w), LinearRegression(alpha=2.0)
    for part in (slice(0, 1), slice(1, 900), slice(900, None)):
        parts.partial_fit(X[part], y[part], w[part])
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-10)
    assert (
        alike(astuple(parts.state_), astuple(whole.state_))
        and parts.fit(X[:9], y[:9]).state_.rows == 9
    )


def test_the_number_of_cores_changes_no_bit(monkeypatch):
    X, y, w = data("logistic", 150_000, dtype=np.float32)
    monkeypatch.setattr(rows_module, "PART", 40_000)

    def fitted(cores):
        monkeypatch.setattr(rows_module, "threads", lambda: cores)
        return LogisticRegression().fit(X, y, w).coef_.tobytes(), LinearRegression().fit(
            X, y, w
        ).coef_.tobytes()

    assert fitted(1) == fitted(2) == fitted(7)


def test_matrix_products_are_left_their_threads():
    X, y, _ = data("logistic", 1000)
    before = [p["num_threads"] for p in threadpool_info()]
    with pytest.raises(ValueError, match="NaN"):
        LogisticRegression().fit(_with(X, 0, np.nan), y)
    with rows_module.one_blas_thread():
        assert {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"} == {1}
    LogisticRegression().fit(X, y)
    assert [p["num_threads"] for p in threadpool_info()] == before


def test_nothing_of_the_size_of_the_data_is_made():
    X, y, _ = data("logistic", 200_000, 20, dtype=np.float32)
    y = y.astype(np.int64)
    LogisticRegression(tol=1e-6).fit(X[:100], y[:100])
    tracemalloc.start()
    LogisticRegression(tol=1e-6).fit(X, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.25 * X.nbytes


# ---- bad input


def test_the_label_and_the_features_must_be_there():
    X, y, w = data("logistic", 50)
    ds = forms(X, y, w)["Dataset"][0]
    for args, words in [
        ((ds, "z"), "'z' is no variable of the dataset"),
        ((ds, y), "name the label"),
        ((ds, None), "There is no y to learn from"),
        ((ds[["y"]], "y"), "has no numbers to learn from"),
        ((ds.assign(c=("row", ["a"] * 50)), "y"), "'c' has no numbers to learn from"),
        ((Rows(lambda: iter([(X, None)])),), "There is no y"),
        ((Rows(lambda: iter([(X, y)])), y), "leave y out"),
        (((b for b in [(X, y)]),), "can be read once"),
        ((Rows(lambda: iter([X])),), "There is no y"),
        ((Rows(lambda: iter([])),), "has no block"),
        ((Rows(lambda: iter([(X, y), (X[:, :2], y)])),), "Block 1 has the shape"),
        ((da.from_array(X), y[:9]), "y has the shape"),
        ((da.from_array(y), y), "Expected 2D array"),
    ]:
        with pytest.raises(ValueError, match=words):
            LogisticRegression().fit(*args)
    with pytest.raises(ParameterError, match="X is not a Dataset"):
        LogisticRegression().fit(X, y, transform=Transform(numeric=["a"]))
    for estimator in ESTIMATORS.values():
        with pytest.raises(ValueError, match="no y to learn from"):
            clone(estimator).fit(ds.drop_vars(["y", "w"]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [*ESTIMATORS, "softmax"])
def test_what_is_not_finite_is_refused_wherever_it_is(kind, bad):
    X, y, w = data(kind, 60_000)
    estimator = ESTIMATORS.get(kind, ESTIMATORS["logistic"])
    for form in (
        lambda X, y, w: (X, y, w),
        lambda X, y, w: forms(X, y, w)["Dask"],
        lambda X, y, w: forms(X, y, w)["source"],
    ):
        with pytest.raises(ScalaiError, match="Input X contains NaN or infinity"):
            clone(estimator).fit(*form(_with(X, 54_321, bad), y, w + 1))
    if kind not in ("logistic", "softmax"):
        with pytest.raises(ValueError, match="contains (NaN|infinity)"):
            clone(estimator).fit(X, _with(y, 54_321, bad))
    for weight in (bad, -1.0):
        for form in (lambda X, y, w: (X, y, w), lambda X, y, w: forms(X, y, w)["source"]):
            with pytest.raises(ValueError, match="weight"):
                clone(estimator).fit(*form(X, y, _with(w, 54_321, weight)))


def _with(x, at, value):
    "`x` with one value changed"
    x = x.astype(np.float64)
    x[at] = value
    return x


def test_targets_that_cannot_be_learnt_from():
    X = data("linear", 60)[0]
    for y, words in [
        (np.zeros(60), "one class only, .*; accepted: two classes or more"),
        (np.linspace(0, 1, 60), "Unknown label type: continuous"),
        (np.array(["a", None] * 30, object), "a label is missing"),
        (np.array([0, np.nan] * 30), "contains NaN"),
    ]:
        with pytest.raises(ValueError, match=words):
            LogisticRegression().fit(X, y)
    with pytest.raises(ContractViolation, match="y holds -1; accepted: counts from 0 on"):
        PoissonRegression().fit(X, np.arange(-1, 59))
    for estimator in (LinearRegression(), LogisticRegression(), PoissonRegression()):
        with pytest.raises(ValueError, match="must contain at least one non-zero"):
            estimator.fit(X, np.arange(60) % 2, np.zeros(60))
        with pytest.raises(ContractViolation, match="The weights of all rows are 0"):
            estimator.fit([(X, np.arange(60) % 2, np.zeros(60))])
        with pytest.raises(ValueError, match="0 sample"):
            estimator.fit(X[:0], np.zeros(0))
        with pytest.raises((ScalaiError, ValueError)):
            estimator.fit(xr.Dataset({"x": ("row", np.zeros(0)), "y": ("row", np.zeros(0))}), "y")


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (LogisticRegression(C=0), "C=0 is not known; accepted: a number above 0"),
        (LogisticRegression(C=np.nan), "C=nan"),
        (LogisticRegression(C="1"), "C='1'"),
        (
            LogisticRegression(l1_ratio=1.5),
            "l1_ratio=1.5 is not known; accepted: a number from 0 to 1",
        ),
        (LogisticRegression(class_weight="even"), "class_weight='even'"),
        (LogisticRegression(tol=-1), "tol=-1"),
        (PoissonRegression(alpha=-1), "alpha=-1 is not known"),
        (LinearRegression(alpha=-0.1), "alpha=-0.1 is not known"),
        (LinearRegression(alpha=True), "alpha=True"),
    ],
)
def test_options_are_checked(estimator, words):
    X, y, _ = data("logistic", 50)
    with pytest.raises(ParameterError, match=words):
        estimator.fit(X, y.astype(int))


@pytest.mark.parametrize("scale", [1, 1e-6, 1e6])
def test_collinear_features_share_what_they_explain(scale):
    X, y, _ = data("linear")
    double = np.column_stack([X, X[:, 0]]) * scale
    model = LinearRegression().fit(double, y)
    np.testing.assert_allclose(
        model.coef_, linear_model.LinearRegression().fit(double, y).coef_, rtol=1e-5
    )
    for estimator, y in (
        (LogisticRegression(np.inf, tol=1e-8), data("logistic")[1]),
        (PoissonRegression(0, tol=1e-8), data("poisson")[1]),
    ):
        twice, once = (
            np.ravel(clone(estimator).set_params(tol=1e-8 * scale).fit(double, y).coef_) * scale,
            np.ravel(clone(estimator).fit(X, y).coef_),
        )
        np.testing.assert_allclose(np.r_[twice[0] + twice[-1], twice[1:-1]], once, rtol=1e-4)


def test_units_do_not_matter_to_least_squares():
    X, y, _ = data("linear")
    units = np.array([1e-9, 1.0, 1e9, 1e4])
    np.testing.assert_allclose(
        LinearRegression().fit(X * units, y).coef_ * units,
        LinearRegression().fit(X, y).coef_,
        rtol=1e-6,
    )


def test_extreme_cases_are_defined():
    X, y, _ = data("logistic", 200)
    constant = np.column_stack([X, np.full(200, 3.0)])
    assert LinearRegression().fit(constant, y.astype(float)).coef_[-1] == 0
    assert np.isfinite(LogisticRegression().fit(constant, y).coef_).all()
    one = LinearRegression().fit([[2.0, 1.0]], [5.0])
    assert one.predict([[2.0, 1.0]])[0] == 5 and one.coef_.tolist() == [0, 0]
    none = PoissonRegression().fit(X, np.zeros(200))
    assert (none.predict(X) < 1e-3).all()
    clear = LogisticRegression(C=np.inf).fit(
        [[-1.0], [1.0]], [0, 1]
    )  # separable: the gradient vanishes on the way to infinity
    assert clear.predict([[-1.0], [1.0]]).tolist() == [0, 1] and np.isfinite(clear.coef_).all()
    far = (X + 100).astype("f4")
    np.testing.assert_allclose(
        LogisticRegression().fit(far, y).coef_, LogisticRegression().fit(X, y).coef_, atol=5e-3
    )
