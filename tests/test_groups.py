"""Aggregates by group and over windows: the laws, and what pandas says."""

import importlib
import types
from functools import partial

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings, strategies as st

from scalai_nb.compute import reduce as reduction
from scalai_nb.describe.grouping import AGGREGATES, GroupBy, Rolling, forget, group_by, rolling
from scalai_nb.compute.laws import check_mergeable
from scalai_nb.compute.reduce import ALGORITHMS, Mergeable, reduce
from scalai_nb.errors import ParameterError, WorkFailed
from scalai_nb.kernels.groups import fold, periods

RNG = np.random.default_rng
CONCAT = partial(xr.concat, dim="row")
ALL = list(AGGREGATES)


def table(seed: int, n: int) -> xr.Dataset:
    "Keys of every kind and values, all with missing ones where they can have them"
    r = RNG(seed)
    time = np.datetime64("2013-01-01", "us") + r.integers(-(10**11), 10**11, n).astype("m8[us]")
    time[r.random(n) < 0.1] = np.datetime64("NaT", "us")
    value = r.normal(0, 100, n)
    value[r.random(n) < 0.2] = np.nan
    if seed % 3 == 0:
        value[r.random(n) < 0.02] = np.inf if seed % 2 else -np.inf
    word = r.choice(np.array(["ä", "b", "", None], dtype=object), n)
    return xr.Dataset(
        {
            "group": (
                "row",
                r.integers(-1, 4, n).astype("i1"),
                {"categories": ["p", "q", "r", "s"]},
            ),
            "word": ("row", word),
            "time": ("row", time),
            "small": ("row", r.integers(-128, 127, n).astype("i1")),
            "wide": ("row", r.integers(-3, 3, n) * 10**15),
            "flag": ("row", r.random(n) < 0.5),
            "value": ("row", value),
            "whole": ("row", r.integers(-(10**6), 10**6, n)),
            "single": ("row", value.astype("f4")),
        }
    )


def frame(ds) -> pd.DataFrame:
    "The same for pandas"
    df = pd.DataFrame({n: x.values for n, x in ds.variables.items()})
    return df.assign(
        group=pd.Series(
            pd.Categorical.from_codes(ds.group.values, ds.group.attrs["categories"])
        ).astype(object)
    )


def equal(a, b) -> bool:
    "Tables of the same keys and, up to rounding, values"
    if not a.sizes["group"] or not b.sizes["group"]:
        return a.sizes["group"] == b.sizes["group"]
    close = all(
        np.allclose(a[n], b[n], rtol=1e-9, atol=1e-6, equal_nan=True)
        if a[n].dtype.kind == "f"
        else a[n].equals(b[n])
        for n in a
    )
    return (
        list(a) == list(b)
        and close
        and all(pd.Index(a[n].values).equals(pd.Index(b[n].values)) for n in a.coords)
    )


# ---- laws ----


@pytest.mark.parametrize("name", ["groups", "windows"])
def test_laws(name):
    @settings(
        max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        st.lists(
            st.builds(table, st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 5, 400])),
            min_size=3,
            max_size=3,
        )
    )
    def check(blocks):
        check_mergeable(ALGORITHMS[name], blocks, CONCAT, equal)

    check()


TOTAL = Mergeable(
    float, lambda s, b: s + float(np.nansum(b.value)), lambda a, b: a + b, columns=("value",)
)


@pytest.mark.parametrize(
    "algorithm", [GroupBy(["word", "flag"], TOTAL), Rolling("time", "6h", 4, TOTAL, by="group")]
)
def test_laws_of_any_algorithm_by_group(algorithm):
    def same(a, b):
        return list(a) == list(b) and np.allclose(list(a.values()), list(b.values()), atol=1e-6)

    for seed in range(5):
        check_mergeable(
            algorithm,
            [table(seed + i, [300, 0, 1, 40][(seed + i) % 4]) for i in range(3)],
            CONCAT,
            same,
        )


# ---- parity with pandas ----


def expected(df, by, column):
    "What pandas says, in the order of ours: sorted, missing keys last"
    out = (
        df.groupby(by, dropna=False, sort=False)[column]
        .agg(["count", "sum", "mean", "var", "std", "min", "max"])
        .reset_index()
    )
    return out.sort_values(
        list(out.columns[: len(by)]), na_position="last", kind="stable"
    ).reset_index(drop=True)


KEYS = [
    "group",
    "word",
    "small",
    "wide",
    "flag",
    "time",
    ("time", "1D"),
    ("time", "7h"),
    ["group", "word"],
    ["word", ("time", "1D"), "flag"],
    ["wide", "small"],
]


