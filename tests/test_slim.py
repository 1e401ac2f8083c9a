"""A slim model says nearly the same in fewer bytes

The report proposes it only where no slice loses more than is allowed.
"""

import subprocess
import warnings
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import xarray as xr
from conftest import tool
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from scalai_nb.errors import ContractViolation, ParameterError
from scalai_nb.evaluation.evaluation import evaluate
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.package.graph import FEATURES
from scalai_nb.models.package.package import Model, digest, package
from scalai_nb.models.package.runtime import session
from scalai_nb.models.slim.compacting import DoesNotApply, arrays, compact, parsed, tidy
from scalai_nb.models.slim.curves import curve_of, fewer_points, with_curve
from scalai_nb.models.slim.forests import (
    MODES,
    Forest,
    _attributes,
    _old,
    _reached,
    compact_trees,
    forest_of,
    with_forest,
)
from scalai_nb.models.slim.neurons import fewer_neurons, hidden, refitted, surgeon
from scalai_nb.models.slim.pruning import (
    _counts,
    _merges,
    fewer_leaves,
    fewer_rounds,
    furthest,
    tensor,
)
from scalai_nb.models.slim.quantise import (
    float16,
    int8_dynamic,
    int8_static,
    int8_weights,
    layers,
)
from scalai_nb.models.slim.slim import METHODS, Trial, slim

needs_xgboost = pytest.mark.skipif(
    not find_spec("xgboost"), reason="xgboost is not installed: extra `trees`"
)
needs_torch = pytest.mark.skipif(
    not find_spec("torch"), reason="torch is not installed: extra `torch`"
)
needs_skl2onnx = pytest.mark.skipif(
    not find_spec("skl2onnx"), reason="skl2onnx is not installed: extra `convert`"
)


def table(rows, seed=0):
    "Rows with holes, of a carrier of which a few have a law of their own"
    rng = np.random.default_rng(seed)
    ds = xr.Dataset(
        {
            **{
                f"x{i}": ("row", np.where(rng.random(rows) < 0.05, np.nan, rng.normal(size=rows)))
                for i in range(6)
            },
            "carrier": ("row", rng.choice(np.array([*"abcdefghij", None], object), rows)),
            "origin": ("row", rng.choice(np.array(["JFK", "LGA"], object), rows, p=[0.9, 0.1])),
        }
    )
    z = (
        ds.x0.fillna(0) * np.where(ds.origin == "JFK", 1, -1)
        + 2 * ds.x1.fillna(0) * ds.x2.fillna(0)
        + (ds.carrier == "a")
        - 0.3
    )
    ds["late"] = ("row", rng.random(rows) < 1 / (1 + np.exp(-2 * z.values)))
    ds["minutes"] = z + rng.normal(size=rows) / 2
    return ds


TRAIN, LATER = table(6000), table(8000, seed=1)
NUMBERS, NAMES = [f"x{i}" for i in range(6)], ["carrier", "origin"]


@cache
def model(kind) -> Model:
    filled = kind in ("linear", "mlp", "torch", "residual")
    t = Transform(NUMBERS, NAMES, **({} if filled else {"impute": None})).fit(TRAIN)
    X, y = t.transform(TRAIN).values, TRAIN.late.values
    if kind == "torch":
        return package(t, torch_net(X, y), output="log_odds")
    if kind == "regression":
        return package(
            t,
            HistGradientBoostingRegressor(max_iter=60, random_state=0).fit(X, TRAIN.minutes.values),
        )
    if kind in ("xgboost", "calibrated"):
        from xgboost import XGBClassifier

        trees = XGBClassifier(n_estimators=60, max_depth=5, learning_rate=0.15, n_jobs=1).fit(X, y)
        if kind == "xgboost":
            return package(t, trees, name="late")
        from scalai_nb.evaluation.calibration import Calibrated, calibrate

        return package(t, Calibrated(trees, calibrate(y, trees.predict_proba(X)[:, 1])))
    estimators = {
        "linear": LogisticRegression(),
        "forest": RandomForestClassifier(20, max_depth=6, random_state=0),
        "histogram": HistGradientBoostingClassifier(max_iter=30),
        "mlp": MLPClassifier((48, 24), max_iter=15, random_state=0),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return package(t, estimators[kind].fit(X, y))


def torch_net(X, y):
    "A network with a batch normalisation and an activation that reads its input twice"
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(X.shape[1], 64),
        torch.nn.BatchNorm1d(64),
        torch.nn.SiLU(),
        torch.nn.Linear(64, 32),
        torch.nn.GELU(),
        torch.nn.Linear(32, 1),
    )
    optimizer, X, y = (
        torch.optim.Adam(net.parameters(), 3e-3),
        torch.tensor(X),
        torch.tensor(y, dtype=torch.float32)[:, None],
    )
    for part in (
        torch.randperm(len(X), generator=torch.Generator().manual_seed(0)).repeat(6).split(256)
    ):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(net(X[part]), y[part]).backward()
        optimizer.step()
    return net.eval()


KINDS = [
    "linear",
    "forest",
    "histogram",
    "regression",
    pytest.param("xgboost", marks=needs_xgboost),
    pytest.param("calibrated", marks=needs_xgboost),
    pytest.param("mlp", marks=needs_skl2onnx),
    pytest.param("torch", marks=needs_torch),
]
TREES = [
    k
    for k in KINDS
    if k in ("forest", "histogram", "regression")
    or getattr(k, "values", [""])[0] in ("xgboost", "calibrated")
]
NETS = KINDS[-2:]


