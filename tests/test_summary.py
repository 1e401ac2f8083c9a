"""Summaries against numpy and pandas, within the bounds that they state."""

import json
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from scalai_nb.describe import sketches
from scalai_nb.compute.laws import alike, check_mergeable
from scalai_nb.describe.sketches import (
    LIMIT,
    Buckets,
    Moments,
    Values,
    buckets,
    describe,
    distinct,
    float_keys,
    key_floats,
    merge_buckets,
    merge_moments,
    moments,
    values,
)
from scalai_nb.errors import ParameterError
from scalai_nb.kernels import columns as kernel
from scalai_nb.describe.summary import (
    BINS,
    PLACES,
    SUMMARY,
    Column,
    Summary,
    column,
    merge_columns,
    summarize,
)
from scalai_nb.words import percent, value

RNG = np.random.default_rng
QUANTILES = np.array([0, 0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999, 1])


def col(x, **attrs):
    return column(xr.DataArray(x, dims="row", attrs=attrs))


def words(*x):
    return np.array(x, dtype=object)


# ---- numbers ----

FLOATS = arrays(np.float64, st.integers(1, 50), elements=st.floats(-1e100, 1e100))


@settings(deadline=None, database=None)
@given(FLOATS)
def test_few_numbers_are_described_exactly(x):
    c = col(x)
    assert (c.count, c.missing, c.zeros, c.distinct) == (
        len(x),
        0,
        np.sum(x == 0),
        len(np.unique(x)),
    )
    assert (c.min, c.max) == (x.min(), x.max())
    assert np.isclose(c.mean, x.mean(), atol=1e-12 * np.abs(x).max()) and np.isclose(
        c.std, x.std(), rtol=1e-6, atol=1e-7 * np.abs(x).max()
    )
    assert np.array_equal(c.quantile(QUANTILES), np.quantile(x, QUANTILES, method="inverted_cdf"))
    assert sum(c.top.values()) <= len(x) and all(np.sum(x == v) == n for v, n in c.top.items())


@pytest.mark.parametrize(
    "make",
    [
        lambda r, n: r.normal(0, 1, n),
        lambda r, n: r.lognormal(0, 5, n),
        lambda r, n: -r.lognormal(3, 9, n),
        lambda r, n: r.normal(1e6, 1, n),
        lambda r, n: r.standard_cauchy(n),
        lambda r, n: np.where(r.random(n) < 0.3, 0, r.normal(size=n)),
        lambda r, n: r.normal(0, 1e-200, n),
        lambda r, n: r.integers(-(10**9), 10**9, n),
        lambda r, n: r.normal(size=n).astype(np.float32),
    ],
)
def test_many_numbers_are_within_the_bounds(make):
    x = make(RNG(0), 60_000)
    c = col(x)
    exact = np.quantile(x.astype(np.float64), QUANTILES, method="inverted_cdf")
    assert np.all(np.abs(c.quantile(QUANTILES) - exact) <= 2**-8 * np.abs(exact))
    assert abs(c.distinct / len(np.unique(x)) - 1) < 0.03, "3.7 standard errors of 0.8 %"
    assert np.isclose(c.mean, x.mean(dtype=np.float64), atol=1e-9 * np.abs(x).max()) and np.isclose(
        c.std, x.std(dtype=np.float64)
    )
    assert len(c.buckets.keys) <= LIMIT or c.buckets.shift == sketches.COARSEST


def test_missing_values_and_infinities():
    c = col([np.nan, np.inf, -np.inf, 1.0, 3.0, -0.0, np.nan])
    assert (c.count, c.missing, c.infinite, c.zeros, c.present) == (7, 2, 2, 1, 5)
    assert (c.min, c.max, c.mean, c.std) == (-np.inf, np.inf, 4 / 3, np.std([1, 3, 0]))
    assert list(c.quantile([0, 0.5, 1])) == [-np.inf, 1.0, np.inf] and c.missing_share == 2 / 7
    many = col(np.concatenate([RNG(0).normal(size=9000), [np.inf] * 1000]))
    assert (
        many.quantile(0.95) == np.inf
        and np.isfinite(many.quantile(0.89))
        and many.histogram.counts.sum() == 9000
    )


@pytest.mark.parametrize(
    "x",
    [
        np.empty(0),
        np.full(5, np.nan),
        words(None, None),
        np.array(["NaT"], dtype="M8[ns]"),
        np.empty(0, int),
    ],
)
def test_nothing_to_describe(x):
    c = col(x)
    assert (c.count, c.missing, c.distinct, c.top) == (len(x), len(x), 0, {})
    assert (
        all(pd.isna(v) for v in (c.min, c.max, c.mean, c.std, c.quantile(0.5)))
        and len(c.histogram.counts) == 0
    )
    assert summarize(xr.Dataset({"x": ("row", x)}))._repr_html_()


def test_one_value_and_a_constant():
    for x in ([7], [7] * 100):
        c = col(x)
        assert (c.min, c.max, c.mean, c.std, c.quantile(0.3), c.distinct, c.top) == (
            7,
            7,
            7.0,
            0.0,
            7.0,
            1,
            {7: len(x)},
        )
        assert c.histogram.counts.sum() == len(x)


def test_the_greatest_floats_and_integers():
    c = col(np.array([1.7e308, 1.7e308, -1.7e308]))
    assert c.max == 1.7e308 and c.quantile(1) == 1.7e308 and not np.isnan(c.min)
    big = col(np.array([2**63 - 1, 2**63 - 2, -(2**63)]))
    assert (big.min, big.max, big.distinct) == (-(2**63), 2**63 - 1, 3)
    assert col(np.array([2**64 - 1], dtype=np.uint64)).max == 2**64 - 1
    assert np.array_equal(
        *(col(np.append(x, np.arange(1, 9000.0))).values.registers for x in (0.0, -0.0))
    ), "-0 is 0"
    ids = col(2**60 + np.arange(20_000))
    assert abs(ids.distinct / 20_000 - 1) < 0.03, "integers beyond 2^53 are told apart"


