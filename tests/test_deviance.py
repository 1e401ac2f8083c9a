"Losses of counts, amounts and quantiles are scikit-learn's, mergeable, and say where they are none"

from functools import partial

import numpy as np
import pytest
import xarray as xr
from sklearn import metrics
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import (
    GammaRegressor,
    PoissonRegressor,
    QuantileRegressor,
    Ridge,
    TweedieRegressor,
)

import scalai_nb as sn
from scalai_nb.compute.laws import check_mergeable
from scalai_nb.compute.mergeable import ALGORITHMS
from scalai_nb.errors import ParameterError
from scalai_nb.evaluation.deviance import learnt_loss, loss_of
from scalai_nb.evaluation.residuals import evaluate_regression, regression_evaluation

POWERS = (-1.0, 0.0, 1.0, 1.3, 1.9, 2.0, 3.0)
SKLEARN = {
    "poisson_deviance": metrics.mean_poisson_deviance,
    "gamma_deviance": metrics.mean_gamma_deviance,
    **{f"tweedie_deviance({k})": partial(metrics.mean_tweedie_deviance, power=k) for k in POWERS},
    **{f"pinball_loss({q})": partial(metrics.mean_pinball_loss, alpha=q) for q in (0.05, 0.5, 0.9)},
}


def drawn(rows, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.gamma(2, 3, rows)
    return target, target * rng.gamma(5, 0.2, rows), rng.random(rows)


@pytest.mark.parametrize("name", SKLEARN)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_are_scikit_learns(name, weighted):
    target, prediction, weight = drawn(700)
    mass = weight if weighted else None
    e = evaluate_regression(target, prediction, mass, losses=[name])
    assert np.isclose(
        e.loss(name), SKLEARN[name](target, prediction, sample_weight=mass), rtol=1e-12
    )
    low, high = e.interval(name)
    assert low < e.loss(name) < high


def test_zeros_are_counts():
    target, prediction = np.array([0.0, 0, 3]), np.array([0.5, 1, 2])
    for name in ("poisson_deviance", "tweedie_deviance(1.3)"):
        expected = SKLEARN[name](target, prediction)
        got = evaluate_regression(target, prediction, losses=[name]).loss(name)
        assert np.isclose(got, expected)
    single = evaluate_regression(np.float32(target), np.float32(prediction), losses=[name])
    assert np.isclose(single.loss(name), expected)


def test_laws_of_losses():
    'Of the registered "loss evaluation" too: this is it, with columns of other names'
    target, prediction, weight = drawn(90)
    by = np.random.default_rng(1).choice(["a", "b"], 90)
    columns = {"t": target, "p": prediction, "w": weight, "b": by}
    ds = xr.Dataset({n: ("row", x) for n, x in columns.items()})
    algorithm = regression_evaluation(
        "t", "p", ["b"], "w", losses=["poisson_deviance", "pinball_loss(0.9)"]
    )
    blocks = [ds.isel(row=slice(a, b)) for a, b in ((0, 7), (7, 50), (50, 90))]

    def near(a, b):
        pairs = [(a, b), *((a.slices[k], b.slices[k]) for k in a.slices)]
        return a.slices.keys() == b.slices.keys() and all(
            x.losses == y.losses
            and all(np.isclose(x.loss(n), y.loss(n), equal_nan=True) for n in x.losses)
            for x, y in pairs
        )

    check_mergeable(algorithm, blocks, lambda bs: xr.concat(bs, "row"), near)
    named = [block.rename(t="target", p="prediction") for block in blocks]
    check_mergeable(ALGORITHMS["loss evaluation"], named, lambda bs: xr.concat(bs, "row"), near)
    e = sn.reduce(algorithm, ds)
    some = by == "a"
    mass = weight[some]
    expected = metrics.mean_poisson_deviance(target[some], prediction[some], sample_weight=mass)
    assert np.isclose(e.slices["a"].loss("poisson_deviance"), expected)
    assert np.isnan(sn.reduce(algorithm, ds.isel(row=[])).loss("poisson_deviance"))


@pytest.mark.parametrize(
    ("name", "target", "prediction", "text"),
    [
        ("poisson_deviance", [-1, 2, 3], [1, 1, 1], "1 of 3 targets are not from 0 on"),
        ("poisson_deviance", [1, 2, 3], [0, -1, 1], "2 of 3 predictions are not above 0"),
        ("gamma_deviance", [0, 2, 3], [1, 1, 1], "1 of 3 targets are not above 0"),
        ("tweedie_deviance(-1)", [-1, 2, 3], [1, 0, 1], "1 of 3 predictions are not above 0"),
    ],
)
def test_a_loss_that_is_not_defined_says_so(name, target, prediction, text):
    e = evaluate_regression(target, prediction, losses=[name])
    with pytest.raises(ParameterError, match=text):
        e.loss(name)
    assert np.isnan(e.to_frame().loc["all", name]) and e.rmse > 0


@pytest.mark.parametrize(
    "name", ["deviance", "tweedie_deviance(0.5)", "pinball_loss(1)", "pinball_loss(x)"]
)
def test_losses_that_there_are_not(name):
    with pytest.raises(ParameterError):
        loss_of(name)
    with pytest.raises(ParameterError):
        evaluate_regression([1.0], [1.0], losses=[name])
    with pytest.raises(ParameterError, match="was not summed"):
        evaluate_regression([1.0], [1.0]).loss("poisson_deviance")


def test_what_estimators_learn():
    from xgboost import XGBRegressor

    assert [
        learnt_loss(e)
        for e in (
            sn.LinearRegression(),
            Ridge(),
            sn.PoissonRegression(),
            PoissonRegressor(),
            GammaRegressor(),
            TweedieRegressor(power=1.5),
            TweedieRegressor(power=0),
            QuantileRegressor(quantile=0.8),
            HistGradientBoostingRegressor(loss="poisson"),
            HistGradientBoostingRegressor(loss="quantile", quantile=0.2),
            sn.BoostedTrees(objective="count:poisson"),
            sn.BoostedTrees(objective="reg:tweedie", params={"tweedie_variance_power": 1.2}),
            XGBRegressor(objective="reg:quantileerror", quantile_alpha=0.7),
            XGBRegressor(objective="reg:gamma"),
            sn.BoostedTrees(objective="reg:squarederror"),
        )
    ] == [
        None,
        None,
        "poisson_deviance",
        "poisson_deviance",
        "gamma_deviance",
        "tweedie_deviance(1.5)",
        None,
        "pinball_loss(0.8)",
        "poisson_deviance",
        "pinball_loss(0.2)",
        "poisson_deviance",
        "tweedie_deviance(1.2)",
        "pinball_loss(0.7)",
        "gamma_deviance",
        None,
    ]


def counts(rows=1200):
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, rows))
    visits = rng.poisson(np.exp(0.8 * a - 0.5))
    return xr.Dataset({"a": ("row", a), "b": ("row", b), "visits": ("row", visits)})