@pytest.mark.parametrize("by", KEYS, ids=str)
@pytest.mark.parametrize("rows", [1, 30, 3000])
def test_groups_are_those_of_pandas(by, rows, monkeypatch):
    monkeypatch.setattr(reduction, "BLOCK", 700)
    ds = table(rows, rows)
    df, names = frame(ds), []
    for key in by if isinstance(by, list) else [by]:
        name, period = key if isinstance(key, tuple) else (key, None)
        if period:
            df[f"k{name}"] = df[name].dt.floor(period)
        else:
            df[f"k{name}"] = df[name]
        names.append(f"k{name}")
    for column in ("value", "whole", "single", "flag"):
        want = expected(
            df.astype({column: float}), names, column
        )  # pandas adds float32 up as float32
        for data in (ds, ds.chunk(row=400)):
            got = group_by(data, by, {column: ALL})
            for name in names:
                assert pd.Index(got[name[1:]].values).equals(pd.Index(want[name].to_numpy())), (
                    column,
                    name,
                )
            for a in ALL:
                np.testing.assert_allclose(
                    got[f"{column}_{a}"].values.astype(float),
                    want[a].to_numpy().astype(float),
                    rtol=1e-9,
                    atol=1e-7,
                )
    assert got.rows.sum() == rows


def test_times_are_aggregated_as_times():
    ds = table(3, 500)
    got, want = (
        group_by(ds, "group", {"time": ["min", "max", "mean", "count"]}),
        frame(ds).groupby("group", dropna=False).time.agg(["min", "max", "mean", "count"]),
    )
    assert list(got.time_min.values) == list(want["min"].to_numpy()) and list(
        got.time_max.values
    ) == list(want["max"].to_numpy())
    assert (
        np.abs(got.time_mean.values - want["mean"].to_numpy()) < np.timedelta64(100, "us")
    ).all() and list(got.time_count.values) == list(want["count"])
    with pytest.raises(ParameterError, match="'time' holds times; accepted: count, mean, min, max"):
        group_by(ds, "group", {"time": "sum"})


def test_the_number_of_threads_does_not_matter(monkeypatch):
    monkeypatch.setattr(reduction, "BLOCK", 50)
    ds = table(1, 4000)
    with dask.config.set(num_workers=1):
        one = group_by(ds, ["word", ("time", "1h")], {"value": ALL})
    with dask.config.set(num_workers=5):
        assert group_by(ds, ["word", ("time", "1h")], {"value": ALL}).identical(one)


def test_very_many_groups():
    "More than a table holds: combinations are looked up"
    r = RNG(0)
    ds = xr.Dataset(
        {
            "a": ("row", r.integers(0, 10**9, 200_000)),
            "b": ("row", r.integers(0, 60_000, 200_000)),
            "x": ("row", r.random(200_000)),
        }
    )
    got = group_by(ds, ["a", "b"], {"x": "sum"})
    want = pd.DataFrame({n: x.values for n, x in ds.items()}).groupby(["a", "b"]).x.sum()
    np.testing.assert_allclose(got.x_sum, want.to_numpy())
    assert (got.a.values == want.index.get_level_values(0)).all()


class Moved(np.ndarray):
    "Stands for an array of CuPy"

    def get(self):
        return self.view(np.ndarray)


def test_columns_on_a_device_stay_there(monkeypatch):
    "Keys and values on a device, or some of them"
    from scalai_nb import kernels
    from scalai_nb.describe import grouping as module

    seen = []

    def asarray(x):
        return np.asarray(x).view(Moved)

    fake = types.SimpleNamespace(
        asarray=asarray,
        array=lambda x, t: asarray(np.array(x, t)),
        where=lambda *a: asarray(np.where(*a)),
        zeros=lambda *a: asarray(np.zeros(*a)),
        bincount=lambda x, minlength: asarray(np.bincount(x, minlength=minlength)),
    )

    def fold_there(codes, x, groups, nat):
        seen.append((type(codes), type(x)))
        return fold(codes.get(), x.get(), groups, nat)

    twins = importlib.import_module("scalai_nb.kernels.groups")
    monkeypatch.setattr(
        kernels,
        "of",
        lambda name, x: types.SimpleNamespace(fold=fold_there) if isinstance(x, Moved) else twins,
    )
    monkeypatch.setattr(module, "_library", lambda x: fake if isinstance(x, Moved) else np)
    monkeypatch.setattr(module, "_host", lambda x: x.get() if isinstance(x, Moved) else x)
    monkeypatch.setattr(
        module,
        "_beside",
        lambda codes, x: asarray(codes) if isinstance(x, Moved) else module._host(codes),
    )
    ds = table(4, 800)
    card = ds.assign(
        {
            n: ds[n].copy(data=asarray(ds[n].values))
            for n in ("group", "small", "wide", "flag", "value", "whole")
        }
    )
    for by in ("group", ["group", "small"], ["word", "group", ("time", "1D")], "wide", "word"):
        algorithm = module.GroupBy(by, {"value": ALL, "time": "min"})
        assert algorithm.finalize(algorithm.update(algorithm.init(), card)).identical(
            group_by(ds, by, {"value": ALL, "time": "min"})
        )
    assert seen and all(pair == (Moved, Moved) for pair in seen)