@pytest.mark.parametrize("chunks", [1, 3])
def test_powers_beyond_the_range_of_a_float_are_taken_in_units(chunks):
    "A figure, no warning: warnings are errors here"
    r, most = RNG(1), np.finfo(float).max
    sides = r.choice([-1.0, 1.0], 9000)
    cases = {
        "two values": (np.tile([1.7e308, -1.7e308], 50), 0, 1.7e308, 0, -2),
        "the ends": (np.tile([most, -most], 50), 0, most, 0, -2),
        "many": (1.7e308 * sides * r.uniform(0.5, 1, 9000), None, None, None, None),
        "one side": (1.7e308 * r.uniform(0.5, 1, 9000), None, None, None, None),
        "1e100": (1e100 * r.gamma(2, 1, 9000), None, None, None, None),
        "with infinity": (np.append(1.7e308 * sides, np.inf), None, None, None, None),
    }
    for name, (x, *expected) in cases.items():
        whole = summarize(xr.Dataset({"x": ("row", x)}).chunk(row=-(-len(x) // chunks)))
        c, y = whole["x"], x[np.isfinite(x)]
        unit = np.abs(y).max()
        y = y / unit
        exact = y.mean(), y.std(), stats.skew(y), stats.kurtosis(y)
        found = c.mean / unit, c.std / unit, c.skewness, c.kurtosis
        assert found == pytest.approx(exact, rel=0.01, abs=0.01), name
        if expected[1] is not None:
            assert (c.mean, c.std, c.skewness, c.kurtosis) == pytest.approx(tuple(expected))
        assert c.histogram.counts.sum() == len(y) and np.isfinite(c.histogram.edges).all()
        assert repr(whole) and whole._repr_html_() and whole.to_xarray().sizes["column"] == 1
        assert Summary.from_json(whole.to_json())["x"].std == c.std


def test_integers_keep_whole_quantiles_and_bins():
    c = col(RNG(0).integers(0, 100_000, 50_000))
    assert c.buckets.shift and all(q == round(q) for q in c.quantile(QUANTILES))
    months = col(RNG(0).integers(1, 13, 1000))
    assert list(months.histogram.edges) == [m + 0.5 for m in range(13)], "a bar a month"


@pytest.mark.parametrize("q", [-0.1, 1.1, np.nan, [0.5, 2]])
def test_a_quantile_beyond_the_data_is_refused(q):
    with pytest.raises(ParameterError, match="from 0 to 1"):
        col([1.0]).quantile(q)


# ---- other kinds ----


def test_bools():
    c = col([True, False, True, True])
    assert (c.kind, c.mean, c.zeros, c.top, c.min, c.max) == (
        "bool",
        0.75,
        1,
        {True: 3, False: 1},
        0,
        1,
    )


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_times(unit):
    x = np.array(["2013-01-01T05", "2013-07-01T12:30", "NaT", "1969-12-31T23"], dtype=f"M8[{unit}]")
    c = col(x)
    assert (
        (c.kind, c.missing, c.distinct) == ("time", 1, 3)
        and c.min == np.datetime64("1969-12-31T23")
        and c.max == np.datetime64("2013-07-01T12:30")
    )
    assert c.quantile(0.5) == np.datetime64("2013-01-01T05") and abs(
        c.mean - x[~np.isnat(x)].astype("M8[us]").astype(int).mean().astype("M8[us]")
    ) < np.timedelta64(1, "ms")
    assert c.histogram.edges.dtype.kind == "M" and next(iter(c.top)) == np.datetime64(
        "1969-12-31T23"
    )


def test_many_times_are_within_the_bound():
    x = np.datetime64("2013-01-01", "us") + RNG(0).integers(0, 365 * 86_400 * 10**6, 50_000)
    error = np.abs(
        col(x).quantile(QUANTILES)
        - np.quantile(x.astype(int), QUANTILES, method="inverted_cdf").astype("M8[us]")
    )
    assert error.max() <= np.ptp(x) / 4096


def test_strings_and_categories_are_the_same_but_for_their_kind():
    s = col(words("b", "a", None, "b", ""))
    c = col(np.array([2, 0, -1, 2, 1], dtype="i1"), categories=["a", "", "b", "unused"])
    for x in (s, c):
        assert (x.count, x.missing, x.zeros, x.distinct, x.top) == (
            5,
            1,
            1,
            3,
            {"b": 2, "": 1, "a": 1},
        )
    assert (s.kind, c.kind, np.isnan(s.min), np.isnan(s.quantile(0.5))) == (
        "string",
        "category",
        True,
        True,
    )
    assert merge_columns(s, c).kind == "string" and merge_columns(s, c).top["b"] == 4
    assert col(np.array(["x", "y"])).top == {"x": 1, "y": 1}


def test_categories_merge_by_label():
    a, b = (
        col(np.array([0, 0, 1], dtype="i1"), categories=names) for names in (["x", "y"], ["y", "z"])
    )
    assert merge_columns(a, b).top == {"y": 3, "x": 2, "z": 1}


def test_frequent_values_among_many():
    r = RNG(0)
    x = np.concatenate(
        [
            np.repeat(["often", "also"], [3000, 2000]),
            [f"id{i}" for i in r.integers(0, 10**9, 40_000)],
        ]
    ).astype(object)
    r.shuffle(x)
    parts = [col(x[i : i + 9000]) for i in range(0, len(x), 9000)]
    c = parts[0]
    for p in parts[1:]:
        c = merge_columns(c, p)
    assert list(c.top)[:2] == ["often", "also"] and 0 < c.values.slack <= len(x) / (LIMIT + 1)
    exact = Counter(x.tolist())
    assert all(
        n <= exact[v] <= n + c.values.slack
        for v, n in zip(c.values.values, c.values.counts, strict=True)
    )
    assert abs(c.distinct / len(exact) - 1) < 0.03


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (words("a", 1), "1 is of type int, not str"),
        (words("a", np.nan, 2.5), "2.5 is of type float, not str"),
        (np.array([[1], [2, 3]], dtype=object), r"\[1\] is of type list, not str"),
        (np.array([1j]), "dtype complex128 cannot"),
        (np.array([1], dtype="m8[s]"), "dtype timedelta64"),
    ],
)
def test_what_cannot_be_described_is_refused(x, message):
    with pytest.raises(ParameterError, match=f"column 'odd': {message}"):
        summarize(xr.Dataset({"fine": ("row", np.ones(len(x))), "odd": ("row", x)}))


def test_a_code_without_a_category_is_refused():
    with pytest.raises(ParameterError, match="code 2 has no category, as there are 2"):
        col(np.array([0, 2], dtype="i1"), categories=["a", "b"])
    with pytest.raises(ParameterError, match="code -2 has no meaning"):
        col(np.array([0, -2], dtype="i8"), categories=["a", "b"])
    with pytest.raises(ParameterError, match="whole numbers, not float64"):
        col(np.array([0.0]), categories=["a", "b"])
    assert col(np.array([-1, -1], dtype="i2"), categories=[]).missing == 2 and col(
        np.array([255, 0], dtype="u1"), categories=[*map(str, range(256))]
    ).top == {"0": 1, "255": 1}


def test_kinds_that_do_not_merge_are_named():
    with pytest.raises(
        ParameterError, match="Block 1: column 'x': The column is of kind number in one part"
    ):
        summarize([xr.Dataset({"x": ("row", x)}) for x in (np.array([1.0]), words("a"))])
    mixed = summarize(
        [xr.Dataset({"x": ("row", np.array(x))}) for x in ([1, 2], [np.nan, 0.5], [True])]
    )
    assert (mixed["x"].kind, mixed["x"].count, mixed["x"].missing, mixed["x"].distinct) == (
        "number",
        5,
        1,
        3,
    )


def test_a_column_of_images_is_described_by_its_pixels():
    s = summarize(
        xr.Dataset(
            {
                "image": (("row", "y", "x"), np.arange(24).reshape(2, 3, 4)),
                "scale": ("y", [1, 2, 3]),
            }
        )
    )
    assert list(s) == ["image"] and (s["image"].count, s["image"].max) == (24, 23)


def test_a_column_for_each_place_of_a_dimension():
    x = np.arange(48.0).reshape(4, 3, 2, 2)
    ds = xr.Dataset(
        {"image": (("row", "y", "band", "level"), x, {"units": "K"}), "n": ("row", np.arange(4))},
        {"band": ["red", "blue"]},
    )
    for part in (ds, ds.chunk(row=2), [ds.isel(row=slice(0, 1)), ds.isel(row=slice(1, None))]):
        s = summarize(part, per=["band", "level"])
        assert list(s) == [
            f"image[band={b}, level={i}]" for b in ("red", "blue") for i in (0, 1)
        ] + ["n"]
        assert (
            s["image[band=blue, level=0]"].units == "K"
            and s["image[band=blue, level=0]"].mean == x[:, :, 1, 0].mean()
        )
    assert summarize(ds, per="y")["image[y=2]"].count == 16
    for per, message in (
        ("bands", "Did you mean 'band'"),
        ("row", "'row' is not in the dimensions"),
        (("z",), "is not in the dimensions"),
    ):
        with pytest.raises(ParameterError, match=message):
            summarize(ds, per=per)
    wide = xr.Dataset({"x": (("row", "k"), np.zeros((2, PLACES + 1)))})
    with pytest.raises(ParameterError, match="column 'x' has 129 places along k; at most 128"):
        summarize(wide, per="k")


def test_nullable_columns_of_pandas():
    df = pd.DataFrame(
        {
            "i": pd.array([1, 2**60 + 1, None, 1], dtype="Int64"),
            "f": pd.array([1.5, None, 2, 2], dtype="Float32"),
            "b": pd.array([True, None, False, True], dtype="boolean"),
            "a": pd.array([1.5, None, 2, 2], dtype="float64[pyarrow]"),
            "c": pd.Categorical(["x", None, "y", "x"]),
            "s": ["x", None, "y", "x"],
        }
    )
    s = summarize(xr.Dataset.from_dataframe(df.rename_axis("row")))
    assert [(c.kind, c.missing, c.distinct) for c in s.columns.values()] == [
        (k, 1, 2) for k in ("integer", "number", "bool", "number", "string", "string")
    ]
    assert (
        s["i"].max == 2**60 + 1
        and s["f"].top == s["a"].top == {2.0: 2, 1.5: 1}
        and s["c"].top == s["s"].top == {"x": 2, "y": 1}
    )


# ---- sketches ----


@settings(deadline=None, database=None)
@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=2, unique=True))
def test_keys_sort_like_their_floats(pair):
    low, high = float_keys(np.sort(np.array(pair) + 0.0))
    assert low < high and list(key_floats(np.array([low, high]))) == sorted(pair)