def given_rows(m, ds=LATER, fits=lambda proto: True):
    inputs = {n: a.reshape(-1, 1) for n, a in m.transform.raw(ds).items()}
    return SimpleNamespace(
        arrays=inputs, model=m, data=ds, score=m.score(inputs), fits=fits, seed=0
    )


def scores(m, proto, ds=LATER):
    return replace(m, graph=proto.SerializeToString(), booster=None).score(m.transform.raw(ds))


# ---- nothing left out that counts


@pytest.mark.parametrize("kind", KINDS)
def test_a_compact_graph_scores_the_same_to_the_last_bit(kind):
    m, strange = model(kind), LATER.assign(carrier=("row", np.array(["never seen"] * 8000, object)))
    small = compact(compact_trees(parsed(m.graph)))
    onnx.checker.check_model(small)
    assert len(small.SerializeToString()) < len(m.graph)
    for ds in (LATER, strange):
        np.testing.assert_array_equal(scores(m, small, ds), m.score(m.transform.raw(ds)))


def test_compacting_keeps_what_a_subgraph_reads():
    branch = lambda op: helper.make_graph(
        [helper.make_node(op, ["long name", "shift"], ["y"])],
        op,
        [],
        [helper.make_tensor_value_info("y", 1, [None])],
    )
    nodes = [
        helper.make_node("Identity", ["x"], ["long name"]),
        helper.make_node(
            "If", ["sure"], ["out"], then_branch=branch("Add"), else_branch=branch("Sub")
        ),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", 1, [None]), info("sure", 9, [])],
        [info("out", 1, [None])],
        [numpy_helper.from_array(np.float32([2]), "shift")],
    )
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    got = session(compact(proto).SerializeToString()).run(
        None, {"x": np.float32([1, 2]), "sure": np.array(False)}
    )[0]
    assert got.tolist() == [-1, 0]


def test_equal_constants_are_stored_once_and_others_are_not_mixed_up():
    "Two of the same bytes and another type or shape stay two"
    values = {
        "a": np.float32([[1, 0]]),
        "b": np.float32([[1, 0]]),
        "c": np.float32([1, 0]),
        "d": np.float32([[1, 0]]).view(np.int32),
    }
    nodes = [
        helper.make_node("Add", ["x", "a"], ["p"]),
        helper.make_node("Mul", ["p", "b"], ["q"]),
        helper.make_node("Add", ["q", "c"], ["r"]),
        helper.make_node("Cast", ["d"], ["e"], to=1),
        helper.make_node("Add", ["r", "e"], ["out"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", 1, [None, 2])],
        [info("out", 1, [None, 2])],
        [numpy_helper.from_array(v, k) for k, v in values.items()],
    )
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    small, x = compact(proto), {"x": np.float32([[3, 4]])}
    assert len(small.graph.initializer) == 3
    np.testing.assert_array_equal(
        *(session(p.SerializeToString()).run(None, x)[0] for p in (proto, small))
    )


# ---- forests


def brute(f: Forest, X):
    "The sum of the trees of each row, one by one"
    compare, out = list(MODES.values()), []
    for x in X:
        total = 0.0
        for n in f.roots:
            while f.true[n] >= 0:
                v = x[f.feature[n]]
                yes = f.missing_true[n] if np.isnan(v) else compare[f.mode[n]](v, f.threshold[n])
                n = f.true[n] if yes else f.false[n]
            total += float(f.weight[n])
        out.append(total / (len(f.roots) if f.average else 1) + f.base)
    return np.array(out)


def random_forest(seed, trees=4, depth=3):
    "Trees of any comparison, some of a single leaf"
    rng, columns = np.random.default_rng(seed), []

    def grow(level):
        columns.append(None)
        i = len(columns) - 1
        leaf = level == 0 or rng.random() < 0.25
        columns[i] = [
            rng.integers(3),
            rng.integers(-2, 3),
            0 if leaf else rng.choice([0, 1, 2, 3]),
            rng.random() < 0.5 and not leaf,
            -1,
            -1,
            rng.normal() if leaf else 0,
        ]
        if not leaf:
            columns[i][4:6] = grow(level - 1), grow(level - 1)
        return i

    roots = [grow(depth) for _ in range(trees)]
    feature, threshold, mode, missing, true, false, weight = map(
        np.array, zip(*columns, strict=True)
    )
    return Forest(
        np.array(roots),
        feature,
        threshold.astype(np.float32),
        mode.astype(np.uint8),
        missing.astype(bool),
        true,
        false,
        weight.astype(np.float32),
    )


def bare(f: Forest):
    "A graph of nothing but a forest of three features"
    node = helper.make_node("TreeEnsembleRegressor", ["X"], ["out"])
    info = helper.make_tensor_value_info
    proto = helper.make_model(
        helper.make_graph([node], "g", [info("X", 1, [None, 3])], [info("out", 1, [None, 1])]),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)],
    )
    return with_forest(proto, node, f)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.0, 0.75]))