# ---- accuracy and odd values ----


def test_an_offset_does_not_cost_the_deviation():
    r = RNG(1)
    x = 1e9 + r.normal(0, 1e-2, 100_000)
    codes = r.integers(0, 3, len(x))
    _, mean, m2, *_ = fold(codes, x, 3)
    for g in range(3):
        exact = x[codes == g].astype(np.longdouble)
        assert (
            abs(float(mean[g] - exact.mean())) < 1e-6
            and abs(m2[g] / float(((exact - exact.mean()) ** 2).sum()) - 1) < 1e-9
        )


def test_infinities_and_huge_values():
    ds = xr.Dataset(
        {"k": ("row", [0, 0, 1, 1, 2, 2]), "x": ("row", [np.inf, 1.0, 1e308, 1e308, 5e-324, 0.0])}
    )
    got = group_by(ds, "k", {"x": ALL})
    assert (
        got.x_max.values.tolist() == [np.inf, 1e308, 5e-324]
        and got.x_mean.values[0] == np.inf
        and np.isnan(got.x_std.values[0])
    )
    assert got.x_min.values.tolist() == [1.0, 1e308, 0.0]


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]
)
def test_every_kind_of_number(dtype):
    x = RNG(2).integers(0, 2, 100).astype(dtype)
    count, mean, _, least, greatest = fold(np.arange(100) % 3, x[::-1], 3)
    assert count.tolist() == [34, 33, 33] and least.min() == 0 and greatest.max() == 1
    np.testing.assert_allclose(mean, [x[::-1][g::3].mean(dtype="f8") for g in range(3)])


@given(
    st.lists(st.integers(-(2**40), 2**40) | st.just(-(2**63)), max_size=30), st.integers(1, 2**30)
)
def test_periods(times, step):
    x = np.array(times, dtype=np.int64)
    found, there = periods(x, step, 2**62), x != -(2**63)
    codes, low, count = found
    assert (
        ((codes[there] + low) * step <= x[there]).all()
        and ((codes[there] + low + 1) * step > x[there]).all()
        and (codes[~there] == count).all()
    )
    assert periods(np.array([0, 10]), 1, 10) is None


def test_a_column_that_is_whole_in_one_block_only():
    blocks = [
        xr.Dataset({"k": ("row", [0, 0]), "x": ("row", np.array([3, 5]))}),
        xr.Dataset({"k": ("row", [0, 1]), "x": ("row", [np.nan, 0.5])}),
    ]
    got = reduce(GroupBy("k", {"x": ["min", "max", "count"]}), blocks)
    assert (
        got.x_min.values.tolist() == [3, 0.5]
        and got.x_max.values.tolist() == [5, 0.5]
        and got.x_count.values.tolist() == [2, 1]
    )


def test_no_rows_and_one_row():
    ds = table(0, 1)
    assert group_by(ds.isel(row=[]), ["word", "flag"], {"value": ALL}).sizes["group"] == 0
    assert group_by(ds, "flag", {"value": "count"}).rows.values.tolist() == [1]
    assert (
        group_by(ds.isel(row=[]), "word", TOTAL) == {}
        and rolling(ds.isel(row=[]), "time", "1h", 3, {"value": "sum"}).sizes["group"] == 0
    )


# ---- windows ----


def brute(df, pane: str, panes: int):
    "(key, pane) -> the rows in the window that ends with the pane"
    df = df.assign(pane=df.time.dt.floor(pane))
    for (key, end), same in df.groupby(["group", "pane"], dropna=False, sort=True):
        mine = df[(df.group == key) | (df.group.isna() & (key is None or key != key))]
        since = end - (panes - 1) * pd.Timedelta(pane) if end == end else None
        yield (key, end), mine[(mine.pane >= since) & (mine.pane <= end)] if end == end else same