@pytest.mark.parametrize("most", [45, 62])
def test_the_shift_of_buckets_is_the_least_that_fits(most):
    keys = np.sort(RNG(0).integers(-(10**12), 10**12, 500))
    b = buckets(keys, np.ones(500, np.int64), limit=40, most=most)
    finer = buckets(keys, np.ones(500, np.int64), limit=500, most=most)
    assert b.counts.sum() == 500 and len(b.keys) <= 40 < len(
        sketches.coarsen(finer, b.shift - 1).keys
    )
    low, high = b.limits
    assert all(((k >= low) & (k <= high)).sum() == 1 for k in keys), "each key is in one bucket"


def test_buckets_of_two_kinds_of_counts():
    a = buckets(np.array([5, 1, 5]), np.array([[1, 0], [0, 1], [0, 1]]))
    assert (
        a.counts.tolist() == [[0, 1], [1, 1]]
        and merge_buckets(a, Buckets()).counts.tolist() == a.counts.tolist()
    )


@pytest.mark.parametrize("sizes", [(3, 0, 5), (900, 2_000, 1), (3_000, 3_000, 30_000)])
def test_buckets_that_are_summed_are_those_that_are_merged_in_turn(sizes):
    rng = RNG(len(sizes))
    keys = [float_keys(rng.normal(size=n) ** 3) for n in sizes]
    parts = [buckets(k, np.ones(len(k), np.int64)) for k in keys]
    merged = reduce(merge_buckets, parts)
    assert alike(sketches.sum_buckets(parts), merged)
    wider = sketches.sum_buckets(parts, merged.shift + 3)
    assert alike(wider, sketches.coarsen(merged, merged.shift + 3))


