"Every kind of model becomes a graph that scores as its own library does, where it is hard too"

import subprocess
import warnings
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import xarray as xr
from conftest import tool
from onnx import TensorProto, helper
from sklearn import (
    ensemble,
    linear_model,
    naive_bayes,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

import scalai_nb as sn
from scalai_nb.errors import MissingExtra, ModelMismatch, ParameterError
from scalai_nb.evaluation.calibration import Calibrated, Calibration, calibrate
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.package import graph
from scalai_nb.models.package import heads
from scalai_nb.models.package import runtime
from scalai_nb.models.package.examples import edge_rows, example_rows, threshold_rows
from scalai_nb.models.package.package import Model, estimate, package

xgboost, torch, skl2onnx = (
    pytest.mark.skipif(not find_spec(m), reason=f"{m} is not installed: extra `{e}`")
    for m, e in [("xgboost", "trees"), ("torch", "torch"), ("skl2onnx", "convert")]
)


def table(rows, seed=0):
    "Numbers with holes and whole numbers, a time, categories of which some are missing"
    rng = np.random.default_rng(seed)
    time = np.datetime64("2013-01-01", "s") + rng.integers(0, 90 * 86400, rows)
    return xr.Dataset(
        {
            "temp": (
                "row",
                np.where(rng.random(rows) < 0.1, np.nan, rng.normal(60, 18, rows).round(1)),
            ),
            "hour": ("row", rng.integers(0, 24, rows).astype(float)),
            "time": ("row", time),
            "carrier": ("row", rng.choice(np.array(["UA", "AA", "B6", None], object), rows)),
        }
    )


DATA = table(3000)
FILLED, KEPT = (
    Transform(["temp", "hour", "time"], ["carrier"]).fit(DATA),
    Transform(["temp", "hour", "time"], ["carrier"], impute=None, scale=None).fit(DATA),
)
ODDS = (
    (DATA.hour - 14) / 5
    + (DATA.carrier == "AA")
    - DATA.temp.isnull()
    + np.sin(DATA.temp.fillna(0) / 9)
).values
LATE = (np.random.default_rng(0).random(3000) < 1 / (1 + np.exp(-ODDS))).astype(int)
DELAY = np.maximum(np.exp(ODDS / 2) + np.random.default_rng(1).normal(0, 0.1, 3000), 0.01)


@cache
def drawn(kept: bool, rows: int):
    "Random rows and their features, drawn once"
    t = KEPT if kept else FILLED
    ds = example_rows(t, rows, seed=5)
    return ds, t.transform(ds)


def parity(t, estimator, rows=200_000, **options):
    "An estimator's package, once its scores are within 1e-5 of the estimator's; relatively above 1"
    model = package(t, estimator, **options)
    expects = heads.model_of(estimator, len(t.feature_names), options.get("output"))
    some, edges, thresholds = (
        example_rows(t, 20, seed=6),
        edge_rows(t),
        threshold_rows(model.graph, t, 5000),
    )
    for ds, X in [
        drawn(t is KEPT, rows),
        *((ds, t.transform(ds)) for ds in (some, edges, thresholds)),
    ]:
        got, expected = model.predict(ds).values, heads.score(expects, X)
        assert np.isfinite(got).all()
        np.testing.assert_allclose(
            got, expected, atol=1e-5, rtol=0 if model.card["output"] == "probability" else 1e-5
        )
    one_by_one = [
        model.score({k: v[i : i + 1] for k, v in t.raw(some).items()})[0] for i in range(20)
    ]
    np.testing.assert_allclose(one_by_one, model.predict(some), atol=1e-6, rtol=1e-6)
    return model


def fit(estimator, t, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator.fit(t.transform(DATA).values, y)


CLASSIFIERS = {
    "logistic": linear_model.LogisticRegression(max_iter=1000),
    "ours": sn.LogisticRegression(),
    "forest": ensemble.RandomForestClassifier(30, random_state=0),
    "extra": ensemble.ExtraTreesClassifier(20, random_state=0),
    "tree": tree.DecisionTreeClassifier(max_depth=8),
    "histogram": ensemble.HistGradientBoostingClassifier(max_iter=20),
}
CONVERTED = {
    "gradient": ensemble.GradientBoostingClassifier(n_estimators=20),
    "layers": neural_network.MLPClassifier((8,), max_iter=30, random_state=0),
    "pipeline": pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear_model.LogisticRegression()
    ),
    "bagging": ensemble.BaggingClassifier(n_estimators=5, random_state=0),
    "bayes": naive_bayes.BernoulliNB(),
}
REGRESSORS = {
    "linear": linear_model.LinearRegression(),
    "ridge": linear_model.Ridge(),
    "lasso": linear_model.Lasso(0.01),
    "poisson": linear_model.PoissonRegressor(),
    "our linear": sn.LinearRegression(),
    "our poisson": sn.PoissonRegression(),
    "forest": ensemble.RandomForestRegressor(20, random_state=0),
    "histogram": ensemble.HistGradientBoostingRegressor(max_iter=15),
    "histogram, poisson": ensemble.HistGradientBoostingRegressor(max_iter=15, loss="poisson"),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier(name):
    parity(FILLED, fit(CLASSIFIERS[name], FILLED, LATE))


@pytest.mark.parametrize("name", ["forest", "extra", "tree", "histogram"])
def test_missing_values_go_the_way_of_training(name):
    model = parity(KEPT, fit(CLASSIFIERS[name], KEPT, LATE))
    assert model.predict(edge_rows(KEPT)).std() > 0


@skl2onnx
@pytest.mark.parametrize("name", CONVERTED)
def test_a_classifier_through_skl2onnx(name):
    parity(FILLED, fit(CONVERTED[name], FILLED, LATE), 50_000)


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regression_gives_a_value(name):
    assert parity(FILLED, fit(REGRESSORS[name], FILLED, DELAY), 50_000).card["output"] == "value"


@xgboost
@pytest.mark.parametrize(
    "objective", ["reg:squarederror", "count:poisson", "reg:gamma", "reg:tweedie", "reg:logistic"]
)
def test_xgboost_regressions(objective):
    from xgboost import XGBRegressor

    y = LATE * 0.5 + 0.25 if objective == "reg:logistic" else DELAY
    parity(KEPT, fit(XGBRegressor(n_estimators=30, objective=objective, n_jobs=1), KEPT, y), 50_000)


@xgboost
def test_boosted_trees():
    trees = sn_trees(rounds=60, max_depth=5).fit(KEPT.transform(DATA).values, LATE)
    assert parity(KEPT, trees).card["environment"]["xgboost"]


def sn_trees(**options):
    from scalai_nb.learn.trees.trees import BoostedTrees

    return BoostedTrees(**options)


@xgboost
def test_xgboost_and_its_graph_agree_bit_for_bit():
    "So that a steep calibration makes no difference of the last digit"
    from xgboost import XGBClassifier

    trees = fit(XGBClassifier(n_estimators=100, n_jobs=1), KEPT, LATE)
    model, ds = package(KEPT, trees), example_rows(KEPT, 100_000, seed=3)
    got, expected = model.score(KEPT.raw(ds)), estimate(KEPT, trees, ds)
    assert (got == expected).mean() > 0.999 and np.abs(got - expected).max() <= 6e-8


@torch
@pytest.mark.parametrize(
    "last", [("log_odds", 1), ("log_odds", 2), ("probability", 2), ("value", 1)]
)
def test_a_torch_net(last):
    output, width = last
    net = make_net(len(FILLED.feature_names), width, softmax=output == "probability")
    model = parity(FILLED, net, 50_000, output=output)
    assert (
        model.card["output"] == ("value" if output == "value" else "probability")
        and model.card["environment"]["torch"]
    )
    assert model.card["estimator"] == "Sequential" and net.training  # the module is left as it was


def make_net(features, width=1, softmax=False):
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = [
        nn.Linear(features, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.LayerNorm(16),
        nn.GELU(),
        nn.Linear(16, width),
    ]
    return nn.Sequential(*layers, *[nn.Softmax(1)] * softmax).train()


@torch
def test_our_network():
    from scalai_nb.learn.networks.networks import Network

    parity(
        FILLED,
        Network(hidden=(16, 8), epochs=2).fit(FILLED.transform(DATA).values, LATE),
        50_000,
    )


# ---- calibration

CURVES = {
    "isotonic": Calibration(
        "isotonic",
        np.array([0.05, 0.2, 0.21, 0.5, 0.52, 0.9]),
        np.array([0.01, 0.05, 0.3, 0.3, 0.9, 0.99]),
    ),
    "sigmoid": Calibration("sigmoid", np.array([0.6]), np.array([-0.5])),
}


@pytest.mark.parametrize("kind", CURVES)
@pytest.mark.parametrize("name", ["logistic", "ours", "histogram", "forest"])
def test_a_calibrated_model(name, kind):
    parity(FILLED, Calibrated(fit(CLASSIFIERS[name], FILLED, LATE), CURVES[kind]), 50_000)


@xgboost
@pytest.mark.parametrize("kind", ["isotonic", "sigmoid"])
def test_calibrated_trees_keep_their_booster(kind):
    e = sn_trees(rounds=40).fit(KEPT.transform(DATA).values, LATE)
    p = e.predict_proba(KEPT.transform(DATA).values)[:, 1]
    model = parity(KEPT, Calibrated(e, calibrate(LATE, p, kind)))
    assert (
        model.twin
        and model.card["calibration"]["kind"] == kind
        and model.card["estimator"] == "BoostedTrees"
    )


def test_the_curve_of_a_calibration_is_exact():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 50, 1000):
        x, y = np.sort(rng.random(n)), np.sort(rng.random(n))
        g = graph.Graph()
        model = graph.finished(
            g, {"s": "DOUBLE"}, g.node("Cast", heads.isotonic(g, "s", x, y), to=1)
        )
        s = np.r_[0, 1, x, np.nextafter(x, 1), np.nextafter(x, 0), rng.random(1000)]
        got = runtime.session(model.SerializeToString()).run(None, {"s": s[:, None]})[0].ravel()
        np.testing.assert_allclose(got, np.interp(s, x, y).astype(np.float32), atol=6e-8, rtol=0)


def test_a_bug_planted_in_a_calibration_is_caught(monkeypatch):
    e = fit(CLASSIFIERS["logistic"], FILLED, LATE)
    search = heads._search
    monkeypatch.setattr(heads, "_search", lambda g, x, knots: search(g, x, knots + 0.05))
    with pytest.raises(ModelMismatch):
        package(
            FILLED,
            Calibrated(
                e, Calibration("isotonic", np.array([0.2, 0.5, 0.6]), np.array([0.1, 0.3, 0.9]))
            ),
        )


# ---- thresholds


def test_thresholds_are_rounded_down():
    t = np.array([0.1, 1 / 3, -0.1, 2.0, 1e-50, -1e-50, 1e300, -1e300, np.inf])
    x = heads.below(t)
    assert (x <= t).all()
    with np.errstate(over="ignore"):
        assert (np.nextafter(x[:6], np.float32(np.inf)) > t[:6]).all()


def test_a_threshold_rounded_up_is_caught(monkeypatch):
    e = fit(tree.DecisionTreeClassifier(max_depth=8), KEPT, LATE)
    monkeypatch.setattr(
        heads, "below", lambda t: np.nextafter(np.asarray(t).astype(np.float32), np.float32(np.inf))
    )
    with pytest.raises(ModelMismatch):
        package(KEPT, e)


def test_trees_on_categories_of_their_own():
    e = ensemble.HistGradientBoostingClassifier(max_iter=5, categorical_features=[1]).fit(
        KEPT.transform(DATA).values, LATE
    )
    with pytest.raises(ParameterError, match="leave categorical_features out"):
        package(KEPT, e)


# ---- ONNX from elsewhere


def onnx_net(
    features, rows=None, width=1, opset=17, kind=TensorProto.FLOAT, op="Sigmoid", shape=None
):
    "A product and a sigmoid"
    w = helper.make_tensor("w", kind, [features, width], np.linspace(-0.5, 0.5, features * width))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node(op, ["z"], ["y"])]
    ports = [
        [helper.make_tensor_value_info(n, kind, s)]
        for n, s in (("x", [rows, shape or features]), ("y", [rows, width]))
    ]
    return helper.make_model(
        helper.make_graph(nodes, "net", *ports, [w]),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"opset": 8}, {"opset": 22}, {"kind": TensorProto.DOUBLE}, {"width": 2, "op": "Softmax"}],
)
def test_onnx_as_a_file_bytes_or_a_model(options, tmp_path):
    proto = onnx_net(n := len(FILLED.feature_names), **options)
    onnx.save(proto, tmp_path / "net.onnx")
    models = [
        parity(FILLED, given, 5000)
        for given in (
            tmp_path / "net.onnx",
            str(tmp_path / "net.onnx"),
            proto.SerializeToString(),
            proto,
        )
    ]
    assert len({m.graph for m in models}) == 1
    x = FILLED.transform(DATA).values.astype(np.float64)
    z = x @ np.linspace(-0.5, 0.5, n * options.get("width", 1)).reshape(n, -1)
    expected = (
        np.exp(z[:, 1]) / np.exp(z).sum(axis=1)
        if "width" in options
        else 1 / (1 + np.exp(-z[:, 0]))
    )
    np.testing.assert_allclose(models[0].predict(DATA), expected, atol=1e-5)