@pytest.mark.parametrize(("pane", "panes"), [("6h", 1), ("6h", 3), ("1h", 100), ("1D", 7)])
def test_a_window_holds_the_rows_of_its_panes(pane, panes, monkeypatch):
    monkeypatch.setattr(reduction, "BLOCK", 60)
    ds = table(7, 250)
    got, total = (
        rolling(ds, "time", pane, panes, {"value": ["count", "sum", "min", "std"]}, by="group"),
        rolling(ds, "time", pane, panes, TOTAL, by="group"),
    )
    want = {
        (None if k != k else k, None if t is pd.NaT else t): rows
        for (k, t), rows in brute(frame(ds), pane, panes)
    }
    keys = [
        (None if k != k else k, None if np.isnat(t) else pd.Timestamp(t))
        for k, t in zip(
            got.group.values if "group" in got.coords else [], got.time.values, strict=True
        )
    ]
    assert len(keys) == len(want) and set(keys) == set(want)
    for i, key in enumerate(keys):
        rows = want[key].value
        np.testing.assert_allclose(
            [got.value_count[i], got.value_sum[i], got.value_min[i], got.value_std[i]],
            [rows.count(), rows.sum(), rows.min(), rows.std()],
            rtol=1e-9,
            atol=1e-6,
        )
    np.testing.assert_allclose(
        list(total.values()),
        [
            want[None if k is None else k, None if t is None else pd.Timestamp(t)].value.sum()
            for k, t in total
        ],
        atol=1e-6,
    )


def test_a_window_over_days_is_that_of_pandas():
    ds = table(5, 2000)
    df = frame(ds).dropna(subset="time")
    daily = df.groupby(df.time.dt.floor("1D")).value.sum()
    got = rolling(ds, "time", "1D", 3, {"value": "sum"})
    np.testing.assert_allclose(got.value_sum[:-1], daily.rolling("3D").sum().to_numpy(), atol=1e-6)
    assert np.isnat(got.time[-1]) and got.value_sum[-1] == pytest.approx(
        frame(ds)[frame(ds).time.isna()].value.sum()
    )


def test_late_rows_are_counted_and_old_panes_forgotten():
    algorithm = Rolling("time", "1D", 2, {"value": "count"})
    ds = table(9, 300).sortby("time")
    late = ds.isel(row=[0, 1])
    state = algorithm.update(algorithm.init(), ds.isel(row=slice(2, None)))
    assert algorithm.finalize(
        algorithm.merge(state, algorithm.update(algorithm.init(), late))
    ).equals(reduce(algorithm, ds))
    kept = algorithm.finalize(forget(state, "2013-01-01"))
    assert np.nanmin(kept.time.values) == np.datetime64("2013-01-01") and np.isnat(
        kept.time.values[-1]
    )
    with pytest.raises(ParameterError, match="last key of the state is no time"):
        forget(GroupBy("flag", {"value": "sum"}).update(algorithm.init(), ds), "2013")


# ---- what is wrong is named ----


@pytest.mark.parametrize(
    ("by", "aggregates", "message"),
    [
        (
            "group",
            {"value": "median"},
            "'median' is not in the aggregates; known: count, max, mean, min",
        ),
        ("group", {"word": "mean"}, "'word' holds object over .*; statistics are of numbers"),
        ("group", {"group": "mean"}, "'group' holds categories"),
        (("time", "1 parsec"), {"value": "sum"}, "'1 parsec' is no period"),
        (("time", "-1h"), {"value": "sum"}, "is no period"),
        (("small", "1h"), {"value": "sum"}, "'small' holds int8 .* with a period times alone"),
        ("grp", {"value": "sum"}, "'grp' is not in the columns; known: .* Did you mean 'group'"),
        ("group", {"valu": "sum"}, "Did you mean 'value'"),
        ("image", {"value": "sum"}, "'image' holds float64 over"),
        ("mixed", {"value": "sum"}, "'mixed' holds 1 of type int beside strings"),
    ],
)
def test_what_is_wrong_is_named(by, aggregates, message):
    ds = table(0, 3).assign(
        image=(("row", "x"), np.zeros((3, 2))),
        mixed=("row", np.array(["a", 1, None], dtype=object)),
    )
    with pytest.raises((ParameterError, WorkFailed), match=message):
        group_by(ds, by, aggregates)


def test_panes_are_counted():
    with pytest.raises(ParameterError, match="panes=0; accepted"):
        Rolling("time", "1h", 0, {})
