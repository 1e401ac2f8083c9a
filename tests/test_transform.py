"Transform: scikit-learn's definition for every option, whatever the blocks, and exact as JSON"

import json
import tracemalloc
import zlib
from types import SimpleNamespace

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings

from scalai_nb.errors import ContractViolation, ParameterError
from scalai_nb.kernels import features as kernels
from scalai_nb.learn.features import recipes
from scalai_nb.learn.features import transform as module
from scalai_nb.describe.summary import Summary, summarize
from scalai_nb.learn.features.transform import THREADS, TILE, Transform, codes, numbers

NUMERIC, CATEGORICAL = ["temp", "month", "flag", "flat"], ["carrier", "origin"]
EVERYTHING = {
    "numeric": {
        "temp": {"indicator": True, "impute": "median"},
        "month": {"bucket": 4},
        "flag": {},
        "skewed": {"clip": (0.02, 0.98), "log": True},
        "flat": {"scale": "minmax"},
        "time": {"scale": "robust", "impute": None},
    },
    "categorical": {
        "carrier": {"max_categories": 2, "unseen": "other"},
        "origin": {},
        "month2": {"hash": 3},
        "hour": {"frequency": True},
    },
}


def table(rows=5000, seed=0):
    "Numbers of every kind, categories as codes, strings and numbers, with holes; `flat` is fixed"
    rng = np.random.default_rng(seed)
    carrier = rng.choice([-1, 0, 1, 3], rows, p=[0.1, 0.2, 0.3, 0.4]).astype(
        "i1"
    )  # code 2 never occurs
    origin = rng.choice(np.array(["JFK", "LGA", "EWR", None], object), rows)
    hour = rng.integers(5, 24, rows)
    return xr.Dataset(
        {
            "temp": ("row", np.where(rng.random(rows) < 0.1, np.nan, rng.normal(60, 18, rows))),
            "month": ("row", rng.integers(1, 13, rows)),
            "flag": ("row", rng.random(rows) < 0.3),
            "flat": ("row", np.full(rows, 0.1)),
            "skewed": (
                "row",
                np.where(
                    rng.random(rows) < 0.05, np.nan, np.exp(rng.normal(2, 2, rows)) - 1
                ).astype("f4"),
            ),
            "time": (
                "row",
                np.where(
                    rng.random(rows) < 0.05,
                    np.datetime64("NaT", "s"),
                    np.datetime64("2013-01-01", "s") + rng.integers(0, 10**7, rows),
                ),
            ),
            "carrier": ("row", carrier, {"categories": ["UA", "AA", "WN", "B6"]}),
            "origin": ("row", origin),
            "hour": ("row", np.where(rng.random(rows) < 0.05, np.nan, hour)),
            "month2": ("row", rng.integers(1, 13, rows)),
        },
        attrs={"title": "drawn"},
    )


def strings(column):
    found, names = codes(column)
    return np.array([*names, None], object)[found]


def sklearn_features(train, test):
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    def frame(ds):
        df = pd.DataFrame({n: ds[n].values.astype(float) for n in NUMERIC})
        for n in CATEGORICAL:
            found, names = codes(ds[n])
            df[n] = np.array([*names, "missing"], object)[found]
        return df

    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    fitted = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), NUMERIC), (one_hot, CATEGORICAL)
    ).fit(frame(train))
    names = [n.split("__")[1] for n in fitted.get_feature_names_out()]
    keep = [i for i, n in enumerate(names) if not n.endswith("_missing")]
    return fitted.transform(frame(test))[:, keep], [names[i] for i in keep]


def test_equals_scikit_learn():
    train, test = table(), table(3000, seed=1)
    test["origin"][:50] = "BOS"
    t = Transform(NUMERIC, CATEGORICAL).fit(train)
    expected, names = sklearn_features(train, test)
    got = t.transform(test)
    assert (
        [n.replace("=", "_") for n in t.feature_names]
        == names
        == [n.replace("=", "_") for n in got.feature.values.tolist()]
    )
    assert got.dtype == np.float32 and got.dims == ("row", "feature")
    np.testing.assert_allclose(got.values, expected, atol=4e-6)


def test_a_deviation_taken_before_imputing_is_caught(monkeypatch):
    with_holes = recipes._with_holes
    monkeypatch.setattr(
        recipes,
        "_with_holes",
        lambda n, mean, squares, holes, fill: with_holes(n, mean, squares, 0, fill),
    )
    with pytest.raises(AssertionError):
        test_equals_scikit_learn()


# numbers: scikit-learn's estimators on the same column, over drawn values

VALUES = st.one_of(st.just(np.nan), st.integers(-50, 50).map(float), st.floats(-1e4, 1e4, width=32))
COLUMNS = hnp.arrays(np.float64, st.integers(1, 60), elements=VALUES).filter(
    lambda x: not np.isnan(x).all()
)
SCALES = {"standard": "StandardScaler", "robust": "RobustScaler", "minmax": "MinMaxScaler"}