def trained(candidates, ds, label, **options):
    quiet = sn.Effort(progress=False)
    judging = sn.Judging(importance=100)
    return sn.train(candidates, ds, label, split="random", effort=quiet, judging=judging, **options)


def test_a_model_of_counts_is_chosen_by_its_deviance():
    ds = counts()
    candidates = {"line": sn.LinearRegression(), "counts": sn.PoissonRegression()}
    t = trained(candidates, ds, "visits")
    assert t.measure == "poisson_deviance" and t.best == "counts"
    assert np.isnan(t.table.loc["line", "poisson_deviance"]) and t.table.loc["line", "rmse"] > 0
    assert any("line: poisson_deviance is not defined" in note for note in t.notes)
    held = t.scores["counts"]
    expected = metrics.mean_poisson_deviance(ds.visits, held)
    assert np.isclose(t.card()["metrics"]["poisson_deviance"], expected)
    assert list(t.importance("counts").lost())[0] == "a"
    assert "poisson deviance" in t._repr_html_()


def test_a_goal_may_be_a_loss():
    goals = {"pinball_loss(0.9)": "<= 10", "rmse": "<= 100"}
    t = trained({"line": sn.LinearRegression()}, counts(), "visits", goals=goals)
    assert t.measure == "pinball_loss(0.9)" and t.met() == dict.fromkeys(goals, True)
    with pytest.raises(ParameterError, match="a quantile is above 0"):
        trained({"line": Ridge()}, counts(), "visits", goals={"pinball_loss(9)": "<= 1"})
    assert trained({"line": Ridge()}, counts(), "visits").measure == "rmse"