@pytest.mark.parametrize("n", [LIMIT + 1, 20_000, 300_000])
def test_the_estimate_of_distinct_values_is_unbiased(n):
    "Mean and spread over 40 sets of values, against the stated standard error of 0.8 %"
    errors = [
        distinct(values(x := np.arange(n) + seed * 10**7, np.ones_like(x))) / n - 1
        for seed in range(40)
    ]
    assert abs(np.mean(errors)) < 0.0045, "3.5 standard errors of the mean"
    assert 0.001 < np.std(errors) < 0.0125


def test_strings_and_equal_numbers_hash_alike_everywhere():
    ints, floats = np.arange(-5, 5), np.arange(-5, 5.0)
    assert (sketches._bits(ints) == sketches._bits(floats)).all() and (
        sketches._bits(ints.astype("f4")) == sketches._bits(ints)
    ).all()
    assert (
        sketches._bits(2**53 + np.arange(-1, 3))
        == np.append(np.float64(2**53 - 1).view(np.uint64), 2**53 + np.arange(3).astype(np.uint64))
    ).all()
    for x, at, rank in ((words("a"), 13950350942979735504 >> 49, 1), (np.array([4.0]), None, None)):
        registers = sketches._registers(values(x, np.array([1])))
        assert np.count_nonzero(registers) == 1 and (at is None or registers[at] == rank), (
            "as stored summaries have it"
        )


def test_an_empty_sketch_has_no_values():
    assert distinct(Values()) == 0 and Column().distinct == 0


def test_summaries_stored_by_earlier_versions_load_and_merge():
    "They have half as many registers, and no third and fourth moment"
    x = RNG(0).normal(size=40_000)
    now = [summarize(xr.Dataset({"x": ("row", part)})) for part in (x[:20_000], x[20_000:])]
    old = json.loads(now[0].to_json())
    del old["x"]["moments"]["m3"], old["x"]["moments"]["m4"]
    registers = sketches._halved(now[0]["x"].values.registers)
    old["x"]["values"]["registers"] = {"dtype": "|u1", "zlib": sketches_text(registers)}
    before = Summary.from_json(json.dumps(old))
    assert (
        before["x"].std == now[0]["x"].std
        and np.isnan(before["x"].skewness)
        and len(before["x"].values.registers) == 2**14
    )
    both = before.merge(now[1])["x"]
    assert (
        both.count == 40_000 and np.isnan(both.kurtosis) and abs(both.distinct / 40_000 - 1) < 0.025
    )
    assert np.array_equal(both.values.registers, now[1].merge(before)["x"].values.registers)
    whole = values(np.unique(x), np.ones(len(x), np.int64)).registers
    assert np.array_equal(both.values.registers, sketches._halved(whole)), (
        "as if all had been counted with the fewer registers"
    )


def sketches_text(x):
    from scalai_nb.describe.summary import _plain

    return _plain(x)["zlib"]


# ---- moments ----

NASTY = st.one_of(
    st.floats(-1e3, 1e3, width=32),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(
        [
            0.0,
            -0.0,
            np.nan,
            np.inf,
            -np.inf,
            5e-324,
            -5e-324,
            2.2e-308,
            1.7976931348623157e308,
            -1.7976931348623157e308,
            1e-40,
            1.0,
            1.0 + 2**-52,
        ]
    ),
)


def exact_moments(x):
    "In rational numbers"
    x = [Fraction(float(v)) for v in x]
    mean = sum(x) / len(x)
    return mean, *(sum((v - mean) ** k for v in x) for k in (2, 3, 4))


@settings(deadline=None, database=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 30))
def test_moments_are_those_of_rational_arithmetic(x, cut):
    x = np.array(x)
    mean, *powers = exact_moments(x)
    spread = max(float(np.abs(x).max()), 1e-60)
    for m in (
        moments(x),
        merge_moments(moments(x[:cut]), moments(x[cut:])),
        moments(*np.unique(x, return_counts=True)),
    ):
        assert m.n == len(x) and m.mean == pytest.approx(float(mean), abs=1e-14 * spread)
        for k, power in zip((2, 3, 4), powers, strict=True):
            assert getattr(m, f"m{k}") == pytest.approx(
                float(power), rel=1e-9, abs=1e-13 * len(x) * spread**k + 1e-300
            )


@pytest.mark.parametrize(
    "make",
    [
        lambda r, n: r.normal(3, 2, n),
        lambda r, n: r.gamma(1, 5, n),
        lambda r, n: r.normal(1e9, 1, n),
        lambda r, n: r.lognormal(0, 1, n).astype(np.float32),
        lambda r, n: r.integers(-5, 10**7, n),
    ],
)
def test_skewness_and_kurtosis_are_scipys(make):
    x = make(RNG(0), 50_000)
    c = merge_columns(col(x[:17]), merge_columns(col(x[17:30_000]), col(x[30_000:])))
    near = 1e-9 + 1e-15 * abs(c.mean) / c.std  # the mean is a float, too
    x = x.astype(np.float64) - x[0]  # without which SciPy's own mean is too coarse
    assert c.skewness == pytest.approx(
        stats.skew(x), rel=near, abs=near
    ) and c.kurtosis == pytest.approx(stats.kurtosis(x), rel=near, abs=near)


