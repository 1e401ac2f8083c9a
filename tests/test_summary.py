"""Summaries against numpy and pandas, within the bounds that they state."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from scalai_nb.compute import sketches
from scalai_nb.compute.reduce import alike
from scalai_nb.compute.sketches import LIMIT, Buckets, Values, buckets, distinct, float_keys, key_floats, merge_buckets, values
from scalai_nb.errors import ParameterError
from scalai_nb.learn.summary import BINS, Column, Summary, column, merge_columns, percent, show, summarize

RNG = np.random.default_rng
QUANTILES = np.array([0, 0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999, 1])


def col(x, **attrs): return column(xr.DataArray(x, dims="row", attrs=attrs))
def words(*x): return np.array(x, dtype=object)


# ---- numbers ----

FLOATS = arrays(np.float64, st.integers(1, 50), elements=st.floats(-1e100, 1e100))


@settings(deadline=None, database=None)
@given(FLOATS)
def test_few_numbers_are_described_exactly(x):
    c = col(x)
    assert (c.count, c.missing, c.zeros, c.distinct) == (len(x), 0, np.sum(x == 0), len(np.unique(x)))
    assert (c.min, c.max) == (x.min(), x.max())
    assert np.isclose(c.mean, x.mean(), atol=1e-12 * np.abs(x).max()) and np.isclose(c.std, x.std(), rtol=1e-6, atol=1e-7 * np.abs(x).max())
    assert np.array_equal(c.quantile(QUANTILES), np.quantile(x, QUANTILES, method="inverted_cdf"))
    assert sum(c.top.values()) <= len(x) and all(np.sum(x == v) == n for v, n in c.top.items())


@pytest.mark.parametrize("make", [
    lambda r, n: r.normal(0, 1, n), lambda r, n: r.lognormal(0, 5, n), lambda r, n: -r.lognormal(3, 9, n), lambda r, n: r.normal(1e6, 1, n),
    lambda r, n: r.standard_cauchy(n), lambda r, n: np.where(r.random(n) < 0.3, 0, r.normal(size=n)), lambda r, n: r.normal(0, 1e-200, n),
    lambda r, n: r.integers(-(10**9), 10**9, n), lambda r, n: r.normal(size=n).astype(np.float32),
])
def test_many_numbers_are_within_the_bounds(make):
    x = make(RNG(0), 60_000)
    c = col(x)
    exact = np.quantile(x.astype(np.float64), QUANTILES, method="inverted_cdf")
    assert np.all(np.abs(c.quantile(QUANTILES) - exact) <= 2**-8 * np.abs(exact))
    assert abs(c.distinct / len(np.unique(x)) - 1) < 0.03, "3.7 standard errors of 0.8 %"
    assert np.isclose(c.mean, x.mean(dtype=np.float64), atol=1e-9 * np.abs(x).max()) and np.isclose(c.std, x.std(dtype=np.float64))
    assert len(c.buckets.keys) <= LIMIT or c.buckets.shift == sketches.COARSEST


def test_missing_values_and_infinities():
    c = col([np.nan, np.inf, -np.inf, 1.0, 3.0, -0.0, np.nan])
    assert (c.count, c.missing, c.infinite, c.zeros, c.present) == (7, 2, 2, 1, 5)
    assert (c.min, c.max, c.mean, c.std) == (-np.inf, np.inf, 4 / 3, np.std([1, 3, 0]))
    assert list(c.quantile([0, 0.5, 1])) == [-np.inf, 1.0, np.inf] and c.missing_share == 2 / 7
    many = col(np.concatenate([RNG(0).normal(size=9000), [np.inf] * 1000]))
    assert many.quantile(0.95) == np.inf and np.isfinite(many.quantile(0.89)) and many.histogram.counts.sum() == 9000


@pytest.mark.parametrize("x", [np.empty(0), np.full(5, np.nan), words(None, None), np.array(["NaT"], dtype="M8[ns]"), np.empty(0, int)])
def test_nothing_to_describe(x):
    c = col(x)
    assert (c.count, c.missing, c.distinct, c.top) == (len(x), len(x), 0, {})
    assert all(pd.isna(v) for v in (c.min, c.max, c.mean, c.std, c.quantile(0.5))) and len(c.histogram.counts) == 0
    assert summarize(xr.Dataset({"x": ("row", x)}))._repr_html_()


def test_one_value_and_a_constant():
    for x in ([7], [7] * 100):
        c = col(x)
        assert (c.min, c.max, c.mean, c.std, c.quantile(0.3), c.distinct, c.top) == (7, 7, 7.0, 0.0, 7.0, 1, {7: len(x)})
        assert c.histogram.counts.sum() == len(x)


def test_the_greatest_floats_and_integers():
    c = col(np.array([1.7e308, 1.7e308, -1.7e308]))
    assert c.max == 1.7e308 and c.quantile(1) == 1.7e308 and not np.isnan(c.min)
    big = col(np.array([2**63 - 1, 2**63 - 2, -(2**63)]))
    assert (big.min, big.max, big.distinct) == (-(2**63), 2**63 - 1, 3)
    assert col(np.array([2**64 - 1], dtype=np.uint64)).max == 2**64 - 1
    assert np.array_equal(*(col(np.append(x, np.arange(1, 9000.0))).values.registers for x in (0.0, -0.0))), "-0 is 0"
    ids = col(2**60 + np.arange(20_000))
    assert abs(ids.distinct / 20_000 - 1) < 0.03, "integers beyond 2^53 are told apart"


def test_integers_keep_whole_quantiles_and_bins():
    c = col(RNG(0).integers(0, 100_000, 50_000))
    assert c.buckets.shift and all(q == round(q) for q in c.quantile(QUANTILES))
    months = col(RNG(0).integers(1, 13, 1000))
    assert list(months.histogram.edges) == [m + 0.5 for m in range(13)], "a bar a month"


@pytest.mark.parametrize("q", [-0.1, 1.1, np.nan, [0.5, 2]])
def test_a_quantile_beyond_the_data_is_refused(q):
    with pytest.raises(ParameterError, match="from 0 to 1"): col([1.0]).quantile(q)


# ---- other kinds ----


def test_bools():
    c = col([True, False, True, True])
    assert (c.kind, c.mean, c.zeros, c.top, c.min, c.max) == ("bool", 0.75, 1, {True: 3, False: 1}, 0, 1)


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_times(unit):
    x = np.array(["2013-01-01T05", "2013-07-01T12:30", "NaT", "1969-12-31T23"], dtype=f"M8[{unit}]")
    c = col(x)
    assert (c.kind, c.missing, c.distinct) == ("time", 1, 3) and c.min == np.datetime64("1969-12-31T23") and c.max == np.datetime64("2013-07-01T12:30")
    assert c.quantile(0.5) == np.datetime64("2013-01-01T05") and abs(c.mean - x[~np.isnat(x)].astype("M8[us]").astype(int).mean().astype("M8[us]")) < np.timedelta64(1, "ms")
    assert c.histogram.edges.dtype.kind == "M" and next(iter(c.top)) == np.datetime64("1969-12-31T23")


def test_many_times_are_within_the_bound():
    x = np.datetime64("2013-01-01", "us") + RNG(0).integers(0, 365 * 86_400 * 10**6, 50_000)
    error = np.abs(col(x).quantile(QUANTILES) - np.quantile(x.astype(int), QUANTILES, method="inverted_cdf").astype("M8[us]"))
    assert error.max() <= np.ptp(x) / 4096


def test_strings_and_categories_are_the_same_but_for_their_kind():
    s = col(words("b", "a", None, "b", ""))
    c = col(np.array([2, 0, -1, 2, 1], dtype="i1"), categories=["a", "", "b", "unused"])
    for x in (s, c): assert (x.count, x.missing, x.zeros, x.distinct, x.top) == (5, 1, 1, 3, {"b": 2, "": 1, "a": 1})
    assert (s.kind, c.kind, np.isnan(s.min), np.isnan(s.quantile(0.5))) == ("string", "category", True, True)
    assert merge_columns(s, c).kind == "string" and merge_columns(s, c).top["b"] == 4
    assert col(np.array(["x", "y"])).top == {"x": 1, "y": 1}


def test_categories_merge_by_label():
    a, b = (col(np.array([0, 0, 1], dtype="i1"), categories=names) for names in (["x", "y"], ["y", "z"]))
    assert merge_columns(a, b).top == {"y": 3, "x": 2, "z": 1}


def test_frequent_values_among_many():
    r = RNG(0)
    x = np.concatenate([np.repeat(["often", "also"], [3000, 2000]), [f"id{i}" for i in r.integers(0, 10**9, 40_000)]]).astype(object)
    r.shuffle(x)
    parts = [col(x[i:i + 9000]) for i in range(0, len(x), 9000)]
    c = parts[0]
    for p in parts[1:]: c = merge_columns(c, p)
    assert list(c.top)[:2] == ["often", "also"] and 0 < c.values.slack <= len(x) / (LIMIT + 1)
    exact = Counter(x.tolist())
    assert all(n <= exact[v] <= n + c.values.slack for v, n in zip(c.values.values, c.values.counts, strict=True))
    assert abs(c.distinct / len(exact) - 1) < 0.03


@pytest.mark.parametrize(("x", "message"), [
    (words("a", 1), "1 is of type int, not str"), (np.array([1j]), "dtype complex128 cannot"), (np.array([1], dtype="m8[s]"), "dtype timedelta64"),
])
def test_what_cannot_be_described_is_refused(x, message):
    with pytest.raises(ParameterError, match=f"column 'odd': {message}"): summarize(xr.Dataset({"fine": ("row", np.ones(len(x))), "odd": ("row", x)}))


def test_a_code_without_a_category_is_refused():
    with pytest.raises(ParameterError, match="code 2 has no category, as there are 2"): col(np.array([0, 2], dtype="i1"), categories=["a", "b"])


def test_kinds_that_do_not_merge_are_named():
    with pytest.raises(ParameterError, match="Block 1: column 'x': The column is of kind number in one part"):
        summarize([xr.Dataset({"x": ("row", x)}) for x in (np.array([1.0]), words("a"))])
    mixed = summarize([xr.Dataset({"x": ("row", np.array(x))}) for x in ([1, 2], [np.nan, 0.5], [True])])
    assert (mixed["x"].kind, mixed["x"].count, mixed["x"].missing, mixed["x"].distinct) == ("number", 5, 1, 3)


def test_a_column_of_images_is_described_by_its_pixels():
    s = summarize(xr.Dataset({"image": (("row", "y", "x"), np.arange(24).reshape(2, 3, 4)), "scale": ("y", [1, 2, 3])}))
    assert list(s) == ["image"] and (s["image"].count, s["image"].max) == (24, 23)


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
    assert b.counts.sum() == 500 and len(b.keys) <= 40 < len(sketches.coarsen(finer, b.shift - 1).keys)
    low, high = b.limits
    assert all(((k >= low) & (k <= high)).sum() == 1 for k in keys), "each key is in one bucket"


def test_buckets_of_two_kinds_of_counts():
    a = buckets(np.array([5, 1, 5]), np.array([[1, 0], [0, 1], [0, 1]]))
    assert a.counts.tolist() == [[0, 1], [1, 1]] and merge_buckets(a, Buckets()).counts.tolist() == a.counts.tolist()


@pytest.mark.parametrize("n", [LIMIT + 1, 20_000, 300_000])
def test_the_estimate_of_distinct_values_is_unbiased(n):
    "Mean and spread over 40 sets of values, against the stated standard error of 0.8 %"
    errors = [distinct(values(x := np.arange(n) + seed * 10**7, np.ones_like(x))) / n - 1 for seed in range(40)]
    assert abs(np.mean(errors)) < 0.0045, "3.5 standard errors of the mean"
    assert 0.001 < np.std(errors) < 0.0125


def test_strings_and_equal_numbers_hash_alike_everywhere():
    ints, floats = np.arange(-5, 5), np.arange(-5, 5.0)
    assert (sketches._hash(ints) == sketches._hash(floats)).all()
    assert sketches._hash(words("a", "b")).tolist() == [13950350942979735504, 12688059582079114975], "as stored summaries have it"
    assert sketches._hash(floats).tolist()[-1] == sketches._hash(np.array([4])).tolist()[0]


def test_an_empty_sketch_has_no_values(): assert distinct(Values()) == 0 and Column().distinct == 0


# ---- the summary ----


@pytest.fixture(scope="module")
def ds():
    r, n = RNG(1), 10_000
    return xr.Dataset({
        "temp": ("row", np.where(r.random(n) < 0.1, np.nan, r.normal(50, 20, n)), {"units": "°F", "long_name": "air <temperature>"}),
        "hour": ("row", r.integers(0, 24, n)), "when": ("row", np.datetime64("2013-01-01", "ns") + r.integers(0, 8760, n) * np.timedelta64(1, "h")),
        "carrier": ("row", r.choice(words("UA", "<b>AA</b>", None), n)), "a<b>": ("row", np.where(r.random(n) < 0.01, np.inf, 1.0)),
    }, coords={"row": np.arange(n), "place": "here"})


@pytest.fixture(scope="module")
def s(ds): return summarize(ds)


def test_as_a_frame(ds, s):
    f = s.to_frame()
    assert list(f.index) == ["temp", "hour", "when", "carrier", "a<b>"] and list(s) == list(f.index) and "temp" in s and len(s) == 5
    df = ds.to_dataframe()
    assert (f["missing"] == df[f.index].isna().sum()).all() and all(f.loc[n, "distinct"] == df[n].nunique() for n in ("hour", "carrier"))
    assert np.isclose(f.loc["temp", "mean"], df.temp.mean()) and np.isclose(f.loc["temp", "std"], df.temp.std(ddof=0))
    assert f.loc["carrier", "top"] == df.carrier.mode()[0] and f.loc["when", "max"] == df.when.max()


def test_as_a_dataset(s):
    x = s.to_xarray()
    assert float(x["value"].sel(column="temp", quantile=0.5)) == s["temp"].quantile(0.5)
    assert float(x["min"].sel(column="when")) == 1356998400.0 and np.isnan(x["mean"].sel(column="carrier"))
    assert x["missing"].sel(column="temp") == s["temp"].missing


def test_as_json(s):
    text = s.to_json()
    assert json.loads(text, parse_constant=pytest.fail), "no NaN or Infinity, which JSON does not know"
    again = Summary.from_json(text)
    assert alike(again, s, rtol=0) and again["a<b>"].max == np.inf and again.to_json() == text
    assert alike(again.merge(s), s.merge(s), rtol=0), "and it can still be merged"


@pytest.mark.parametrize("text", ["", "[]", "{\"a\": {}}", "{\"a\": 1}"])
def test_json_that_is_no_summary(text):
    with pytest.raises(ParameterError, match="no summary"): Summary.from_json(text)


def test_merging_is_summarising_both(ds, s):
    halves = [summarize(ds.isel(row=part)) for part in (slice(0, 3000), slice(3000, None))]
    xr.testing.assert_allclose(halves[0].merge(halves[1]).to_xarray(), s.to_xarray(), rtol=1e-12)
    assert halves[0].merge(summarize(ds[["hour"]].rename(hour="other"))).rows == 10_000


def test_a_column_that_is_not_there(s):
    with pytest.raises(ParameterError, match="Did you mean 'carrier'"): s["carier"]


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
        if tag not in self.void: self.open.append(tag)
    def handle_startendtag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text += data


def test_the_page_is_sound(s):
    html = s._repr_html_()
    page = Page(html)
    assert "10,000 rows, 5 columns" in page.text and "°F" in page.text and "air <temperature>" in page.text and "<b>AA</b>" in page.text and "a<b>" in page.text
    assert not re.search(r"https?:|src=|href=|@import|url\(|<script|background:\s*#|color:\s*(black|white|#000|#fff)", html), "nothing from outside, and no colour of its own for text"
    assert sum(tag == "svg" for tag, _ in page.tags) == 10
    assert max(float(a["height"]) for tag, a in page.tags if tag == "rect") <= 28


def test_the_text_is_short(s): assert repr(s).startswith("Summary of 10,000 rows and 5 columns\n") and len(repr(s).splitlines()) == 7


def test_histograms_hold_all_values(s, ds):
    for name in s:
        h = s[name].histogram
        assert len(h.counts) <= BINS + 1 and h.counts.sum() == s[name].present - s[name].infinite
    h = s["temp"].histogram
    exact, _ = np.histogram(ds.temp.values[~np.isnan(ds.temp)].clip(h.edges[0], h.edges[-1]), h.edges)
    assert np.abs(exact - h.counts).max() < 60, "buckets at the edges of a bar go to one side"


def test_show_and_percent():
    assert [show(x) for x in (1e-7, -3.0, -1234567.8, 1e13, -np.inf, None, np.datetime64("2013-01-01T05:06:07"))] == [
        "1e-07", "-3", "-1,234,568", "1e+13", "−∞", "", "2013-01-01 05:06"]
    assert [percent(x) for x in (1, 0.999, np.nan)] == ["100\N{NO-BREAK SPACE}%", "100\N{NO-BREAK SPACE}%", ""]