def test_any_forest_is_written_and_read_again(seed, average, base):
    f = replace(random_forest(seed), average=average, base=base)
    X = np.random.default_rng(seed).integers(-3, 4, (50, 3)).astype(np.float32)
    X[::7, 1] = np.nan
    proto = bare(f)
    onnx.checker.check_model(proto)
    got = session(proto.SerializeToString()).run(None, {"X": X})[0].ravel()
    np.testing.assert_allclose(got, brute(f, X), atol=1e-5)
    node, again = forest_of(proto)
    np.testing.assert_allclose(brute(again, X) + base, brute(f, X), atol=1e-6)
    counts = _counts(f, X)
    assert counts[f.leaf].sum() == len(X) * len(f.roots) and (counts[f.roots] == len(X)).all()
    merged = counts[f.true[~f.leaf]] + counts[f.false[~f.leaf]]
    assert (counts[~f.leaf] == merged).all()
    total = (
        (brute(f, X) - base) * (len(f.roots) if average else 1)
    ).sum()  # so each row was counted at the leaf that it adds
    np.testing.assert_allclose((counts * f.weight)[f.leaf].sum(), total, atol=1e-3)


@pytest.mark.parametrize("kind", TREES)
def test_a_forest_in_the_older_operator_is_read_as_onnx_runtime_reads_it(kind):
    m = model(kind)
    node, f = forest_of(proto := tidy(parsed(m.graph)))
    rows = {k: v[:300] for k, v in given_rows(m).arrays.items()}
    X, total = tensor(proto, node.input[0], rows), tensor(proto, node.output[0], rows).ravel()
    np.testing.assert_allclose(brute(f, X), total, atol=2e-5)


@needs_skl2onnx
@pytest.mark.parametrize("estimator", ["forest", "boosting"])
def test_a_tree_classifier_from_outside_is_rewritten(estimator):
    from sklearn.ensemble import GradientBoostingClassifier
    from skl2onnx import to_onnx

    t = Transform(NUMBERS, NAMES).fit(TRAIN)
    X = t.transform(TRAIN).values
    made = {
        "forest": RandomForestClassifier(8, max_depth=4, random_state=0),
        "boosting": GradientBoostingClassifier(n_estimators=8),
    }[estimator].fit(X, TRAIN.late.values.astype(int))
    m = package(
        t, to_onnx(made, X[:1], options={"zipmap": False}, target_opset={"": 21, "ai.onnx.ml": 3})
    )
    assert any(n.op_type == "TreeEnsembleClassifier" for n in parsed(m.graph).graph.node)
    small = compact(compact_trees(parsed(m.graph)))
    assert not any(n.op_type == "TreeEnsembleClassifier" for n in small.graph.node)
    np.testing.assert_allclose(scores(m, small), m.score(m.transform.raw(LATER)), atol=1e-6)
    report = slim(m, LATER, "late", methods=["rounds", "leaves"], tolerance=0.02)
    assert report.proposed and report.full.size > 2.5 * report.proposed.size


def test_furthest_finds_the_last_that_fits():
    assert [furthest(lambda i: i, 40, lambda i, n=n: i <= n) for n in range(1, 41)] == list(
        range(1, 41)
    )
    with pytest.raises(DoesNotApply):
        furthest(lambda i: i, 40, lambda i: False)


@needs_xgboost
def test_the_first_rounds_rank_rows_as_the_booster_s_first_rounds_do():
    from xgboost import Booster

    m, seen = model("xgboost"), []

    def fits(proto):
        seen.append(len(forest_of(proto)[1].roots))
        return seen[-1] >= 21

    few = fewer_rounds(parsed(m.graph), given_rows(m, fits=fits))
    trees, constant = 20, 21  # the base is a tree of its own
    assert len(forest_of(few)[1].roots) == constant
    own = Booster(model_file=bytearray(m.booster))[:trees].inplace_predict(
        m.transform.transform(LATER).values
    )
    logit = lambda p: np.log(p / (1 - p))
    ours, theirs = logit(np.float64(scores(m, few))), logit(np.float64(own))
    slope, shift = np.polyfit(theirs, ours, 1)
    assert slope > 1 and np.abs(ours - slope * theirs - shift).max() < 1e-4
    closer = np.abs(scores(m, few) - m.score(m.transform.raw(LATER))).mean()
    assert closer < np.abs(own - m.score(m.transform.raw(LATER))).mean()


def test_fewer_averaged_trees_are_still_a_mean():
    m = model("forest")
    few = fewer_rounds(
        parsed(m.graph), given_rows(m, fits=lambda proto: len(forest_of(proto)[1].roots) >= 10)
    )
    f = forest_of(few)[1]
    assert len(f.roots) == 10 and abs(f.weight[f.leaf].max() * 10 - 1) < 1e-5
    assert (
        0 <= scores(m, few).min()
        and scores(m, few).max() <= 1 + 1e-6
        and abs(scores(m, few).mean() - m.score(m.transform.raw(LATER)).mean()) < 0.02
    )