@pytest.mark.parametrize(
    "output, given", [("log_odds", lambda z: 1 / (1 + np.exp(-z))), ("value", np.copy)]
)
def test_onnx_gives_what_is_said(output, given):
    n = len(FILLED.feature_names)
    model = package(FILLED, onnx_net(n, op="Identity"), output=output)
    z = FILLED.transform(DATA).values.astype(np.float64) @ np.linspace(-0.5, 0.5, n)
    np.testing.assert_allclose(model.predict(DATA), given(z), atol=1e-4)


def test_onnx_that_does_not_fit(tmp_path):
    n = len(FILLED.feature_names)
    (tmp_path / "text.onnx").write_text("not a model")
    two = onnx_net(n)
    two.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [None, 1]))
    labels = onnx_net(n)
    labels.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    unknown = onnx_net(n)
    unknown.graph.node[1].op_type, unknown.graph.node[1].domain = "Fancy", "com.example"
    unknown.opset_import.append(helper.make_opsetid("com.example", 1))
    for given, sentence in [
        (tmp_path / "none.onnx", "none.onnx does not exist; give the path of an ONNX file"),
        (tmp_path / "text.onnx", "text.onnx is no ONNX model of opset 13 or later"),
        (b"", "is no ONNX model"),
        (onnx_net(n + 1), f"takes {n + 1} features and the transform makes {n}"),
        (two, "inputs x, mask; accepted: one"),
        (labels, r"outputs y \(tensor_type 7\); accepted: one of floats"),
        (
            onnx_net(n, rows=1),
            "fails on three rows .*; export it with a first dimension that is dynamic",
        ),
        (onnx_net(n, width=3), r"gives \(3, 3\) for 3 rows; accepted: one score a row"),
        (onnx_net(n, opset=99), "ONNX Runtime cannot run the model"),
        (unknown, "ONNX Runtime cannot run the model .*Fancy"),
        (onnx_net(n, op="Identity"), "which is no probability; pass output='log_odds'"),
    ]:
        with pytest.raises(ParameterError, match=sentence):
            package(FILLED, given)
    with pytest.raises(
        ParameterError, match="output='logit' is not known; accepted: probability, log_odds, value"
    ):
        package(FILLED, onnx_net(n), output="logit")
    with pytest.raises(ParameterError, match="says itself what it gives"):
        package(FILLED, fit(CLASSIFIERS["logistic"], FILLED, LATE), output="value")


