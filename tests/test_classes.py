"Models of several classes, of numbers and of counts: trained, packaged, and asked"

import json
import warnings
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import xarray as xr
from sklearn import ensemble, linear_model, naive_bayes, neural_network, tree

import scalai_nb as sn
from scalai_nb.errors import ModelMismatch, ParameterError
from scalai_nb.models.package.heads import classes_of
from scalai_nb.models.package.package import Model, estimate, package

TREES = ("ash", "beech", "cedar", "elm", "fir")


def plots(rows=900, seed=0, classes=5):
    "Made-up plots of land: what grows there, how tall, and how many birds were seen"
    rng = np.random.default_rng(seed)
    light, water = rng.normal(size=(2, rows))
    soil = rng.choice(np.array(["clay", "loam", "sand"], object), rows)
    odds = np.stack([light, water, -light, -water, 0 * light], 1)[:, :classes]
    odds = 1.5 * odds + (soil == "clay")[:, None] * np.arange(classes) * 0.4
    share = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    kind = (share.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    light[rng.random(rows) < 0.05] = np.nan
    height = 3 * np.nan_to_num(light) - water + rng.normal(size=rows)
    birds = rng.poisson(np.exp(0.6 * np.nan_to_num(light) + 0.2 * water))
    return xr.Dataset(
        {
            "light": ("row", light.astype(np.float32)),
            "water": ("row", water.astype(np.float32)),
            "soil": ("row", soil),
            "tree": ("row", np.array(TREES, object)[kind]),
            "number": ("row", 10 * kind),
            "code": ("row", kind.astype(np.int8), {"categories": list(TREES)}),
            "height": ("row", height),
            "birds": ("row", birds),
        }
    )


FEATURES = partial(sn.Transform, ["light", "water"], ["soil"])
BOOSTED = partial(sn.BoostedTrees, rounds=8, max_depth=3)
CLASSIFIERS = {
    "line": lambda: sn.LogisticRegression(),
    "trees": lambda: BOOSTED(),
    "network": lambda: sn.Network(hidden=(8,), epochs=2),
    "logistic": lambda: linear_model.LogisticRegression(max_iter=500),
    "forest": lambda: ensemble.RandomForestClassifier(12, max_depth=5, random_state=0),
    "extra": lambda: ensemble.ExtraTreesClassifier(8, max_depth=5, random_state=0),
    "tree": lambda: tree.DecisionTreeClassifier(max_depth=5),
    "histogram": lambda: ensemble.HistGradientBoostingClassifier(max_iter=6),
    "gradient": lambda: ensemble.GradientBoostingClassifier(n_estimators=4),
    "layers": lambda: neural_network.MLPClassifier((6,), max_iter=20, random_state=0),
    "bayes": lambda: naive_bayes.GaussianNB(),
}
REGRESSORS = {
    "line": lambda: sn.LinearRegression(),
    "trees": lambda: BOOSTED(objective="reg:squarederror"),
    "quantile": lambda: BOOSTED(objective="reg:quantileerror", params={"quantile_alpha": 0.9}),
    "network": lambda: sn.Network(hidden=(8,), epochs=2, loss="squared_error"),
    "ridge": lambda: linear_model.Ridge(),
    "forest": lambda: ensemble.RandomForestRegressor(8, max_depth=5),
}
COUNTS = {
    "poisson": lambda: sn.PoissonRegression(),
    "trees": lambda: BOOSTED(objective="count:poisson"),
    "regressor": lambda: linear_model.PoissonRegressor(),
    "histogram": lambda: ensemble.HistGradientBoostingRegressor(max_iter=5, loss="poisson"),
}
QUIET = sn.Effort(progress=False)


@cache
def made(label, name, which="classifiers"):
    "A trained candidate as a package, with what it was made of"
    known = {"classifiers": CLASSIFIERS, "regressors": REGRESSORS, "counts": COUNTS}[which]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        t = sn.train(
            {name: known[name]()},
            plots(),
            label,
            transform=FEATURES(),
            split="random",
            judging=sn.Judging(importance=0),
            effort=QUIET,
        )
        f = t.fit()
    return t, f, package(f.transform, f.estimator, name="plots", card=t.card(), summary=f.summary)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_graph_of_five_classes_scores_as_its_estimator(name, tmp_path):
    _, f, model = made("tree", name)
    ds = plots(500, seed=1)
    got, expected = model.predict(ds), estimate(f.transform, f.estimator, ds)
    assert got.dims == ("row", "class") and got["class"].values.tolist() == list(TREES)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(got.sum("class"), 1, atol=1e-5)
    ones = [model.predict(ds.isel(row=slice(i, i + 1))).values[0] for i in range(20)]
    np.testing.assert_allclose(ones, got[:20], atol=1e-6)
    arrays = {n: a.reshape(-1, 1) for n, a in f.transform.raw(ds).items()}
    shares, label = model.session.run(["probabilities", "label"], arrays)
    assert np.array(TREES)[shares.argmax(axis=1)].tolist() == label.ravel().tolist()
    assert (model.card["output"], model.card["classes"]) == ("probabilities", list(TREES))
    again = Model.load(model.save(tmp_path / "m"))
    np.testing.assert_array_equal(again.predict(ds), got)
    assert "beech" in again.to_markdown()


def test_many_rows_take_the_booster_and_score_the_same():
    _, f, model = made("tree", "trees")
    ds = plots(3000, seed=2)
    assert model.twin
    np.testing.assert_allclose(model.predict(ds), estimate(f.transform, f.estimator, ds), atol=1e-6)
    lazy = model.predict(ds.chunk({"row": 700}))
    np.testing.assert_allclose(lazy, model.predict(ds), atol=1e-6)
    assert model.predict(ds.isel(row=[])).shape == (0, 5)


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_graph_of_a_number(name):
    _, f, model = made("height", name, "regressors")
    ds = plots(300, seed=1)
    got = model.predict(ds)
    np.testing.assert_allclose(got, estimate(f.transform, f.estimator, ds), rtol=1e-5, atol=2e-5)
    assert [o.name for o in model.session.get_outputs()] == ["prediction"] and got.dims == ("row",)
    assert model.card["output"] == "value" and "classes" not in model.card


@pytest.mark.parametrize("name", COUNTS)
def test_a_graph_of_counts(name):
    t, f, model = made("birds", name, "counts")
    ds = plots(300, seed=1)
    np.testing.assert_allclose(
        model.predict(ds), estimate(f.transform, f.estimator, ds), rtol=2e-5, atol=2e-5
    )
    assert t.measure == "poisson_deviance" and model.card["metrics"]["poisson_deviance"] > 0


@pytest.mark.parametrize("label", ["number", "code"])
@pytest.mark.parametrize("name", ["line", "trees", "forest"])
def test_classes_are_called_by_their_names(label, name):
    "numbers stay numbers; codes are called by what they stand for"
    _, f, model = made(label, name)
    names = list(TREES) if label == "code" else [0, 10, 20, 30, 40]
    got = model.predict(plots(50, seed=1))
    assert got["class"].values.tolist() == names == model.card["classes"]
    arrays = {n: a.reshape(-1, 1) for n, a in f.transform.raw(plots(50, seed=1)).items()}
    found = model.session.run(["label"], arrays)[0].ravel().tolist()
    assert found == [names[i] for i in got.values.argmax(axis=1)]
    json.dumps(model.card)


def test_the_contract_names_the_classes_where_the_card_does_not():
    ds = plots()
    t = FEATURES().fit(ds)
    e = sn.LogisticRegression().fit(t.transform(ds), ds.code.values)
    contract = sn.Contract.infer(ds, label="code")
    assert package(t, e, contract).classes == TREES
    assert package(t, e).classes == (0, 1, 2, 3, 4) == classes_of(e)
    with pytest.raises(ParameterError, match="names 2 classes, and LogisticRegression tells 5"):
        package(t, e, card={"classes": ["a", "b"]})


def test_two_classes_are_as_they_were():
    ds = plots(classes=2)
    t = FEATURES().fit(ds)
    e = sn.LogisticRegression().fit(t.transform(ds), ds.tree.values)
    model = package(t, e)
    got = model.predict(ds)
    assert got.dims == ("row",) and [o.name for o in model.session.get_outputs()] == ["score"]
    np.testing.assert_allclose(got, e.predict_proba(t.transform(ds))[:, 1], atol=1e-6)
    assert model.card["output"] == "probability" and model.classes == ("ash", "beech")


def test_a_net_from_outside_with_classes():
    import torch

    torch.manual_seed(0)
    ds = plots()
    t = FEATURES().fit(ds)
    net = torch.nn.Sequential(torch.nn.Linear(t.width_, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    model = package(t, net, output="log_odds", card={"classes": ["low", "middle", "high"]})
    X = torch.from_numpy(t.transform(ds).values)
    expected = torch.softmax(net(X), 1).detach().numpy()
    np.testing.assert_allclose(model.predict(ds), expected, atol=1e-5)
    assert model.predict(ds)["class"].values.tolist() == ["low", "middle", "high"]
    with pytest.raises(ParameterError, match="accepted: one score a row"):
        package(t, net, output="value")


def test_a_graph_that_scores_otherwise_is_found():
    _, _, model = made("tree", "line")
    wrong = [list(row) for row in model.examples["scores"]]
    wrong[7][3] += 0.01
    spoilt = replace(model, examples={**model.examples, "scores": wrong})
    with pytest.raises(ModelMismatch, match="row 7: the graph scores"):
        spoilt.check()