def test_leaves_that_say_the_same_go_first_and_change_nothing():
    "A tree whose right half is one value, spread over four leaves"
    f = Forest(
        np.array([0]),
        np.array([0, 1, 1, 2, 2, 0, 0, 0, 0]),
        np.float32([0, 1, 1, 0, 0, 0, 0, 0, 0]),
        np.ones(9, np.uint8),
        np.zeros(9, bool),
        np.array([1, -1, 3, 5, 7, -1, -1, -1, -1]),
        np.array([2, -1, 4, 6, 8, -1, -1, -1, -1]),
        np.float32([0, -1, 0, 0, 0, 2, 2, 2, 2]),
    )
    X = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    order, weight = _merges(f, _counts(f, X))
    assert {*order[[2, 3, 4]]} == {0, 1, 2} and order[2] == 2 and order[0] == 3
    gone = order < 3
    pruned = _reached(
        replace(
            f,
            true=np.where(gone, -1, f.true),
            false=np.where(gone, -1, f.false),
            weight=np.where(gone, weight, f.weight),
        )
    )
    assert len(pruned.leaf) == 3
    np.testing.assert_array_equal(brute(pruned, X), brute(f, X))


def test_a_merged_leaf_says_the_mean_of_the_rows_that_reach_it():
    f = Forest(
        np.array([0]),
        np.zeros(3, int),
        np.float32([0, 0, 0]),
        np.ones(3, np.uint8),
        np.zeros(3, bool),
        np.array([1, -1, -1]),
        np.array([2, -1, -1]),
        np.float32([0, 1, 4]),
    )
    X = np.float32([[-1, 0, 0]] * 9000 + [[1, 0, 0]] * 1000)
    assert abs(_merges(f, _counts(f, X))[1][0] - 1.3) < 1e-3


@pytest.mark.parametrize("kind", TREES)
def test_fewer_leaves_keep_the_mean_score(kind):
    m = model(kind)
    rows = given_rows(m)
    whole = forest_of(parsed(m.graph))[1].leaf.sum()
    few = fewer_leaves(
        parsed(m.graph),
        replace_fits(rows, lambda proto: forest_of(proto)[1].leaf.sum() >= whole / 2),
    )
    assert whole / 2 <= forest_of(few)[1].leaf.sum() <= whole * 0.55
    got, before = scores(m, few), rows.score
    assert (
        abs(got.mean() - before.mean()) < 0.02 * before.std() + 0.005
        and np.corrcoef(got, before)[0, 1] > 0.98
    )


def replace_fits(rows, fits):
    return SimpleNamespace(**{**vars(rows), "fits": fits})


# ---- networks


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize(
    ("method", "least", "most"),
    [
        (float16, 1.5, 2e-3),
        (int8_weights, 2.2, 0.05),
        (int8_dynamic, 2.2, 0.12),
        (int8_static, 2, 0.15),
    ],
)
def test_a_quantised_network_is_smaller_and_says_nearly_the_same(kind, method, least, most):
    m = model(kind)
    small = compact(method(parsed(m.graph), given_rows(m)))
    onnx.checker.check_model(small)
    change = np.abs(scores(m, small) - m.score(m.transform.raw(LATER)))
    assert 0 < change.max() < most and len(m.graph) / len(small.SerializeToString()) > least


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize(
    "method", [float16, int8_weights, int8_dynamic, int8_static, fewer_neurons]
)
def test_the_features_stay_as_they_were(kind, method):
    "Only layers are touched: what decides between categories and buckets is not"
    m = model(kind)
    proto, rows = parsed(m.graph), given_rows(m, LATER.isel(row=slice(0, 1000)))
    np.testing.assert_array_equal(
        tensor(method(proto, rows), FEATURES, rows.arrays),
        tensor(tidy(proto), FEATURES, rows.arrays),
    )


@needs_torch
def test_integers_are_multiplied_where_that_is_promised():
    m = model("torch")
    ops = lambda method: {
        n.op_type for n in compact(method(parsed(m.graph), given_rows(m))).graph.node
    }
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= ops(int8_dynamic) and {
        "QuantizeLinear",
        "DequantizeLinear",
    } <= ops(int8_static)
    assert not {"MatMulInteger", "QuantizeLinear"} & ops(int8_weights)