@torch
def test_a_net_that_cannot_be_exported_or_fed():
    from torch import nn

    class Looks(nn.Module):
        def forward(self, x):
            return x[:, :1] if float(x.sum()) > 0 else x[:, 1:2]

    with pytest.raises(ParameterError, match="PyTorch cannot export Looks"):
        package(FILLED, Looks())
    with pytest.raises(
        ParameterError, match="cannot take missing numbers, as 'temp' may have; use impute='mean'"
    ):
        package(KEPT, make_net(len(KEPT.feature_names)), output="log_odds")


def test_a_library_that_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(
        MissingExtra, match=r"skl2onnx is not installed; run: pip install 'scalai-nb\[convert\]'"
    ):
        package(FILLED, fit(CONVERTED["bayes"], FILLED, LATE))
    if find_spec("torch"):
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(MissingExtra, match=r"pip install 'scalai-nb\[torch\]'"):
            package(FILLED, make_net(len(FILLED.feature_names)))


def test_what_is_no_model():
    with pytest.raises(
        ParameterError, match="dict cannot be packaged; accepted: an estimator of scikit-learn"
    ):
        package(FILLED, {})
    with pytest.raises(ParameterError, match="SVC gives no probabilities"):
        package(FILLED, fit(svm.SVC(), FILLED, LATE))
    with pytest.raises(ParameterError, match="3 targets; accepted: one"):
        package(FILLED, fit(linear_model.LinearRegression(), FILLED, np.column_stack([DELAY] * 3)))