def test_moments_that_are_not_defined_are_nan_and_warn_of_nothing():
    for x in (
        [],
        [np.nan],
        [7.0],
        np.full(50_000, 0.1),
        np.full(100, 0.1),
        np.full(30_000, 1e308),
        [5e-324, 0.0],
    ):
        c = col(np.array(x))
        assert np.isnan(c.skewness) and np.isnan(c.kurtosis) and (not c.moments.n or c.std == 0), (
            "a constant has no spread at all, not to the last bit"
        )
    big = np.tile([1.7e308, -1.7e308, 1e308], 20_000)
    for x in (big, np.append(big, RNG(0).normal(size=40_000)), -big[::-1]):
        c, both = merge_columns(col(x), col(x[:7])), np.append(x, x[:7]) / 1e10
        assert abs(c.mean - np.mean(both) * 1e10) < 1e296 and c.max == x.max()
        assert c.moments.m2 == np.inf and np.isnan(c.moments.m4), "as powers leave the range"
        unit = np.abs(both).max()
        assert c.std / 1e10 == pytest.approx(unit * np.std(both / unit), rel=0.005)
        assert c.skewness == pytest.approx(stats.skew(both / unit), abs=0.01)
    far = merge_columns(col(np.full(9, 1.7e308)), col(np.full(9, -1.7e308)))
    assert far.mean == 0 and far.std == 1.7e308 and far.kurtosis == pytest.approx(-2)


# ---- kernels against NumPy ----


def hashed(bits):
    "SplitMix64, and the register and rank that it gives"
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    rest = (bits & np.uint64(2**49 - 1)).astype(np.float64)
    return (bits >> np.uint64(49)).astype(np.int64), (50 - np.frexp(rest)[1]).astype(np.uint8)


def nasty(seed: int, n: int, dtype="f8"):
    "Numbers of every size and both signs, with zeros, infinities, NaN and repeated values"
    r = RNG(seed)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        x = r.integers(0, 2**64, n, dtype=np.uint64).view(np.float64).astype(dtype)
    x[r.random(n) < 0.3] = r.normal()
    return np.where(
        r.random(n) < 0.4, r.choice(np.array([0, -0.0, np.inf, -np.inf, np.nan, 1, -5e-324]), n), x
    ).astype(dtype)


WHOLE = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]


def whole(seed: int, n: int, dtype):
    x = RNG(seed).integers(0, 2**64, n, dtype=np.uint64)
    return (x >> np.uint64(seed % 61)).astype(dtype) if dtype != "?" else x % np.uint64(2) == 1


@pytest.mark.parametrize("dtype", ["f4", "f8", *WHOLE])
@pytest.mark.parametrize("n", [0, 1, 7, 2047, 2048, 5000])
def test_scan_finds_what_numpy_finds(dtype, n):
    for seed in range(5):
        x = nasty(seed, n, dtype) if dtype[0] == "f" else whole(seed, n, dtype)
        s, finite = kernel.scan(x), x[np.isfinite(x)]
        assert (s.missing, s.zeros, s.n) == (np.isnan(x).sum(), (x == 0).sum(), len(finite))
        assert (s.below, s.above) == ((x == -np.inf).sum(), (x == np.inf).sum())
        if not len(finite):
            continue
        assert (s.least, s.greatest) == (finite.min(), finite.max())
        if dtype[0] == "f":
            assert s.small == np.abs(finite[finite != 0]).min(initial=np.inf)
        tame = np.clip(x, -1e9, 1e9) if dtype[0] == "f" else x
        s, y = kernel.scan(tame), tame[np.isfinite(tame)].astype(np.float64)
        spread = np.abs(y).max()
        for k, m in ((2, s.m2), (3, s.m3), (4, s.m4)):
            assert m == pytest.approx(
                np.sum((y - y.mean()) ** k), rel=1e-9, abs=1e-12 * len(y) * spread**k
            )
        assert s.mean == pytest.approx(y.mean(), rel=1e-12, abs=1e-14 * spread)


@pytest.mark.parametrize("dtype", ["f4", "f8", *WHOLE])
@pytest.mark.parametrize("shift", [0, 13, 45])
def test_spread_counts_what_numpy_counts(dtype, shift):
    for seed, n in ((0, 0), (1, 100), (2, 5001)):
        x = nasty(seed, n, dtype) if dtype[0] == "f" else whole(seed + 40, n, dtype)
        keys, real = (
            float_keys(x[~np.isnan(x)].astype(np.float64)),
            x[np.isfinite(x) & (x != 0)] if dtype[0] == "f" else x,
        )
        near = np.sort(np.abs(keys[keys != 0]) >> shift)
        low = int(near[0]) if n else 0
        s = kernel.spread(x, shift, low, 1000)
        at = (np.abs(keys) >> shift) - low
        for sign, row in ((keys >= 0, s.counts[0]), (keys < 0, s.counts[1])):
            assert np.array_equal(
                row[:-1], np.bincount(at[sign & (at >= 0) & (at < 1000)], minlength=1000)
            ), "the last counts what is outside"
        assert s.counts.sum() == n
        cell, rank = hashed(sketches._bits(real))
        assert np.array_equal(s.cells, np.bincount(cell, minlength=kernel.CELLS))
        expected = np.zeros(kernel.CELLS, np.uint8)
        np.maximum.at(expected, cell, rank)
        assert np.array_equal(s.registers, expected) and np.array_equal(
            kernel.registers(sketches._bits(real)), expected
        )
        heavy = s.cells >= 2
        assert np.array_equal(kernel.pick(x, heavy), real[heavy[cell]])


def test_spread_of_equal_widths():
    x = RNG(0).integers(-(10**15), 10**15, 9000)
    s = kernel.spread(x, 40, 0, 1000, linear=True)
    at = np.abs(x) >> 40
    assert all(
        np.array_equal(row[:-1], np.bincount(at[sign], minlength=1000))
        for sign, row in ((x >= 0, s.counts[0]), (x < 0, s.counts[1]))
    )