def dense(*sizes, activation="Relu", residual=False, seed=0):
    "A network of layers of these sizes, as ONNX from features to one score"
    rng, x, nodes, constants = np.random.default_rng(seed), "X", [], []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
        constants += [
            numpy_helper.from_array(
                (rng.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32), f"W{i}"
            ),
            numpy_helper.from_array(rng.normal(size=b).astype(np.float32), f"b{i}"),
        ]
        nodes += [
            helper.make_node("MatMul", [x, f"W{i}"], [f"p{i}"]),
            helper.make_node("Add", [f"p{i}", f"b{i}"], [f"s{i}"]),
        ]
        last = f"s{i}"
        if i < len(sizes) - 2:
            nodes.append(helper.make_node(activation, [last], [last := f"a{i}"]))
            if residual and a == b:
                nodes.append(helper.make_node("Add", [last, x], [last := f"r{i}"]))
        x = last
    nodes.append(helper.make_node("Sigmoid", [x], ["out"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [info("X", TensorProto.FLOAT, [None, sizes[0]])],
        [info("out", TensorProto.FLOAT, [None, 1])],
        constants,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def planted(proto, layer=0, twins=6, dead=4):
    "Make neurons of a layer copies of others, and some never speak"
    known = arrays(proto)
    W, b = known[f"W{layer}"].copy(), known[f"b{layer}"].copy()
    W[:, :twins], b[:twins] = W[:, twins : 2 * twins], b[twins : 2 * twins]
    b[-dead:] = -100
    for i in proto.graph.initializer:
        if i.name == f"W{layer}":
            i.CopyFrom(numpy_helper.from_array(W, i.name))
        if i.name == f"b{layer}":
            i.CopyFrom(numpy_helper.from_array(b, i.name))
    return proto


def run(proto, X):
    return session(proto.SerializeToString()).run(None, {"X": X})[0].ravel()


@pytest.mark.parametrize("layer", [0, 1])
def test_neurons_that_repeat_others_or_never_speak_go_without_a_change(layer):
    proto, X = (
        planted(dense(10, 32, 24, 1), layer),
        np.random.default_rng(1).normal(size=(4000, 10)).astype(np.float32),
    )
    before = run(proto, X)
    few = fewer_neurons(
        proto,
        SimpleNamespace(arrays={"X": X}, fits=lambda p: np.abs(run(p, X) - before).max() < 2e-3),
    )
    size = arrays(tidy(few))[f"W{layer}"].shape[1]
    assert size <= (32, 24)[layer] - 10
    assert np.abs(run(few, X) - before).max() < 2e-3


def test_the_surgeon_foresees_the_error_of_the_best_fit():
    rng = np.random.default_rng(0)
    said = rng.normal(size=(3000, 8)) @ rng.normal(size=(8, 8)) + 3
    G, W = np.cov(said.T, bias=True), rng.normal(size=(8, 3))
    order, error = surgeon(G, W)
    for n in range(1, 8):
        keep = np.sort(order[n:])
        new, bias = refitted(G, said.mean(0), W, keep)
        lost = said @ W - said[:, keep] @ new - bias
        A = np.column_stack([said[:, keep], np.ones(3000)])
        best = said @ W - A @ np.linalg.lstsq(A, said @ W, rcond=None)[0]
        np.testing.assert_allclose(
            [(lost**2).sum() / 3000, error[n - 1]], (best**2).sum() / 3000, rtol=1e-3
        )


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid", "Softplus"])
def test_any_activation_that_acts_alone_is_seen_through(activation):
    proto = tidy(dense(6, 16, 12, 1, activation=activation))
    assert [h.weight for h in hidden(proto)] == ["W0", "W1"]


def test_neurons_that_are_read_twice_or_together_stay():
    "A residual connection reads a layer twice; a softmax mixes neurons"
    assert [h.weight for h in hidden(tidy(dense(6, 16, 16, 12, 1, residual=True)))] == ["W2"]
    with pytest.raises(DoesNotApply):
        hidden(tidy(dense(6, 16, 1, activation="Softmax")))


@needs_torch
def test_batch_normalisation_and_gates_are_cut_with_their_neurons():
    m = model("torch")
    proto, X = parsed(m.graph), given_rows(m)
    few = fewer_neurons(
        proto,
        replace_fits(
            X,
            lambda p: (
                evaluate(LATER.late, scores(m, p)).roc_auc
                > evaluate(LATER.late, X.score).roc_auc - 0.01
            ),
        ),
    )
    before, after = (
        sorted(arrays(p)[layer.weight].shape for layer in layers(p))
        for p in (tidy(proto), tidy(few))
    )
    assert sum(a * b for a, b in after) < 0.7 * sum(a * b for a, b in before)


# ---- calibrations


def curved(points=60):
    "A calibrated linear model"
    from scalai_nb.evaluation.calibration import Calibrated, Calibration

    t = Transform(NUMBERS, NAMES).fit(TRAIN)
    x = np.linspace(0.02, 0.98, points)
    return package(
        t,
        Calibrated(
            LogisticRegression().fit(t.transform(TRAIN).values, TRAIN.late.values),
            Calibration("isotonic", x, x**2 + 0.001 * np.sin(50 * x) + 0.001),
        ),
    )


def test_a_curve_is_found_and_drawn_with_fewer_points():
    m = curved()
    c = curve_of(proto := tidy(parsed(m.graph)))
    assert len(c.x) == 60 and np.allclose(c.x, np.linspace(0.02, 0.98, 60))
    before = m.score(m.transform.raw(LATER))
    few = fewer_points(
        proto, SimpleNamespace(fits=lambda p: np.abs(scores(m, p) - before).max() < 0.01)
    )
    after = curve_of(few)
    assert (
        4 <= len(after.x) <= 20
        and {*after.x} <= {*c.x}
        and 0 < np.abs(scores(m, few) - before).max() < 0.01
    )
    same = with_curve(proto, c, c.x, c.y)
    np.testing.assert_array_equal(scores(m, same), before)
    np.testing.assert_array_equal(scores(m, compact(compact_trees(few))), scores(m, few))


@needs_xgboost
def test_the_tree_that_looks_up_a_place_is_not_a_forest():
    with pytest.raises(DoesNotApply, match="no tree"):
        forest_of(tidy(parsed(curved().graph)))
    _, f = forest_of(proto := tidy(parsed(model("calibrated").graph)))
    assert len(f.roots) >= 60 and len(curve_of(proto).x) > 2
    with pytest.raises(DoesNotApply, match="no isotonic calibration"):
        curve_of(tidy(parsed(model("xgboost").graph)))
    r = slim(curved(), LATER, "late", by="origin")
    assert (
        r.proposed.method == "calibration"
        and {v.method for v in r.variants if v.model} == {"compact", "calibration"}
        and r.full.size / r.proposed.size > 2
    )


# ---- the report

REPORTS = {
    "forest": {"compact", "rounds", "leaves", "rounds + leaves"},
    "histogram": {"compact", "rounds", "leaves"},
    "xgboost": {"compact", "leaves", "distil"},
    "mlp": {
        "compact",
        "float16",
        "int8 stored",
        "int8 dynamic",
        "int8 static",
        "weights",
        "weights + int8 stored",
        "weights + int8 dynamic",
    },
    "torch": {
        "compact",
        "float16",
        "int8 stored",
        "int8 dynamic",
        "int8 static",
        "weights",
        "weights + int8 stored",
        "weights + int8 dynamic",
    },
}


@cache
def report(kind):
    return slim(
        model(kind),
        LATER,
        "late",
        goals={"auc": ">= 0.6"},
        by="origin",
        tolerance=0.01,
        methods=None if kind != "xgboost" else ["compact", "float16", "leaves", "distil"],
    )


@pytest.mark.parametrize("kind", [k for k in KINDS if getattr(k, "values", [k])[0] in REPORTS])
def test_each_method_is_tried_measured_and_the_smallest_good_one_proposed(kind):
    r = report(kind)
    made = {v.method for v in r.variants if v.model}
    assert REPORTS[kind] <= made and all(v.reason for v in r.variants if not v.model)
    good = [v for v in r.variants if v.good]
    assert (
        r.proposed.size == min(v.size for v in good)
        and r.best is r.proposed.model
        and r.full.size / r.proposed.size > 2.3
    )
    for v in good:
        assert {"all", "origin=JFK", "origin=LGA"} == {*v.losses} and max(
            loss for loss, _ in v.losses.values()
        ) <= 0.01
        assert 0 < v.median_ms <= v.p95_ms and v.rows_per_second > 0
    assert (
        r.proposed.method in r.proposal
        and "proposed" in set(r.table.verdict)
        and "<svg" in r._repr_html_()
    )


@pytest.mark.parametrize("kind", [k for k in KINDS if getattr(k, "values", [k])[0] in REPORTS])
def test_what_the_report_says_is_true(kind):
    "The losses are those of the models that it hands out, on the rows that it judged by"
    r, m = report(kind), model(kind)
    for v in r.variants:
        if not v.model:
            continue
        assert (
            abs(evaluate(LATER.late, v.model.predict(LATER)).roc_auc - v.measured["all"]["auc"])
            < 0.02
        )
        assert (
            v.size == len(v.model.graph)
            and v.parity >= 0
            and (v.parity == 0) == (v.method == "compact")
        )
        assert np.abs(v.model.predict(LATER) - m.predict(LATER)).max() <= 2 * v.parity + 1e-5


@pytest.mark.parametrize("kind", [k for k in KINDS if getattr(k, "values", [k])[0] in REPORTS])
def test_a_slim_model_is_a_package_like_any_other(kind, tmp_path):
    r, m = report(kind), model(kind)
    again = Model.load(r.best.save(tmp_path / "slim"))
    assert again.predict(LATER).identical(r.best.predict(LATER)) and digest(again) == digest(
        r.best
    ) != digest(m)
    card = again.card["slimmed"]
    assert (
        card["made_from"] == digest(m)
        and card["method"] == r.proposed.method
        and card["bytes"] == len(again.graph) < card["bytes_before"] == len(m.graph)
    )
    assert (
        again.card["metrics"]["auc"]["this model"] == r.proposed.measured["all"]["auc"]
        and r.proposed.method in again.to_markdown()
    )
    assert again.contract is m.contract or again.contract == m.contract


@needs_xgboost
def test_trees_of_xgboost_keep_a_booster_for_many_rows():
    r, rows = report("xgboost"), LATER.isel(row=slice(0, 4000))
    for method in ("compact", "leaves", "distil"):
        m = r[method]
        assert m.twin, method
        np.testing.assert_allclose(m.predict(rows), m.score(m.transform.raw(rows)), atol=1e-5)
        m.check()
    calibrated = slim(
        model("calibrated"), LATER, "late", methods=["leaves", "distil"], tolerance=0.02
    )
    for v in calibrated.variants:
        assert v.model.twin, v
        np.testing.assert_allclose(
            v.model.predict(rows), v.model.score(v.model.transform.raw(rows)), atol=1e-5
        )


def two_laws(rows, seed):
    "A common group that one large weight serves, and a rare one that needs a small weight"
    rng = np.random.default_rng(seed)
    rare = rng.random(rows) < 0.03
    a, b = rng.normal(size=(2, rows))
    y = rng.random(rows) < 1 / (1 + np.exp(-np.where(rare, 3 * b, 3 * a)))
    return xr.Dataset(
        {
            "a": ("row", np.where(rare, 0, a)),
            "b": ("row", np.where(rare, b, 0)),
            "group": ("row", np.where(rare, "rare", "common").astype(object)),
            "y": ("row", y),
        }
    )


def test_a_method_that_harms_a_small_slice_is_not_proposed():
    "Trees of the rare group are the last: without them all rows lose little, the group everything"
    train, later = two_laws(20_000, 0), two_laws(30_000, 1)
    t = Transform(["a", "b"]).fit(train)
    X, y = t.transform(train).values, train.y.values
    one, two = (
        HistGradientBoostingClassifier(max_iter=n, max_depth=3, learning_rate=0.3).fit(
            X[rows], y[rows]
        )
        for n, rows in ((30, train.group == "common"), (10, train.group == "rare"))
    )
    node, f = forest_of(proto := tidy(parsed(package(t, one).graph)))
    g = forest_of(tidy(parsed(package(t, two).graph)))[1]
    shift = len(f.leaf)
    both = {
        n: np.concatenate([getattr(f, n), getattr(g, n)])
        for n in ("feature", "threshold", "mode", "missing_true", "weight")
    }
    both |= {
        n: np.concatenate([getattr(f, n), np.where(getattr(g, n) < 0, -1, getattr(g, n) + shift)])
        for n in ("true", "false")
    }
    whole = replace(
        package(t, one),
        graph=with_forest(
            proto, node, Forest(np.append(f.roots, g.roots + shift), base=f.base, **both)
        ).SerializeToString(),
    )
    blind = slim(
        whole, later, "y", goals={"auc": ">= 0.5"}, tolerance=0.03, methods=["rounds"]
    ).variants[0]
    assert blind.good and len(forest_of(parsed(blind.model.graph))[1].roots) <= len(f.roots)
    aware = slim(
        whole, later, "y", goals={"auc": ">= 0.5"}, by="group", tolerance=0.03, methods=["rounds"]
    ).variants[0]
    assert aware.model is None or len(forest_of(parsed(aware.model.graph))[1].roots) > len(f.roots)
    from scalai_nb.models.slim import slim as module

    blinded = module.METHODS | {"blinded": (lambda proto, rows: parsed(blind.model.graph),)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "METHODS", blinded)
        judged = slim(
            whole,
            later,
            "y",
            goals={"auc": ">= 0.5"},
            by="group",
            tolerance=0.03,
            methods=["blinded"],
        )
    assert (
        judged.variants[0].reason.startswith("group=rare loses")
        and judged.proposed is None
        and judged.best is whole
    )


def test_slices_of_few_rows_are_not_judged_and_columns_are_sliced_one_by_one():
    few = LATER.assign(
        carrier=LATER.carrier.copy(
            data=np.where(np.arange(8000) < 30, "tiny", LATER.carrier.values)
        )
    )
    r = slim(model("linear"), few, "late", by=["carrier", "origin"], methods=["compact"])
    slices = {*r.full.measured} - {"all"}
    assert (
        "carrier=tiny" not in slices
        and {"carrier=a", "origin=JFK", "origin=LGA"} <= slices
        and not any("·" in s for s in slices)
    )


def test_where_nothing_holds_the_report_says_so():
    r = slim(
        model("mlp") if find_spec("skl2onnx") else model("linear"),
        LATER,
        "late",
        by="carrier",
        tolerance=0,
        methods=["int8 dynamic"],
    )
    assert (
        r.proposed is None
        and r.best is r.full.model
        and r.proposal.startswith(
            "Keep the full model: no slice may lose more than 0 of roc_auc or log_loss"
        )
    )


def test_a_model_without_trees_or_layers_is_only_compacted():
    r = slim(model("linear"), LATER, "late")
    reasons = {v.method: v.reason for v in r.variants if not v.model}
    assert r.proposed.method == "compact" and {*reasons} == {*METHODS} - {"compact"}
    assert (
        reasons["int8 dynamic"] == "it has no layers: a linear model is one column of weights"
        and reasons["rounds"] == "there is no tree in it"
    )
    again = slim(r.best, LATER, "late", methods=["compact"])
    assert (
        again.proposed is None
        and "compact already" in again.variants[0].reason
        and "no method makes it smaller" in again.proposal
    )


def test_goals_are_of_quality_at_a_threshold_and_of_cost():
    m = model("forest")
    r = slim(
        m,
        LATER,
        "late",
        goals={
            "recall": ">= 0.5",
            "alerts": "<= 0.6",
            "latency_ms": "<= 1000",
            "size_kb": f"<= {len(m.graph) / 1000 / 2}",
        },
        trial=Trial(threshold=0.4),
        methods=["compact", "rounds"],
    )
    assert {*r.full.measured["all"]} == {"recall", "alerts"} and r.proposed
    p = evaluate(LATER.late, m.predict(LATER)).at(0.4)
    assert abs(r.full.measured["all"]["recall"] - p.recall) < 0.03
    assert slim(m, LATER, "late", goals={"size_kb": "<= 0.1"}, methods=["compact"]).proposed is None
    high = slim(m, LATER, "late", goals={"auc": ">= 0.999"}, methods=["compact"])
    assert "The full model itself misses auc >= 0.999." in high.proposal and high.proposed


def test_a_goal_that_only_the_slim_model_misses_counts_against_it():
    m = model("forest")
    own = slim(m, LATER, "late", goals={"auc": ">= 0"}, methods=["compact"]).full.measured["all"][
        "auc"
    ]
    r = slim(
        m, LATER, "late", goals={"auc": f">= {own - 1e-9:.12f}"}, tolerance=0.5, methods=["leaves"]
    )
    assert (
        r.variants[0].model is None
        or r.variants[0].measured["all"]["auc"] >= own - 1e-9
        or "misses" in r.variants[0].reason
    )


def test_a_regression_is_judged_by_its_errors():
    r = slim(
        model("regression"),
        LATER,
        "minutes",
        tolerance=0.05,
        methods=["compact", "rounds", "leaves", "int8 dynamic"],
    )
    assert r.proposed and r.proposed.losses["all"][1] == "mae" and r.full.size > 2 * r.proposed.size
    full, small = (
        np.abs(x.predict(LATER) - LATER.minutes).mean().item() for x in (r.full.model, r.best)
    )
    assert small / full < 1.08
    r.best.check()


def test_rows_to_learn_and_to_judge_are_apart_and_bounded():
    from scalai_nb.models.slim.slim import _chosen
    from scalai_nb.models.slim.terms import Terms

    y = np.random.default_rng(0).random(10_000) < 0.02
    terms = Terms({}, 0.005, None, regression=False)
    learn, test = _chosen(y.astype(np.int8), 3000, terms, 0)
    assert (
        not np.intersect1d(learn, test).size
        and len(learn) + len(test) <= 3001
        and abs(y[learn].sum() - y[test].sum()) <= 1
        and y[test].sum() >= 28
    )
    assert (np.diff(learn) > 0).all() and not np.array_equal(
        learn, _chosen(y.astype(np.int8), 3000, terms, 1)[0]
    )
    r = slim(model("linear"), LATER, "late", methods=["compact"], trial=Trial(rows=1000))
    assert sum(r.rows) <= 1001


def test_data_on_dask_is_taken_and_gives_the_same():
    r, lazy = (
        slim(model("linear"), ds, "late", by="origin", methods=["compact"])
        for ds in (LATER, LATER.chunk(row=1000))
    )
    assert r.full.measured == lazy.full.measured


@pytest.mark.parametrize(
    ("data", "options", "error", "text"),
    [
        (
            LATER,
            {"label": "delayed"},
            ParameterError,
            "'delayed' is not in the columns of the data; known:",
        ),
        (LATER.isel(row=slice(0, 0)), {}, ContractViolation, "The data has no rows"),
        (
            LATER.assign(late=("row", np.ones(8000))),
            {},
            ContractViolation,
            r"'late' has \{1.0: 8000\} rows; both classes",
        ),
        (
            LATER.assign(late=("row", np.arange(8000) < 3)),
            {},
            ContractViolation,
            "both classes are needed, with four rows",
        ),
        (
            LATER.assign(late=("row", np.where(np.arange(8000) < 5, np.nan, 1.0))),
            {},
            ContractViolation,
            "'late' is missing in 5 of 8,000 rows",
        ),
        (
            LATER.assign(late=("row", np.arange(8000))),
            {},
            ContractViolation,
            "the label of a model of probabilities is 0 or 1",
        ),
        (LATER.assign(late=LATER.carrier), {}, ContractViolation, "'late' holds object"),
        (
            LATER,
            {"goals": {"acu": ">= 0.7"}},
            ParameterError,
            "'acu' is not in the goals that slim can measure.*Did you mean 'auc'",
        ),
        (LATER, {"goals": {"auc": "0.7"}}, ParameterError, "'0.7' is not a goal"),
        (LATER, {"goals": {"recall": ">= 0.7"}}, ParameterError, "pass threshold="),
        (LATER, {"by": "airline"}, ParameterError, "'airline' is not in the columns"),
        (
            LATER,
            {"methods": ["int4"]},
            ParameterError,
            "'int4' is not in the methods of slim; known: calibration",
        ),
        (LATER, {"tolerance": -0.1}, ParameterError, "tolerance=-0.1 is not known"),
        (LATER.drop_vars("x3"), {}, (ParameterError, ContractViolation), "x3"),
    ],
)
def test_what_cannot_be_judged_is_refused(data, options, error, text):
    with pytest.raises(error, match=text):
        slim(model("linear"), data, options.pop("label", "late"), **options)


def test_the_sum_of_several_outputs_is_not_taken_for_one():
    with pytest.raises(DoesNotApply, match="several outputs"):
        _old(
            _attributes(
                helper.make_node(
                    "TreeEnsembleRegressor", ["x"], ["y"], target_ids=[0, 1], n_targets=2
                )
            ),
            "target",
        )


KERAS = """
import numpy as np, keras, tensorflow as tf, tf2onnx
X, y = np.load("X.npy"), np.load("y.npy")
keras.utils.set_random_seed(0)
net = keras.Sequential([keras.Input((X.shape[1],)), keras.layers.Dense(64, "relu"), \
keras.layers.Dense(32, "relu"), keras.layers.Dense(1, "sigmoid")])
net.compile("adam", "binary_crossentropy")
net.fit(X, y, epochs=2, verbose=0)
tf2onnx.convert.from_function(tf.function(net), \
[tf.TensorSpec((None, X.shape[1]), tf.float32, name="x")], output_path="net.onnx")
"""


def test_a_keras_net_is_slimmed(tmp_path):
    python = tool("tensorflow") / "python"
    t = Transform(NUMBERS, NAMES).fit(TRAIN)
    np.save(tmp_path / "X.npy", t.transform(TRAIN).values)
    np.save(tmp_path / "y.npy", TRAIN.late.values)
    done = subprocess.run(
        [python, "-c", KERAS], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    r = slim(
        package(t, tmp_path / "net.onnx"),
        LATER,
        "late",
        by="origin",
        tolerance=0.01,
        methods=["int8 stored", "int8 dynamic", "weights + int8 dynamic"],
    )
    assert all(v.model for v in r.variants) and r.proposed and r.full.size / r.proposed.size > 2.2
    Model.load(r.best.save(tmp_path / "slim")).check()