KERAS = """
import sys, numpy as np, keras, tensorflow as tf, tf2onnx
X, y = np.load("X.npy"), np.load("y.npy")
keras.utils.set_random_seed(0)
net = keras.Sequential([keras.Input((X.shape[1],)), keras.layers.Dense(16, "relu"), \
keras.layers.BatchNormalization(), keras.layers.Dense(1, "sigmoid")])
net.compile("adam", "binary_crossentropy")
net.fit(X, y, epochs=3, verbose=0)
tf2onnx.convert.from_function(tf.function(net), \
[tf.TensorSpec((None, X.shape[1]), tf.float32, name="x")], output_path="net.onnx")
np.save("scores.npy", net.predict(X, verbose=0))
"""


def test_a_keras_net_is_packaged_saved_and_registered(registry, tmp_path):
    python = tool("tensorflow") / "python"
    np.save(tmp_path / "X.npy", FILLED.transform(DATA).values)
    np.save(tmp_path / "y.npy", LATE)
    done = subprocess.run(
        [python, "-c", KERAS], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model = parity(FILLED, tmp_path / "net.onnx", 50_000, name="late-flight")
    np.testing.assert_allclose(
        model.predict(DATA), np.load(tmp_path / "scores.npy")[:, 0], atol=1e-5
    )
    through_the_registry(model, registry, tmp_path)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    from scalai_nb.models.registry.registry import Registry

    folder = tmp_path_factory.mktemp("registry")
    return Registry(
        SimpleNamespace(models=str(folder / "models"), tracking=f"sqlite:///{folder}/tracking.db")
    )


def through_the_registry(model, registry, tmp_path):
    "Saved, loaded, registered and taken out again, the model scores the same"
    expected = model.predict(DATA)
    assert Model.load(model.save(tmp_path / "saved")).predict(DATA).identical(expected)
    assert (
        Model.load(registry.register(model, "late-flight").path).predict(DATA).identical(expected)
    )


OUTSIDE = {
    "forest": lambda: (KEPT, fit(CLASSIFIERS["forest"], KEPT, LATE)),
    "histogram": lambda: (KEPT, fit(CLASSIFIERS["histogram"], KEPT, LATE)),
    "net": lambda: (FILLED, make_net(len(FILLED.feature_names), 2, softmax=True)),
}


@pytest.mark.parametrize("name", ["forest", "histogram", pytest.param("net", marks=torch)])
def test_a_model_from_outside_is_registered(name, registry, tmp_path):
    through_the_registry(package(*OUTSIDE[name](), name="late-flight"), registry, tmp_path)
