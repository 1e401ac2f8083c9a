"Columns far from 0: features, packages and servers keep what float64 holds of them"

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
import pandas as pd
import pytest
import xarray as xr
from onnx import numpy_helper
from served import worker

import scalai_nb as sn
from scalai_nb.client.inference import infer_request
from scalai_nb.client.sendable import columns_of
from scalai_nb.data.streams.framing import frame
from scalai_nb.learn.features.recipes import CROWDED, FAR
from scalai_nb.models.package.runtime import session
from scalai_nb.serving.log.encoding import MODEL, batch, layout, read
from scalai_nb.serving.log.pseudonyms import pseudonym
from scalai_nb.serving.log.segments import logged
from scalai_nb.serving.log.segments import table as segment
from scalai_nb.serving.protocols.formats import READERS
from scalai_nb.serving.refusal import Refusal
from scalai_nb.serving.scoring.calls import Call
from scalai_nb.serving.scoring.matrix import NUMBERS, matrix_graph
from scalai_nb.serving.scoring.rollout import arranged
from scalai_nb.serving.scoring.scorer import Column, Scorer
from scalai_nb.serving.scoring.validation import Rows, within

DTYPES = "f4", "f8", "i2", "i4", "i8", "u1", "u4", "u8"
SEEDS = range(12)
ROWS = 600


def column(rng, dtype, rows=ROWS):
    "An offset from 0 to 1e15 and a scale from 1e-6 to 1e6, as far as the type can hold both"
    kind = np.dtype(dtype)
    while True:
        offset = rng.choice([0, 1]) * 10.0 ** rng.uniform(0, 15)
        scale = 10.0 ** rng.uniform(-6, 6)
        if kind.kind == "f":
            if offset * np.finfo(kind).eps * 2000 < scale:
                break
        elif scale > 2 and offset + 6 * scale < min(np.iinfo(kind).max, 2**53):
            break
    x = offset + scale * rng.standard_normal(rows)
    if kind.kind != "f":
        return np.clip(np.rint(x), 0 if kind.kind == "u" else None, None).astype(kind)
    return np.where(rng.random(rows) < 0.1, np.nan, x).astype(kind)


def table(seed, rows=ROWS):
    rng = np.random.default_rng(seed)
    return xr.Dataset({dtype: ("row", column(rng, dtype, rows)) for dtype in DTYPES})


def curve(x):
    return np.copysign(np.log1p(np.abs(x)), x)


def scikit(x, impute="mean", scale="StandardScaler", log=False):
    "Features of a column in float64, and how far float64 itself may be off"
    from sklearn import preprocessing
    from sklearn.impute import SimpleImputer

    filled = SimpleImputer(strategy=impute).fit_transform(x.astype(np.float64)[:, None])
    scaler = getattr(preprocessing, scale)()
    given = curve(filled) if log else filled
    features = scaler.fit_transform(given)[:, 0]
    spread = np.ptp(given) / (np.ptp(features) or 1)
    return features, 64 * np.finfo(float).eps * np.abs(given).max() / spread


SCALERS = {"standard": "StandardScaler", "robust": "RobustScaler", "minmax": "MinMaxScaler"}
ROUNDING = 2 / FAR / 2**3 / 2**7  # twice 128 / 2**24: of a value, and of the mean


def test_the_bound_is_the_one_that_is_said():
    assert ROUNDING == 2 * FAR / 2**24


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scale", SCALERS)
@pytest.mark.parametrize("log", [False, True])
def test_features_are_those_of_float64(seed, scale, log):
    ds = table(seed)
    t = sn.Transform(list(DTYPES), scale=scale, log=log).fit(ds)
    X = t.transform(ds)
    for name in DTYPES:
        expected, own = scikit(ds[name].values, "mean", SCALERS[scale], log)
        if own < 1e-3:
            got = X.sel(feature=name).values
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=ROUNDING + own)


@pytest.mark.parametrize("seed", SEEDS[:4])
def test_every_route_gives_the_same_features(seed):
    ds = table(seed)
    t = sn.Transform({n: {"indicator": True} for n in DTYPES}, clip=(0.01, 0.99), impute="median")
    X = t.fit(ds).transform(ds).values
    blocks = [block.copy() for block in t.blocks(ds, rows=77)]
    lazy = t.transform(ds.chunk(row=100)).values
    again = sn.Transform.from_dict(json.loads(json.dumps(t.to_dict())))
    for other in (np.concatenate(blocks), lazy, again.transform(ds).values):
        np.testing.assert_array_equal(other, X)
    parts = sn.Transform(t.numeric, clip=t.clip, impute=t.impute).fit(ds.chunk(row=100))
    np.testing.assert_allclose(parts.transform(ds).values, X, rtol=1e-5, atol=1e-5)