def sklearn_number(x, impute="mean", log=False, scale="standard"):
    from sklearn import preprocessing
    from sklearn.impute import SimpleImputer

    options = (
        {"strategy": impute}
        if isinstance(impute, str)
        else {"strategy": "constant", "fill_value": float(impute)}
    )
    x = SimpleImputer(**options).fit_transform(x[:, None])
    if log:
        x = np.sign(x) * np.log1p(np.abs(x))
    return (x if scale is None else getattr(preprocessing, SCALES[scale])().fit_transform(x))[:, 0]


@settings(max_examples=100, deadline=None)
@given(
    COLUMNS,
    st.sampled_from(["mean", "median", 0, 2.5]),
    st.booleans(),
    st.sampled_from([*SCALES, None]),
    st.sampled_from(["f4", "f8"]),
)
def test_numbers_equal_scikit_learn(x, impute, log, scale, dtype):
    x = x.astype(dtype)
    ds = xr.Dataset({"x": ("row", x)})
    X = (
        Transform(["x"], impute=impute, log=log, scale=scale, indicator=True)
        .fit(ds)
        .transform(ds)
        .values
    )
    expected = sklearn_number(x.astype("f8"), impute, log, scale)
    np.testing.assert_array_equal(X[:, 1], np.isnan(x))
    span = (
        np.ptp(np.nan_to_num(x)) or 1
    )  # float32 keeps 7 digits of x, of which scaling may leave few
    scale_of = np.ptp(expected) / span if np.ptp(expected) else 0
    np.testing.assert_allclose(
        X[:, 0],
        expected,
        rtol=1e-5,
        atol=1e-5 + 4 * np.finfo("f4").eps * np.nanmax(np.abs(x)) * scale_of,
    )


@settings(max_examples=100, deadline=None)
@given(COLUMNS, st.integers(2, 9))
def test_buckets_equal_scikit_learn(x, bucket):
    ds = xr.Dataset({"x": ("row", x)})
    t = Transform({"x": {"bucket": bucket, "impute": None}}).fit(ds)
    X, (n,) = t.transform(ds).values, t.numeric_
    centre = n.centre if n.centred else 0.0  # of edges that crowd
    edges = np.unique(np.quantile(x[~np.isnan(x)], np.arange(1, bucket) / bucket))
    assert n.edges == tuple(np.unique((edges[edges > np.nanmin(x)] - centre).astype("f4")))
    place = np.searchsorted(n.edges, (x - centre).astype("f4"), side="right")
    np.testing.assert_array_equal(X, np.eye(len(n.edges) + 1)[place] * ~np.isnan(x)[:, None])
    assert X.shape[1] == len(t.feature_names) == len(set(t.feature_names))


def test_buckets_are_those_of_kbins():
    from sklearn.preprocessing import KBinsDiscretizer

    x = table().skewed.dropna("row")
    ds = xr.Dataset({"x": x.astype("f8")})
    bins = KBinsDiscretizer(
        10, encode="onehot-dense", strategy="quantile", quantile_method="linear", subsample=None
    ).fit(x.values[:, None])
    t = Transform({"x": {"bucket": 10}}).fit(summarize(ds))
    got = t.transform(ds).values
    # 4,700 distinct values: the summary's quantiles are within 0.4 %
    assert (got != bins.transform(x.values[:, None])).any(1).mean() < 0.02
    np.testing.assert_allclose(t.numeric_[0].edges, bins.bin_edges_[0][1:-1], rtol=0.005)


def test_clipping_is_at_the_quantiles():
    x = np.random.default_rng(0).normal(size=2000).astype("f4")
    x[:2] = np.inf, -np.inf
    ds = xr.Dataset({"x": ("row", x)})
    t = Transform(["x"], clip=(0.01, 0.9), scale=None).fit(ds)
    low, high = np.sort(x)[[19, 20]].mean(), np.quantile(x[np.isfinite(x)], 0.9)
    X = t.transform(ds).values[:, 0]
    assert X.max() == X[0] == pytest.approx(high, abs=0.01) and X.min() == X[1] == pytest.approx(
        low, abs=0.02
    )
    inside = (x > X.min()) & (x < X.max())
    np.testing.assert_array_equal(X[inside], x[inside])
    scaled = Transform(["x"], clip=(0.01, 0.9)).fit(ds).transform(ds).values[:, 0]
    np.testing.assert_allclose(scaled, (X - X.mean(dtype="f8")) / X.std(dtype="f8"), atol=1e-5)


def test_statistics_from_buckets_keep_their_bound():
    "Above 4,096 distinct values: mean and deviation exact, quantiles and logs within 0.4 %"
    x = np.exp(np.random.default_rng(1).normal(0, 3, 50_000))
    s = summarize(xr.Dataset({"x": ("row", x)}))
    assert s["x"].values.slack
    (plain,) = Transform(["x"]).fit(s).numeric_
    assert plain.mean == np.float32(x.mean()) and plain.std == pytest.approx(x.std(), rel=1e-6)
    (log,) = Transform(["x"], log=True).fit(s).numeric_
    assert log.mean == pytest.approx(np.log1p(x).mean(), abs=0.004) and log.std == pytest.approx(
        np.log1p(x).std(), abs=0.004
    )
    (robust,) = Transform(["x"], scale="robust", impute="median").fit(s).numeric_
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75])
    assert [robust.mean, robust.fill] == pytest.approx(
        [middle] * 2, rel=0.004
    ) and robust.std == pytest.approx(high - low, rel=0.008)
    (span,) = Transform(["x"], scale="minmax").fit(s).numeric_
    assert (span.mean, span.std) == (np.float32(x.min()), np.float32(x.max() - x.min()))