@pytest.mark.parametrize("dtype", ["f4", "f8", *WHOLE])
def test_distinct_values_are_those_of_numpy(dtype):
    for seed, n in ((0, 0), (1, 1), (2, 50), (3, 6000)):
        x = nasty(seed, n, dtype) if dtype[0] == "f" else whole(seed + 50, n, dtype)
        exact = np.unique(x[~np.isnan(x)], return_counts=True)
        for found, counts in (kernel.unique(x), kernel.count(x, 6000)):
            assert np.array_equal(found, exact[0]) and np.array_equal(counts, exact[1])
        limit = len(exact[0]) - 1
        if limit > 0:
            assert kernel.count(x, limit) is None and kernel.count(x, limit + 1) is not None


def test_equal_hashes_do_not_make_a_column_slow():
    "Values made to collide: `count` gives up instead of walking through the table for each"
    z = RNG(0).integers(0, 2**64, 4000, dtype=np.uint64) & np.uint64(
        0xC000FFFFFFFFFFFF
    )  # all to slot 0
    undo = [
        (31, 1),
        (27, pow(0x94D049BB133111EB, -1, 2**64)),
        (30, pow(0xBF58476D1CE4E5B9, -1, 2**64)),
    ]
    for shift, factor in undo:
        z = z * np.uint64(factor)
        z = z ^ (z >> np.uint64(shift)) ^ (z >> np.uint64(2 * shift))
    x = np.tile(z.view(np.int64), 10)
    assert (hashed(x.view(np.uint64))[0] >> 1 & 2**14 - 1 < 2**14).all() and kernel.count(
        x, LIMIT
    ) is None
    assert col(x).distinct == 4000 and set(col(x).values.counts) == {10}


@settings(deadline=None, database=None)
@given(
    arrays(np.int16, st.integers(0, 60)),
    st.integers(-40_000, 40_000),
    st.sampled_from([1, 3, 500, 70_000]),
)
def test_tally_counts_a_range(x, first, size):
    inside = x[(x >= first) & (x.astype(int) < first + size)].astype(int)
    counts = kernel.tally(x, first, size)
    assert np.array_equal(counts[:-1], np.bincount(inside - first, minlength=size)) and counts[
        -1
    ] == len(x) - len(inside)


@pytest.mark.parametrize("x", [np.ones(2, "c16"), np.ones(2, "f2"), np.array(["a"], dtype=object)])
def test_a_kernel_names_the_dtypes_it_takes(x):
    for call in (
        kernel.scan,
        lambda x: kernel.spread(x, 45, 0, 9),
        lambda x: kernel.count(x, 9),
        kernel.bounds,
        kernel.unique,
        lambda x: kernel.tally(x, 0, 9),
    ):
        with pytest.raises(ParameterError, match=f"int64.*not {x.dtype}; convert"):
            call(x)
    with pytest.raises(ParameterError, match="contiguous"):
        kernel.scan(np.ones((4, 4)).T.reshape(-1)[::2])
    with pytest.raises(ParameterError, match="contiguous"):
        kernel.scan(np.ones((4, 4)))


# ---- the three routes through a block ----