def as_frame(ds):
    return pd.DataFrame({n: ds[n].values.astype(np.float64) for n in DTYPES})


@pytest.mark.parametrize("seed", SEEDS[:6])
def test_a_package_scores_as_a_pipeline_of_scikit_learn(seed):
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ds = table(seed)
    scaled = make_pipeline(SimpleImputer(), StandardScaler())
    theirs = ColumnTransformer([("numbers", scaled, list(DTYPES))]).fit(as_frame(ds))
    features = theirs.transform(as_frame(ds))
    rng = np.random.default_rng(seed)
    y = features @ rng.standard_normal(len(DTYPES)) + rng.logistic(size=ROWS) > 0
    reference = LogisticRegression(C=10, tol=1e-8, max_iter=1000).fit(features, y)
    expected = reference.predict_proba(features)[:, 1]

    t = sn.Transform(list(DTYPES)).fit(ds)
    for own in (
        LogisticRegression(C=10, tol=1e-8, max_iter=1000),
        sn.LogisticRegression(C=10, tol=1e-8, max_iter=1000),
    ):
        fitted = own.fit(t.transform(ds).values, y)
        np.testing.assert_allclose(fitted.coef_, reference.coef_, atol=1e-3)
        got = sn.package(t, fitted).predict(ds).values
        np.testing.assert_allclose(got, expected, atol=1e-4)
        assert abs(roc_auc_score(y, got) - roc_auc_score(y, expected)) < 1e-4


@pytest.mark.parametrize("seed", SEEDS[:6])
def test_buckets_hold_the_values_that_are_in_them(seed):
    ds = table(seed)
    t = sn.Transform({n: {"bucket": 8, "impute": None} for n in DTYPES}).fit(ds)
    X = t.transform(ds)
    at = 0
    for n in t.numeric_:
        x = ds[n.name].values.astype(np.float64)
        known = x[~np.isnan(x)]
        edges = np.unique(np.quantile(known, np.arange(1, 8) / 8))
        edges = edges[edges > known.min()]
        place = np.searchsorted(edges, x, side="right")
        expected = np.eye(len(edges) + 1)[place] * ~np.isnan(x)[:, None]
        got = X.values[:, at : at + len(n.features)]
        assert got.shape == expected.shape
        assert (got != expected).any(axis=1).mean() <= 0.01
        at += len(n.features)
    assert CROWDED == 4096


def test_times_whose_middle_is_far_from_their_mean():
    "The median of times within a minute, of which one is of another century"
    since = np.datetime64("2024-01-01", "ms")
    at = since + np.random.default_rng(0).integers(0, 60_000, 300).astype("m8[ms]")
    at[0] = np.datetime64("1900-01-01", "ms")
    ds = xr.Dataset({"at": ("row", at)})
    seconds = (at - since) / np.timedelta64(1, "s")
    expected, _ = scikit(seconds, scale="RobustScaler")
    got = sn.Transform(["at"], scale="robust").fit(ds).transform(ds).values[:, 0]
    np.testing.assert_allclose(got[1:], expected[1:], atol=1e-4)


def test_whole_numbers_beyond_float64_are_rounded_to_it():
    x = np.array([2**60, 2**60 + 1, 2**60 + 256, 2**60 + 512])
    ds = xr.Dataset({"x": ("row", x)})
    got = sn.Transform(["x"]).fit(ds).transform(ds).values[:, 0]
    assert got[0] == got[1] < got[2] < got[3]


def test_trees_turn_where_they_turned_in_training():
    "A booster, its graph and the rows at their thresholds"
    ds = table(3)
    t = sn.Transform(list(DTYPES)).fit(ds)
    y = np.random.default_rng(0).random(ROWS) < 0.5
    m = sn.package(t, sn.BoostedTrees(rounds=20, max_depth=4).fit(t.transform(ds), y))
    assert any(n.centred for n in t.numeric_)
    np.testing.assert_allclose(m._unboosted(ds), m._boosted(ds), atol=1e-5)


# ---- served