# categories


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), min_size=1, max_size=80),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_rare_categories_equal_scikit_learn(x, least, most):
    from sklearn.preprocessing import OneHotEncoder

    counts = pd.Series(x).value_counts()
    kept = counts[counts >= least]
    has_ties = most and len(kept) and kept.duplicated(keep=False).any()
    ds = xr.Dataset({"x": ("row", np.array(x, object))})
    t = Transform(categorical=["x"], min_count=least, max_categories=most).fit(ds)
    X = t.transform(ds).values
    np.testing.assert_array_equal(X.sum(1), 1)
    assert not most or X.shape[1] <= most
    if has_ties or (
        most and len(kept) == len(counts) == most
    ):  # where scikit-learn takes the last category for rare
        return
    theirs = OneHotEncoder(min_frequency=least, max_categories=most, sparse_output=False).fit(
        np.array(x)[:, None]
    )
    names = [
        n.replace("x0_infrequent_sklearn", "x=other").replace("x0_", "x=")
        for n in theirs.get_feature_names_out()
    ]
    assert t.feature_names == names
    np.testing.assert_array_equal(X, theirs.transform(np.array(x)[:, None]))


def test_what_becomes_of_unseen_categories():
    train = xr.Dataset({"x": ("row", np.array(["a"] * 5 + ["b"] * 3 + ["c", "d"], object))})
    new = xr.Dataset({"x": ("row", np.array(["a", "c", "new", None, ""], object))})

    def rows(**options):
        return Transform(categorical=["x"], **options).fit(train).transform(new).values.tolist()

    assert rows() == [[1, 0, 0, 0], [0, 0, 1, 0], [0] * 4, [0] * 4, [0] * 4]
    assert rows(max_categories=3) == [[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert rows(max_categories=3, unseen="other") == [
        [1, 0, 0],
        [0, 0, 1],
        [0, 0, 1],
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert rows(max_categories=9, unseen="other") == [
        [1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1],
        [0] * 5,
        [0] * 5,
    ]
    assert rows(frequency=True) == [[0.5], [np.float32(0.1)], [0], [0], [0]]
    for options in ({}, {"max_categories": 3}, {"frequency": True}):
        with pytest.raises(
            ContractViolation,
            match="'x': 'new' is not in the training categories; known: a, b, c, d",
        ):
            rows(unseen="error", **options)


def test_hashes_are_the_same_tomorrow():
    ds = table(300)
    t = Transform(
        categorical={"carrier": {"hash": 4}, "origin": {"hash": 5}, "month": {"hash": 3}}
    ).fit(ds)
    assert t.feature_names[:5] == ["carrier#0", "carrier#1", "carrier#2", "carrier#3", "origin#0"]
    X = np.split(t.transform(ds).values, [4, 9], axis=1)
    for (name, size), got in zip({"carrier": 4, "origin": 5, "month": 3}.items(), X, strict=True):
        expected = [
            np.eye(size)[zlib.crc32(v.encode()) % size] if v is not None else np.zeros(size)
            for v in strings(ds[name])
        ]
        np.testing.assert_array_equal(got, expected)
    coded = ds.assign(carrier=("row", strings(ds.carrier)))
    np.testing.assert_array_equal(t.transform(coded), t.transform(ds))


@pytest.mark.parametrize(
    "dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8", "O", "str", "codes"]
)
def test_a_category_is_its_name_whatever_its_type(dtype):
    hour = np.random.default_rng(2).integers(0, 24, 500)
    t = Transform(categorical=["hour"]).fit(xr.Dataset({"hour": ("row", hour[hour % 5 > 0])}))
    variable = (
        ("row", hour.astype("i2"), {"categories": [str(h) for h in range(24)]})
        if dtype == "codes"
        else ("row", hour.astype(str).astype("O" if dtype == "O" else "str"))
    )
    if np.dtype(dtype if dtype != "codes" else "O").kind in "iuf":
        variable = ("row", hour.astype(dtype))
    expected = hour.astype(str)[:, None] == np.array(t.categories_[0])[None]
    np.testing.assert_array_equal(t.transform(xr.Dataset({"hour": variable})), expected)


def test_whole_numbers_far_apart_are_categories_too():
    ds = xr.Dataset({"id": ("row", np.array([3, -(2**62), 2**62, 3, 7]))})
    t = Transform(categorical=["id"]).fit(ds)
    assert (
        t.transform(ds).values.sum(1).tolist() == [1] * 5
        and t.transform(ds.assign(id=ds.id + 1)).values.sum() == 0
    )


def test_whole_numbers_are_categories_whatever_their_type():
    hours = xr.Dataset({"hour": ("row", [6, 7, 23, 6]), "flag": ("row", [True, False, True, True])})
    t = Transform(categorical=["hour", "flag"]).fit(hours)
    assert t.feature_names == ["hour=23", "hour=6", "hour=7", "flag=False", "flag=True"]
    holes = hours.assign(hour=("row", [6, np.nan, 23, 6.0]))
    np.testing.assert_array_equal(
        t.transform(holes)[:, :3], [[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]]
    )


def test_the_empty_string_is_missing():
    ds = xr.Dataset({"carrier": ("row", np.array(["", "AA", None], object))})
    t = Transform(categorical=["carrier"], unseen="error").fit(ds)
    assert t.categories_ == [["AA"]] and t.transform(ds).values.tolist() == [[0], [1], [0]]
    assert t.raw(ds)["carrier"].tolist() == ["", "AA", ""]


def test_more_categories_than_a_summary_counts():
    rng = np.random.default_rng(3)
    names = np.array([f"N{i}" for i in range(9000)], object)
    ds = xr.Dataset(
        {
            "tail": (
                "row",
                np.concatenate([names, np.repeat(names[:3], 2000)])[rng.permutation(15_000)],
            )
        }
    )
    s = summarize(ds)
    for options in (
        {},
        {"frequency": True},
        {"max_categories": 4},
        {"max_categories": 5000, "unseen": "other"},
    ):
        with pytest.raises(ContractViolation, match="'tail'.* are counted; give .*'hash': 64"):
            Transform(categorical={"tail": options}).fit(s)
    t = Transform(categorical=["tail"], max_categories=4, unseen="other").fit(s)
    assert t.feature_names == ["tail=N0", "tail=N1", "tail=N2", "tail=other"]
    assert t.transform(ds).values.sum(0).tolist() == [2001, 2001, 2001, 8997]
    assert (
        Transform(categorical=["tail"], hash=64).fit(s).transform(ds).values.sum(1).tolist()
        == [1] * 15_000
    )


def test_features_have_names_of_their_own():
    ds = xr.Dataset(
        {
            "x": ("row", np.array(["other", "other", "a", "b"], object)),
            "t": ("row", [1.0, np.nan, 2, 3]),
            "t missing": ("row", np.arange(4)),
        }
    )
    t = Transform(categorical=["x"], max_categories=2).fit(ds)
    assert t.feature_names == ["x=other", "x=(other)"] and t.transform(ds).values.tolist() == [
        [1, 0],
        [1, 0],
        [0, 1],
        [0, 1],
    ]
    with pytest.raises(ParameterError, match="Two features would be called 't missing'; rename"):
        Transform(["t", "t missing"], indicator=True).fit(ds).transform(ds)


# what is learnt


def test_blocks_streams_dask_and_summaries_learn_the_same():
    ds = table()
    whole = Transform(**EVERYTHING).fit(ds).to_dict()
    for data in (
        ds.chunk(row=700),
        [ds.isel(row=slice(a, a + 1234)) for a in range(0, 5000, 1234)],
        summarize(ds),
        Summary.from_json(summarize(ds).to_json()),
    ):
        other = Transform(**EVERYTHING).fit(data).to_dict()
        for key in ("mean", "std", "fill", "low", "high"):
            np.testing.assert_allclose(
                np.array(other[key], float), np.array(whole[key], float), rtol=1e-6, atol=1e-6
            )
        assert other["origin"][-1] == pytest.approx(whole["origin"][-1], abs=1e-3)
        for key in ("edges", "categories", "rare", "shares"):
            assert other[key] == whole[key]
    assert whole["categories"] == [
        ["B6"],
        ["EWR", "JFK", "LGA"],
        [],
        sorted(map(str, range(5, 24))),
    ] and whole["rare"] == [
        [],
        None,
        None,
        None,
    ]


def test_a_summary_is_enough_and_no_row_is_read_again(monkeypatch):
    s = summarize(table())
    monkeypatch.setattr(module, "reduce", lambda *args: pytest.fail("a pass over the rows"))
    assert Transform(NUMERIC, CATEGORICAL).fit(s).to_dict()["categories"] == [
        ["AA", "B6", "UA"],
        ["EWR", "JFK", "LGA"],
    ]
    with pytest.raises(
        ContractViolation, match="'tmp' is not in the columns of the dataset.*Did you mean 'temp'"
    ):
        Transform(["tmp"]).fit(s)


class Unreadable:
    shape, dtype, ndim = (5000,), np.dtype("f8"), 1

    def __array_function__(self, *args):
        raise AssertionError("read")

    def __array__(self, *args, **kwargs):
        raise AssertionError("read")

    def __getitem__(self, key):
        raise AssertionError("read")


def test_other_columns_are_not_read():
    ds = table().assign(other=("row", Unreadable()))
    t = Transform(NUMERIC, CATEGORICAL).fit(ds)
    assert (
        t.transform(ds).shape
        == (5000, len(t.feature_names))
        == (5000, next(iter(t.blocks(ds, 5000))).shape[1])
    )


def test_times_keep_their_seconds():
    ds = table()
    t = Transform(["time"], scale=False).fit(ds)
    seconds = numbers(ds.time)
    expected = np.where(np.isnan(seconds), 0, seconds - np.nanmean(seconds))
    for unit in ("s", "ms", "us", "ns"):
        np.testing.assert_allclose(
            t.transform(ds.assign(time=ds.time.astype(f"M8[{unit}]")))[:, 0], expected, atol=0.5
        )
    scaled = Transform(["time"]).fit(ds).transform(ds)
    np.testing.assert_allclose(scaled[:, 0], expected / expected.std(), atol=1e-6)


def test_missing_can_stay_missing():
    ds = table()
    X = Transform(["temp"], impute=None, indicator=True).fit(ds).transform(ds).values
    x = ds.temp.values
    np.testing.assert_allclose(X[:, 0], (x - np.nanmean(x)) / np.nanstd(x), atol=1e-6)
    np.testing.assert_array_equal(X[:, 1], np.isnan(x))


# what is written


@pytest.mark.parametrize("rows", [0, 1, 37, TILE, TILE + 1, 9 * TILE + 11])
def test_blocks_buffers_and_dask_write_the_same(rows):
    t, ds = Transform(**EVERYTHING).fit(table()), table(rows, seed=5)
    X = t.transform(ds)
    assert X.shape == (rows, len(t.feature_names)) and X.feature.values.tolist() == t.feature_names
    used = np.full(X.shape, np.float32(7))
    again = t.transform(ds, out=used)
    assert again.data is used
    np.testing.assert_array_equal(used, X)
    chunked = ds.chunk(row=max(rows // 3, 1))
    np.testing.assert_array_equal(t.transform(chunked), X)
    for data in (
        ds,
        chunked,
        [ds.isel(row=slice(None, rows // 2)), ds.isel(row=slice(rows // 2, None))],
    ):
        for threads in (1, 2, 2):
            source = t.blocks(data, rows=1000, label="month", weight="temp", threads=threads)
            parts = [(X.copy(), y.copy(), w.copy()) for X, y, w in source]
            assert all(len(p) == 3 and 0 < len(p[0]) <= 1000 for p in parts)
            for got, expected in zip(
                zip(*parts, strict=True), (X, ds.month, ds.temp), strict=False
            ):
                np.testing.assert_array_equal(np.concatenate(got), expected)


def test_many_parts_are_written_one_after_the_other(monkeypatch):
    blocks = module.Blocks
    monkeypatch.setattr(
        module, "Blocks", SimpleNamespace(of=lambda data, names: blocks.of(data, names, 700))
    )
    t, ds = Transform(**EVERYTHING).fit(table()), table(3000, seed=5)
    np.testing.assert_array_equal(t.transform(ds.chunk(row=701)), t.transform(ds))
    for threads in (1, 2):
        parts = [X.copy() for X in t.blocks(ds.chunk(row=701), rows=300, threads=threads)]
        assert len(parts) > 10
        np.testing.assert_array_equal(np.concatenate(parts), t.transform(ds))


def test_blocks_are_views_of_few_buffers():
    t, ds = Transform(NUMERIC, CATEGORICAL).fit(table()), table(60_000)
    list(t.blocks(ds, 500))
    tracemalloc.start()
    places = {X.ctypes.data for X in t.blocks(ds, 500)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(places) <= THREADS + 1
    assert peak < 60_000 * len(t.feature_names) * 4 / 2


def test_an_abandoned_iteration_ends_its_threads():
    import threading

    before = threading.active_count()
    blocks = iter(Transform(NUMERIC).fit(table()).blocks(table(), 100))
    next(blocks)
    blocks.close()
    assert threading.active_count() == before


def test_an_error_in_a_block_is_raised():
    t, ds = Transform(categorical=["origin"], unseen="error").fit(table()), table(20_000)
    ds["origin"][19_000] = "BOS"
    for read in (t.transform, lambda ds: list(t.blocks(ds, 1000)), t.raw):
        with pytest.raises(
            ContractViolation, match="'origin': 'BOS' is not in the training categories"
        ):
            read(ds)


def test_a_buffer_that_does_not_fit():
    t, ds = Transform(["temp"]).fit(table(10)), table(10)
    for out in (np.empty((9, 1), "f4"), np.empty((10, 1)), np.empty((10, 2), "f4")[:, ::2]):
        with pytest.raises(
            ParameterError, match=r"accepted: contiguous float32 of shape \(10, 1\)"
        ):
            t.transform(ds, out=out)


def test_blocks_of_no_rows():
    for options in ({"rows": 0}, {"threads": 0}, {"rows": 1.5}):
        with pytest.raises(ParameterError, match="accepted: a whole number from 1"):
            Transform(["temp"]).fit(table(10)).blocks(table(10), **options)


def test_strided_columns_are_read_too():
    both = np.random.default_rng(0).normal(size=(1000, 2))
    ds = xr.Dataset({"a": ("row", both[:, 0]), "c": ("row", np.arange(2000, dtype="i2")[::2] % 7)})
    t = Transform(["a"], ["c"]).fit(ds)
    np.testing.assert_array_equal(t.transform(ds), t.transform(ds.copy(deep=True)))


def test_codes_without_a_category_are_refused():
    ds = table(10)
    t = Transform(categorical=["carrier"]).fit(ds)
    with pytest.raises(
        ContractViolation, match="'carrier': 1 codes have no category, as there are 4"
    ):
        t.transform(ds.assign(carrier=("row", np.array([0, 4, -1] + [0] * 7), ds.carrier.attrs)))
    with pytest.raises(ContractViolation, match="'carrier': code 4 has no category"):
        t.raw(ds.assign(carrier=("row", np.array([0, 4, -1] + [0] * 7), ds.carrier.attrs)))


def test_json_is_exact():
    ds = table()
    for options in (
        EVERYTHING,
        {"numeric": [*NUMERIC, "time"], "categorical": CATEGORICAL, "scale": False, "impute": None},
    ):
        t = Transform(**options).fit(ds)
        again = Transform.from_dict(json.loads(json.dumps(t.to_dict(), allow_nan=False)))
        assert again.transform(ds).identical(t.transform(ds)) and again.to_dict() == t.to_dict()


def test_dicts_of_the_first_version_still_load():
    old = {
        "numeric": ["temp", "time"],
        "categorical": ["carrier"],
        "impute": "mean",
        "scale": True,
        "unseen": "zero",
        "origin": [None, 1.36e9],
        "mean": [59.5, 0.0],
        "std": [18.0, 2e6],
        "categories": [["AA", "UA"]],
    }
    ds = table(200)
    X = Transform.from_dict(old).transform(ds)
    assert X.feature.values.tolist() == ["temp", "time", "carrier=AA", "carrier=UA"]
    np.testing.assert_array_equal(
        X[:, 0],
        np.where(np.isnan(ds.temp), 0, (ds.temp.astype("f4") - np.float32(59.5)) / np.float32(18)),
    )
    np.testing.assert_array_equal(X[:, 2], ds.carrier == 1)
    kept = Transform.from_dict(old | {"impute": None}).transform(ds)
    assert np.isnan(kept[:, 0]).sum() == np.isnan(ds.temp).sum() > 0


def test_row_coordinates_are_kept_and_the_input_is_untouched():
    ds = table(10).assign_coords(flight=("row", np.arange(10)))
    before = ds.copy(deep=True)
    assert Transform(NUMERIC).fit_transform(ds).flight.values.tolist() == list(range(10))
    Transform(**EVERYTHING).fit(table()).transform(ds)
    assert ds.identical(before)


def test_parquet_is_learnt_from_and_streamed(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    ds = table(3000).drop_vars(["carrier", "month2"])
    pq.write_table(
        pa.table({n: pa.array(c.values, from_pandas=True) for n, c in ds.items()}),
        tmp_path / "part.parquet",
        row_group_size=700,
    )
    options = {"numeric": ["temp", "skewed", "time"], "categorical": ["origin", "hour"]}
    t = Transform(**options).fit(tmp_path / "part.parquet")
    whole = Transform(**options).fit(ds)
    np.testing.assert_allclose(
        [*t.mean_, *t.std_], [*whole.mean_, *whole.std_], rtol=1e-6, atol=1e-3
    )
    assert t.categories_ == whole.categories_
    parts = [(X.copy(), y.copy()) for X, y in t.blocks(tmp_path / "part.parquet", label="month")]
    np.testing.assert_array_equal(np.concatenate([X for X, _ in parts]), t.transform(ds))
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), ds.month)


class Card:
    "An array on a pretended card: what would bring it to the host by accident raises"

    def __init__(self, a):
        self.a = a

    def __array__(self, *args, **kwargs):
        raise AssertionError("copied to the host")

    def __array_namespace__(self, **kwargs):
        return CARD

    def __getitem__(self, key):
        return Card(self.a[key])

    def __len__(self):
        return len(self.a)

    def __eq__(self, other):
        return Card(self.a == other)

    def __bool__(self):
        return bool(self.a)

    def any(self):
        return Card(self.a.any())

    def astype(self, dtype):
        return Card(self.a.astype(dtype))

    def reshape(self, *shape):
        return Card(self.a.reshape(*shape))

    dtype, shape, ndim, size, flags = (
        property(lambda self, n=n: getattr(self.a, n))
        for n in ("dtype", "shape", "ndim", "size", "flags")
    )


class CARD:
    "A library of arrays and its kernels"

    FLOATS = kernels.FLOATS

    def asarray(x, dtype=None):
        return x if isinstance(x, Card) else Card(np.asarray(x, dtype))

    def empty(shape, dtype):
        return Card(np.empty(shape, dtype))

    def ascontiguousarray(x):
        return CARD.asarray(x)

    def __class_getitem__(cls, name):
        return lambda *args: getattr(kernels, name)(
            *(a.a if isinstance(a, Card) else CARD.host(a) for a in args)
        )

    def host(a):
        assert not isinstance(a, np.ndarray), (
            "an array of the host was given to a kernel of the card"
        )
        return a

    number, centred, seconds, missing, bucket, lookup, assemble = (
        lambda *args, name=name: CARD[name](*args)
        for name in ("number", "centred", "seconds", "missing", "bucket", "lookup", "assemble")
    )


def test_columns_on_a_card_stay_there(monkeypatch):
    "With a stand-in, a library of arrays that cannot be copied to the host, and its twins"
    import sys

    monkeypatch.setitem(sys.modules, "card", CARD)
    monkeypatch.setattr(Card, "__module__", "card")
    monkeypatch.setattr(module, "of", lambda name, x: CARD if isinstance(x, Card) else kernels)
    ds = table(2 * TILE + 5)
    t = Transform(**EVERYTHING).fit(ds)
    moved = ds.assign(
        {
            n: (c.dims, Card(c.values), c.attrs)
            for n, c in ds.items()
            if c.dtype.kind in "biuf" and n not in ("month2", "hour")
        }
    )
    X = t.transform(moved)
    assert isinstance(X.data, Card)
    np.testing.assert_array_equal(X.data.a, t.transform(ds))
    with pytest.raises(
        ContractViolation, match="'hour' is on a card, where values cannot be named"
    ):
        t.transform(moved.assign(hour=("row", Card(ds.hour.values))))
    np.testing.assert_array_equal(
        np.concatenate([X.a.copy() for X in t.blocks(moved)]), t.transform(ds)
    )


# what is refused


def test_options_that_look_wrong_and_are_not():
    Transform(["temp"], bucket=3, scale=False).fit(table(10))
    Transform(
        {"temp": {"bucket": 3}},
        {"carrier": {"hash": 3}},
        log=True,
        unseen="error",
        max_categories=2,
    ).fit(table(10))
    Transform(categorical={"carrier": {"hash": None, "max_categories": 2}}, hash=3).fit(table(10))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({}, "give lists of columns"),
        ({"numeric": "temp"}, "give lists of columns"),
        ({"numeric": ["temp"], "categorical": ["temp"]}, "each column once"),
        (
            {"numeric": ["temp"], "impute": "mode"},
            "accepted: 'mean', 'median', a finite number or None",
        ),
        (
            {"numeric": ["temp"], "impute": np.inf},
            "accepted: 'mean', 'median', a finite number or None",
        ),
        (
            {"categorical": ["carrier"], "unseen": "other"},
            "accepted without them: 'zero' or 'error'",
        ),
        ({"categorical": ["carrier"], "unseen": "nan"}, "accepted: 'zero', 'error' or"),
        ({"numeric": ["temp"], "clip": (0.9, 0.1)}, "accepted: two quantiles"),
        ({"numeric": ["temp"], "scale": "max"}, "accepted: 'standard', 'robust', 'minmax' or None"),
        ({"numeric": ["temp"], "bucket": 1}, "accepted: a whole number from 2, or None"),
        ({"numeric": ["temp"], "log": 1}, "accepted: True or False"),
        ({"categorical": ["carrier"], "hash": 0}, "accepted: a whole number from 1, or None"),
        (
            {"numeric": {"temp": {"impte": "mean"}}},
            "'temp': 'impte' is not in the options of the column.*Did you mean 'impute'",
        ),
        ({"numeric": {"temp": {"hash": 3}}}, "'temp': 'hash' is not in the options"),
        (
            {"numeric": {"temp": "log"}},
            "'temp': 'log' is not a mapping of options; accepted: impute",
        ),
        (
            {"numeric": {"temp": {"bucket": 3, "log": True}}},
            "'temp': bucket takes the place of log",
        ),
        (
            {"categorical": {"carrier": {"max_categories": 3}}, "hash": 3},
            "'carrier': hash takes the place of max_categories",
        ),
        (
            {"categorical": ["carrier"], "hash": 3, "frequency": True},
            "^hash takes the place of frequency",
        ),
        ({"numeric": ["temp"], "bucket": 3, "scale": "robust"}, "^bucket takes the place of scale"),
        (
            {"categorical": {"carrier": {"hash": 3, "frequency": True}}},
            "'carrier': hash takes the place of frequency",
        ),
        (
            {"categorical": {"carrier": {"frequency": True, "unseen": "other"}}},
            "'carrier': unseen='other' needs max_categories or min_count",
        ),
    ],
)
def test_wrong_options(options, sentence):
    with pytest.raises(ParameterError, match=sentence):
        Transform(**options).fit(table(10))


@pytest.mark.parametrize("options, sentence", [
    ({"numeric": ["tmp"]}, "Did you mean 'temp'"),
    ({"numeric": ["origin"]}, "list it under categorical"),
    ({"numeric": ["carrier"]}, "list it under categorical"),
    ({"categorical": ["time"]}, "list it under numeric"),
])  # fmt: skip
def test_wrong_columns(options, sentence):
    with pytest.raises(ContractViolation, match=sentence):
        Transform(**options).fit(table(10))


def test_columns_that_cannot_be_learnt():
    ds = table(10)
    with pytest.raises(ContractViolation, match="'temp' has no value"):
        Transform(["temp"]).fit(ds.assign(temp=ds.temp * np.nan))
    with pytest.raises(ContractViolation, match="'temp' holds an infinite value"):
        Transform(["temp"]).fit(ds.assign(temp=ds.temp + np.inf))
    with pytest.raises(ContractViolation, match="'temp' holds infinite values only"):
        Transform(["temp"], clip=(0.1, 0.9)).fit(ds.assign(temp=ds.temp * 0 + np.inf))
    with pytest.raises(ContractViolation, match=r"'temp': its quantiles \(0.1, 1\) are infinite"):
        Transform(["temp"], clip=(0.1, 1)).fit(ds.assign(temp=("row", [np.inf] * 5 + [1.0] * 5)))
    with pytest.raises(ContractViolation, match="'temp' holds values beyond the range of float32"):
        Transform(["temp"]).fit(ds.assign(temp=("row", [1e300, -1e300] * 5)))
    with pytest.raises(ContractViolation, match="'temp' has no value"):
        Transform(["temp"]).fit(ds.isel(row=slice(0)))
    with pytest.raises(ParameterError, match="call fit"):
        Transform(["temp"]).transform(ds)
    with pytest.raises(ContractViolation, match="was times in training"):
        Transform(["time"]).fit(ds).transform(ds.assign(time=ds.temp))
    with pytest.raises(
        ParameterError, match="'time' holds times; accepted for them: impute 'mean'"
    ):
        Transform(["time"], impute=0).fit(ds)


def test_infinite_values_stay_infinite_unless_clipped():
    ds = table(100)
    odd = ds.assign(temp=("row", [np.inf, -np.inf, 1e300] + [60.0] * 97))
    assert Transform(["temp"]).fit(ds).transform(odd).values[:3, 0].tolist() == [
        np.inf,
        -np.inf,
        np.inf,
    ]
    clipped = Transform(["temp"], clip=(0, 1), scale=None).fit(ds).transform(odd).values[:3, 0]
    np.testing.assert_array_equal(
        clipped, np.float32([ds.temp.max(), ds.temp.min(), ds.temp.max()])
    )


@pytest.mark.parametrize(
    "x", [[5.0], [5.0, np.nan], [1e-45, 1e-45], [0.0, 1e-44], [0.0, 1e-50], [3e38, -3e38]]
)
def test_extreme_columns_give_finite_features(x):
    ds = xr.Dataset({"x": ("row", x)})
    for scale in ("robust", "minmax", None, "standard"):
        try:
            X = Transform(["x"], scale=scale, indicator=True).fit(ds).transform(ds).values
        except ContractViolation as e:
            assert "beyond the range of float32" in str(e) and abs(x[0]) > 1e38
        else:
            assert np.isfinite(X).all() and (len(x) > 1 or X[0, 1] == 0)


# kernels


def test_kernels_say_what_they_take():
    x, out = np.zeros(4, "f4"), np.empty(4, "f4")
    for call, sentence in [
        (lambda: kernels.number(np.zeros(4, "i4"), out), "x is int32; accepted: float32, float64"),
        (lambda: kernels.number(x, np.empty(3, "f4")), r"out has shape \(3,\); accepted: \(4,\)"),
        (lambda: kernels.number(np.zeros(8, "f4")[::2], out), "x is not contiguous"),
        (
            lambda: kernels.lookup(np.zeros(4, "u8"), 0, np.zeros(1, "i4"), 0, np.empty(4, "i4")),
            "x is uint64",
        ),
        (
            lambda: kernels.lookup(np.zeros(4, "i1"), 0, np.zeros(1, "i4"), 0, out),
            "out is float32; accepted: int32",
        ),
        (
            lambda: kernels.assemble(
                np.zeros((1, 4), "f4"),
                np.zeros(1, "i8"),
                np.zeros((1, 3), "i4"),
                np.empty((4, 2), "f4"),
            ),
            "places has shape",
        ),
    ]:
        with pytest.raises(ParameterError, match=sentence):
            call()


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.int64, st.integers(0, 50), elements=st.integers(-5, 12)),
    st.integers(-3, 3),
    st.integers(1, 9),
)
def test_lookup_is_indexing(x, first, size):
    table = np.arange(100, 100 + size, dtype="i4")
    inside = (x >= first) & (x < first + size)
    for dtype in ("i1", "i8"):
        out = np.empty(len(x), "i4")
        assert kernels.lookup(x.astype(dtype), first, table, -2, out) == (~inside).sum()
        np.testing.assert_array_equal(out, np.where(inside, 100 + x - first, -2))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 70), st.integers(0, 5), st.integers(0, 4), st.integers(0, 10**6))
def test_assemble_is_one_hot_beside_numbers(rows, n, m, seed):
    rng = np.random.default_rng(seed)
    width = n + 3 * m + 1
    at = rng.permutation(width)[:n]
    free = np.setdiff1d(np.arange(width), at)
    places = np.where(rng.random((m, rows)) < 0.3, -2, rng.choice(free, (m, rows))).astype("i4")
    values, out = rng.normal(size=(n, rows)).astype("f4"), np.full((rows, width), np.float32(9))
    kernels.assemble(values, at, places, out)
    expected = np.zeros((rows, width), "f4")
    expected[:, at] = values.T
    for p in places:
        expected[np.flatnonzero(p >= 0), p[p >= 0]] = 1
    np.testing.assert_array_equal(out, expected)


def test_a_picture_is_no_feature_and_the_error_says_what_to_do():
    pictures = xr.Dataset({"image": (("row", "y", "x"), np.ones((3, 2, 2), np.float32))})
    with pytest.raises(ContractViolation, match=r"'image' is over \(row, y, x\).*to_dataset"):
        Transform(["image"]).fit(pictures)