SHAPES = {
    "normal": lambda r, n: r.normal(0, 1, n),
    "pressure": lambda r, n: r.normal(1013, 10, n).astype("f4"),
    "far": lambda r, n: r.normal(-1e9, 1, n),
    "lognormal": lambda r, n: r.lognormal(0, 4, n),
    "cauchy": lambda r, n: r.standard_cauchy(n),
    "uniform": lambda r, n: r.random(n),
    "outliers": lambda r, n: np.where(r.random(n) < 0.001, -9999, r.normal(20, 1, n)),
    "two far clusters": lambda r, n: np.where(
        r.random(n) < 0.5, r.normal(1e-9, 1e-12, n), r.normal(1e9, 1, n)
    ),
    "spike": lambda r, n: np.where(r.random(n) < 0.7, 1.5, r.normal(0, 1, n)),
    "mostly missing": lambda r, n: np.where(r.random(n) < 0.9, np.nan, r.normal(0, 1, n)),
    "zeros": lambda r, n: np.where(r.random(n) < 0.8, 0, r.gamma(1, 1, n)),
    "tiny": lambda r, n: r.normal(0, 1e-310, n),
    "huge": lambda r, n: r.normal(0, 1e307, n),
    "infinite": lambda r, n: np.where(
        r.random(n) < 0.2, r.choice([np.inf, -np.inf], n), r.normal(0, 1, n)
    ),
    "nasty": lambda r, n: nasty(3, n),
    "rounded": lambda r, n: r.normal(0, 100, n).round(1),
    "sorted": lambda r, n: np.sort(r.normal(0, 1, n).round(3)),
    "late": lambda r, n: np.append(np.zeros(n - 9000), r.normal(0, 1, 9000)),
    "every fourth": lambda r, n: np.where(np.arange(n) % (n // 2000) == 0, 1.0, r.normal(0, 1, n)),
    "single": lambda r, n: r.normal(0, 1, n).astype("f4"),
    "ids": lambda r, n: r.integers(0, 2**62, n),
    "signed": lambda r, n: r.integers(-(2**40), 2**40, n),
    "narrow": lambda r, n: r.integers(-9, 60_000, n),
    "few": lambda r, n: r.choice([0, 10**12], n),
    "small": lambda r, n: r.integers(-9, 9, n).astype("i1"),
    "unsigned": lambda r, n: r.integers(0, 2**64, n, dtype=np.uint64),
    "minute": lambda r, n: r.integers(2**63, 2**63 + 9000, n, dtype=np.uint64),
    "half": lambda r, n: r.normal(0, 1, n).astype("f2"),
    "bool": lambda r, n: r.random(n) < 0.3,
    "beyond 2^53": lambda r, n: 2**60 + r.integers(0, 9000, n),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("n", [300, 60_000])
def test_every_route_comes_to_the_same(name, n, monkeypatch):
    "Buckets and registers to the last bit; moments but for rounding; frequent values within slack"
    if n == 300 and name in ("late", "every fourth"):
        return
    x = SHAPES[name](RNG(3), n)
    found, counts = kernel.unique(sketches._for_kernels(x))
    exact = sketches._of_counts(len(x), found, counts, lambda v: float_keys(v.astype(np.float64)))
    monkeypatch.setattr(sketches, "SMALL", 0)
    for d in (describe(x), describe(x, shift=exact.buckets.shift, slack=exact.values.slack)):
        for k in ("missing", "zeros", "infinite", "least", "greatest"):
            assert getattr(d, k) == getattr(exact, k), k
        assert (
            alike(d.buckets, exact.buckets)
            and alike(d.values.registers, exact.values.registers)
            and d.moments.n == exact.moments.n
        )
        assert_alike_moments(d.moments, exact.moments)
        assert d.values.slack <= 1.5 * n / (LIMIT + 1) and (d.values.slack > 0) == (
            exact.values.slack > 0
        )
        true = dict(zip(found.tolist(), counts.tolist(), strict=True))
        kept = dict(zip(d.values.values.tolist(), d.values.counts.tolist(), strict=True))
        assert (
            all(c <= true[v] <= c + d.values.slack for v, c in kept.items())
            and max((c for v, c in true.items() if v not in kept), default=0) <= d.values.slack
        )


def assert_alike_moments(a: Moments, b: Moments, rtol=1e-9):
    """Up to rounding: of the mean in units of the spread, of the third moment in those of its bound

    A mean beyond 2^30 spreads is itself too coarse for more.
    """
    spread, both = np.sqrt(max(a.m2, b.m2) / max(a.n, 1)), (a.n, b.n)
    assert both[0] == both[1] and (
        a.mean == b.mean or abs(a.mean - b.mean) <= rtol * spread + 1e-12 * abs(b.mean) + 1e-320
    )
    if spread < abs(b.mean) * 2**-30:
        return
    for k in (2, 4):
        assert (
            alike(getattr(a, f"m{k}"), getattr(b, f"m{k}"), rtol=1e-7)
            or not getattr(b, f"m{k}") > 1e-200
        )
    assert (
        abs(a.m3 - b.m3) <= 1e-7 * np.sqrt(a.m2) * np.sqrt(a.m4)
        or not np.isfinite(a.m4)
        or a.m2 < 1e-150
    )


# ---- laws ----


def block(seed: int, n: int) -> xr.Dataset:
    r = RNG(seed)
    x = {name: make(r, n) for name, make in SHAPES.items() if name not in ("late", "every fourth")}
    x |= {
        "when": np.datetime64("2013-01-01", "us") + r.integers(0, 10**13, n),
        "word": r.choice(words("a", "b", None), n),
        "id": r.integers(0, 9**9, n).astype(str).astype(object),
    }
    return xr.Dataset({n: ("row", v) for n, v in x.items()})


def same_summary(a, b) -> bool:
    "The same but for rounding of moments; frequent values beyond the limit within their slack"
    for n in a:
        p, q = a[n], b[n]
        assert_alike_moments(p.moments, q.moments)
        assert alike(
            replace(p, moments=Moments(), values=Values()),
            replace(q, moments=Moments(), values=Values()),
            rtol=0,
        ), n
        assert alike(p.values.registers, q.values.registers) and (
            p.values.slack or alike(p.values, q.values)
        ), n
        x, y = (
            dict(zip(c.values.values.tolist(), c.values.counts.tolist(), strict=True))
            for c in (p, q)
        )
        assert all(
            y.get(v, 0) - p.values.slack <= x.get(v, 0) <= y.get(v, 0) + q.values.slack
            for v in x.keys() | y.keys()
        ), n
    return list(a) == list(b)


@pytest.mark.parametrize("sizes", [(0, 1, 300), (20_000, 300, 40_000), (30_000, 30_000, 30_000)])
def test_laws(sizes):
    check_mergeable(
        SUMMARY,
        [block(i, n) for i, n in enumerate(sizes)],
        lambda x: xr.concat(x, "row"),
        same_summary,
    )


@settings(deadline=None, database=None, max_examples=40)
@given(st.lists(st.lists(NASTY, max_size=30), min_size=3, max_size=3))
def test_laws_of_nasty_floats(parts):
    blocks = [xr.Dataset({"x": ("row", np.array(p, np.float64))}) for p in parts]
    check_mergeable(SUMMARY, blocks, lambda x: xr.concat(x, "row"), same_summary)


def test_distinct_is_within_2_percent_on_every_column():
    r, n = RNG(5), 400_000
    for i in range(20):
        x = r.integers(0, int(5000 * 1.4**i), n) if i % 2 else r.normal(0, 1, n).round(2 + i // 4)
        assert abs(col(x).distinct / len(np.unique(x)) - 1) < 0.02
    x = r.normal(size=999)
    assert col(x).distinct == 999


def test_the_summary_is_that_of_pandas_and_duckdb():
    duckdb, r, n = pytest.importorskip("duckdb"), RNG(9), 30_000
    df = pd.DataFrame(
        {
            "a": np.where(r.random(n) < 0.1, np.nan, r.normal(5, 3, n)),
            "b": r.gamma(2, 3, n).astype("f4"),
            "c": r.integers(-50, 50, n),
            "d": r.integers(0, 10**9, n),
            "e": r.choice(words("x", "y", "z", None), n),
        }
    )
    s = summarize(xr.Dataset({c: ("row", df[c].to_numpy()) for c in df}))
    theirs = duckdb.sql("SUMMARIZE df").df().set_index("column_name")
    for name in df:
        c, x = s[name], df[name]
        assert (
            c.missing == x.isna().sum()
            and abs(c.distinct / x.nunique() - 1) < 0.02
            and c.missing_share
            == pytest.approx(float(theirs.null_percentage[name]) / 100, abs=1e-4)
        )
        assert (
            c.top == {} or next(iter(c.top.values())) >= x.value_counts().iloc[0] - c.values.slack
        )
        if name == "e":
            continue
        assert (c.min, c.max) == (x.min(), x.max()) and float(theirs["min"][name]) == pytest.approx(
            c.min, rel=1e-6
        )
        x = x.astype("f8")
        assert c.mean == pytest.approx(x.mean(), rel=1e-9) and c.mean == pytest.approx(
            float(theirs["avg"][name]), rel=1e-6
        )
        assert c.std == pytest.approx(x.std(ddof=0), rel=1e-9) and c.std == pytest.approx(
            float(theirs["std"][name]), rel=1e-4
        )
        assert c.skewness == pytest.approx(
            x.skew(), rel=1e-3, abs=1e-3
        ) and c.kurtosis == pytest.approx(x.kurt(), rel=1e-2, abs=1e-2)
        assert c.quantile(0.25) == pytest.approx(
            x.quantile(0.25, interpolation="lower"), rel=2**-8, abs=1
        )


# ---- the summary ----


@pytest.fixture(scope="module")
def ds():
    r, n = RNG(1), 10_000
    return xr.Dataset(
        {
            "temp": (
                "row",
                np.where(r.random(n) < 0.1, np.nan, r.normal(50, 20, n)),
                {"units": "°F", "long_name": "air <temperature>"},
            ),
            "hour": ("row", r.integers(0, 24, n)),
            "when": (
                "row",
                np.datetime64("2013-01-01", "ns") + r.integers(0, 8760, n) * np.timedelta64(1, "h"),
            ),
            "carrier": ("row", r.choice(words("UA", "<b>AA</b>", None), n)),
            "a<b>": ("row", np.where(r.random(n) < 0.01, np.inf, 1.0)),
        },
        coords={"row": np.arange(n), "place": "here"},
    )


@pytest.fixture(scope="module")
def s(ds):
    return summarize(ds)


def test_as_a_frame(ds, s):
    f = s.to_frame()
    assert (
        list(f.index) == ["temp", "hour", "when", "carrier", "a<b>"]
        and list(s) == list(f.index)
        and "temp" in s
        and len(s) == 5
    )
    df = ds.to_dataframe()
    assert (f["missing"] == df[f.index].isna().sum()).all() and all(
        f.loc[n, "distinct"] == df[n].nunique() for n in ("hour", "carrier")
    )
    assert np.isclose(f.loc["temp", "mean"], df.temp.mean()) and np.isclose(
        f.loc["temp", "std"], df.temp.std(ddof=0)
    )
    assert f.loc["carrier", "top"] == df.carrier.mode()[0] and f.loc["when", "max"] == df.when.max()


def test_as_a_dataset(s):
    x = s.to_xarray()
    assert float(x["value"].sel(column="temp", quantile=0.5)) == s["temp"].quantile(0.5)
    assert float(x["min"].sel(column="when")) == 1356998400.0 and np.isnan(
        x["mean"].sel(column="carrier")
    )
    assert x["missing"].sel(column="temp") == s["temp"].missing


def test_as_json(s):
    text = s.to_json()
    assert json.loads(text, parse_constant=pytest.fail), (
        "no NaN or Infinity, which JSON does not know"
    )
    again = Summary.from_json(text)
    assert alike(again, s, rtol=0) and again["a<b>"].max == np.inf and again.to_json() == text
    assert alike(again.merge(s), s.merge(s), rtol=0), "and it can still be merged"


@pytest.mark.parametrize("text", ["", "[]", '{"a": {}}', '{"a": 1}'])
def test_json_that_is_no_summary(text):
    with pytest.raises(ParameterError, match="no summary"):
        Summary.from_json(text)


def test_merging_is_summarising_both(ds, s):
    halves = [summarize(ds.isel(row=part)) for part in (slice(0, 3000), slice(3000, None))]
    xr.testing.assert_allclose(halves[0].merge(halves[1]).to_xarray(), s.to_xarray(), rtol=1e-12)
    assert halves[0].merge(summarize(ds[["hour"]].rename(hour="other"))).rows == 10_000


def test_a_column_that_is_not_there(s):
    with pytest.raises(ParameterError, match="Did you mean 'carrier'"):
        s["carier"]


class Page(HTMLParser):
    "Checks that tags are balanced, and collects text and addresses"

    void = {"br"}

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.tags = [], "", []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_sound(s):
    html = s._repr_html_()
    page = Page(html)
    assert (
        "10,000 rows, 5 columns" in page.text
        and "°F" in page.text
        and "air <temperature>" in page.text
        and "<b>AA</b>" in page.text
        and "a<b>" in page.text
    )
    assert not re.search(
        (
            r"https?:|src=|href=|@import|url\(|<script|background:\s*#|color:\s*(black|white|#000|"
            "#fff)"
        ),
        html,
    ), "nothing from outside, and no colour of its own for text"
    assert sum(tag == "svg" for tag, _ in page.tags) == 10
    assert max(float(a["height"]) for tag, a in page.tags if tag == "rect") <= 28


def test_the_text_is_short(s):
    assert (
        repr(s).startswith("Summary of 10,000 rows and 5 columns\n")
        and len(repr(s).splitlines()) == 7
    )


def test_histograms_hold_all_values(s, ds):
    for name in s:
        h = s[name].histogram
        assert len(h.counts) <= BINS + 1 and h.counts.sum() == s[name].present - s[name].infinite
    h = s["temp"].histogram
    exact, _ = np.histogram(
        ds.temp.values[~np.isnan(ds.temp)].clip(h.edges[0], h.edges[-1]), h.edges
    )
    assert np.abs(exact - h.counts).max() < 60, "buckets at the edges of a bar go to one side"


def test_value_and_percent():
    assert [
        value(x)
        for x in (1e-7, -3.0, -1234567.8, 1e13, -np.inf, None, np.datetime64("2013-01-01T05:06:07"))
    ] == ["1e-07", "-3", "-1,234,568", "1e+13", "−∞", "", "2013-01-01 05:06"]
    assert [percent(x) for x in (1, 0.999, np.nan)] == [
        "100\N{NO-BREAK SPACE}%",
        "100\N{NO-BREAK SPACE}%",
        "",
    ]