def meters(rows=400):
    "Far numbers as float64 and int64, others as float32, a time and a string"
    rng = np.random.default_rng(5)
    signal = rng.standard_normal(rows)
    return xr.Dataset(
        {
            "near": ("row", np.where(rng.random(rows) < 0.1, np.nan, signal).astype("f4")),
            "kWh": ("row", np.where(rng.random(rows) < 0.1, np.nan, 1e9 + 0.5 * signal)),
            "tick": ("row", 1_700_000_000_000 + np.rint(50 * signal).astype("i8")),
            "hour": ("row", rng.integers(0, 24, rows)),
            "at": ("row", np.datetime64("2024-01-01", "s") + rng.integers(0, 10**6, rows)),
            "town": ("row", rng.choice(np.array(["A", "B", None], object), rows)),
            "late": ("row", signal + 0.2 * rng.standard_normal(rows) > 0),
        }
    )


NUMERIC = ["near", "kWh", "tick", "hour"]


def trained(numeric, categorical=(), name="meters"):
    ds = meters()
    t = sn.Transform(numeric, categorical).fit(ds)
    fitted = sn.LogisticRegression().fit(t.transform(ds), ds.late.values)
    kept = ds[[*numeric, *categorical, "late"]]
    return sn.package(t, fitted, sn.Contract.infer(kept, label="late"), name=name)


@pytest.fixture(scope="module")
def models():
    return {
        "plain": trained(NUMERIC, name="plain"),
        "all": trained([*NUMERIC, "at"], ["town"], name="all"),
        "far": trained(["kWh", "tick"], name="far"),
    }


@pytest.fixture(scope="module")
def url(models, tmp_path_factory):
    with worker(tmp_path_factory.mktemp("far"), models) as url:
        yield url


def ask(url, path, body, **headers):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    method = "POST" if body else "GET"
    headers = {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status == 200, content
    return content


def records(ds):
    table = ds.to_dataframe()
    if "at" in table:
        table["at"] = table["at"].dt.strftime("%Y-%m-%dT%H:%M:%S")
    rows = table.to_dict("records")
    return [{k: None if v is None or v != v else v for k, v in r.items()} for r in rows]


@pytest.mark.parametrize("name", ["plain", "all", "far"])
def test_a_server_answers_as_the_package(url, models, name):
    m = models[name]
    ds = meters()[list(m.card["inputs"])].isel(row=slice(0, 50))
    expected = m.predict(ds).values
    assert len(np.unique(expected.round(5))) > 30
    body = json.dumps({"instances": records(ds)}).encode()
    said = json.loads(ask(url, f"/v1/models/{name}:predict", body))
    np.testing.assert_array_equal(np.float32(said["predictions"]), expected)
    told = {
        i["name"]: i["datatype"] for i in json.loads(ask(url, f"/v2/models/{name}", b""))["inputs"]
    }
    assert told["kWh"] == told["tick"] == "FP64" and told.get("near", "FP32") == "FP32"
    for protocol in ("v1", "v2")[name == "all" :]:  # version 1 knows no seconds
        client = sn.Client(url, model=name, protocol=protocol, timeout=20)
        np.testing.assert_array_equal(client.predict(ds), expected)
    columns = columns_of(ds, told)
    for binary in (False, True):
        body, headers = infer_request(columns, binary)
        answer = ask(url, f"/v2/models/{name}/infer", body, **dict(headers))
        answer = (
            np.frombuffer(answer[-4 * len(expected) :], "<f4") if binary else json.loads(answer)
        )
        scores = answer if binary else np.float32(answer["outputs"][0]["data"])
        np.testing.assert_array_equal(scores, expected)


def test_the_matrix_of_a_graph_is_the_graph(models):
    for m in models.values():
        ds = meters()
        numbers = [n.name for n in m.transform.numeric_ if np.isnan(n.origin)]
        raw = m.transform.raw(ds)
        matrix = session(matrix_graph(m.graph, numbers))
        feed = {NUMBERS: np.stack([raw[n].astype(np.float64) for n in numbers], axis=1)}
        feed |= {n: raw[n].reshape(-1, 1) for n in raw if n not in numbers}
        np.testing.assert_array_equal(matrix.run(None, feed)[0].ravel(), m.score(raw))


def test_only_what_needs_it_is_float64(models):
    assert models["plain"].card["centred"] == ["kWh", "tick"]
    kinds = models["all"].card["inputs"]
    assert kinds == {
        "near": "FLOAT",
        "kWh": "DOUBLE",
        "tick": "DOUBLE",
        "hour": "FLOAT",
        "at": "DOUBLE",
        "town": "STRING",
    }


def test_a_package_comes_back_as_it_was(models, tmp_path):
    m = models["all"]
    again = sn.Model.load(m.save(tmp_path / "m"))
    assert again.predict(meters()).identical(m.predict(meters()))
    s = Scorer.load(tmp_path / "m", 1)
    assert s.numbers == tuple(NUMERIC) and s.dtype == np.float64
    assert [c.name for c in s.others] == ["at", "town"]


# ---- what a worker does with them


def scorer(version="1", wide=("kWh",), pii=()):
    columns = (
        Column("near", "number", low=-5, high=0.1),
        Column("kWh", "number", low=999_999_999, high=1_000_000_001, wide="kWh" in wide),
        Column("id", "number", pii="id" in pii, wide="id" in wide),
    )
    return Scorer("meters", version, columns, {}, {}, None)


@pytest.mark.parametrize("far", [("kWh",), ("id",), ("kWh", "id"), ()])
@pytest.mark.parametrize("pii", [(), ("id",)])
def test_a_log_keeps_the_digits(far, pii):
    s = scorer(wide=far, pii=pii)
    numbers = np.array([[0.1, 1e9 + 0.25, 1e12 + 1], [np.nan, 1e9 - 0.5, 7]]).astype(s.dtype)
    call = Call(s, Rows(numbers), "b7", None, None, protocol="v1", received=0.0)
    lay = layout(s)
    written = frame(MODEL, json.dumps(lay.record | {"share": 1.0}).encode())
    written += batch(0, lay, [call], numbers, (), np.float32([0.5, 0.25]), b"key")
    [back], _ = read(written)
    table = segment(back)
    for name, at in (("near", 0), ("kWh", 1), ("id", 2)):
        column = table[logged(name, lay.record)]
        if name in pii:
            expected = [pseudonym(v, b"key") for v in numbers[:, at].tolist()]
            assert column.to_pylist() == expected
            continue
        kind = np.float64 if name in far else np.float32
        assert column.type == ("double" if name in far else "float")
        np.testing.assert_array_equal(column.to_numpy(), numbers[:, at].astype(kind))


def test_limits_of_far_numbers_are_not_rounded():
    s = scorer()
    assert within(s, np.array([[0.1, 1e9 + 1, 3]])).dtype == np.float64
    assert within(s, np.array([[np.float32(0.1), 1e9 + 1, 3]])).dtype == np.float64
    with pytest.raises(Refusal, match="'kWh': 1e\\+09 is outside"):
        within(s, np.array([[0.1, 1e9 + 1.5, 3]]))
    assert within(scorer(wide=()), np.array([[0.1, 1e9 + 1, 3]])).dtype == np.float32


def test_another_version_takes_rows_that_are_as_exact():
    narrow, wide = scorer("1", ()), scorer("2")
    exact = np.array([[0.1, 1e9 + 0.25, 3]])
    assert arranged(Rows(exact.astype(np.float32)), narrow, wide) is None
    assert arranged(Rows(exact), wide, narrow).numbers.dtype == np.float32
    assert arranged(Rows(exact), wide, scorer("3")).numbers[0, 1] == 1e9 + 0.25


def test_arrow_rounds_whole_numbers_as_float64_does():
    import pyarrow as pa

    s = Scorer("ids", "1", (Column("id", "number", wide=True),), {}, {}, None)
    sink = pa.BufferOutputStream()
    rows = pa.table({"id": [2**60 + 1, 5]})
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    read_arrow = READERS["application/vnd.apache.arrow.stream"]
    assert read_arrow(s, sink.getvalue().to_pybytes()).numbers.ravel().tolist() == [2.0**60, 5]


def test_a_package_of_before_has_no_centres():
    folder = Path(__file__).parent / "former" / "model"
    m = sn.Model.load(folder)
    assert not any(n.centred for n in m.transform.numeric_)
    assert Scorer.load(folder, 1).dtype == np.float32


def test_the_graph_of_a_package_of_before_becomes_a_matrix(models):
    "Where a time's origin is a number rather than an array"
    m = models["all"]
    proto = onnx.load_from_string(m.graph)
    for c in proto.graph.initializer:
        x = numpy_helper.to_array(c)
        if x.dtype == np.float64 and x.shape == (1,):
            c.CopyFrom(numpy_helper.from_array(x.reshape(()), c.name))
    before = proto.SerializeToString()
    assert before != m.graph
    raw = m.transform.raw(meters())
    feed = {NUMBERS: np.stack([raw[n].astype(np.float64) for n in NUMERIC], axis=1)}
    feed |= {n: raw[n].reshape(-1, 1) for n in ("at", "town")}
    scores = session(matrix_graph(before, NUMERIC)).run(None, feed)[0]
    np.testing.assert_array_equal(scores.ravel(), m.score(raw))
