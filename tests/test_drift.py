"""Drift from two summaries against SciPy on the rows, within the bounds that it states."""

import re

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial.distance import jensenshannon

from scalai_nb.compute.laws import alike
from scalai_nb.errors import ParameterError
from scalai_nb.describe.drift import (
    BINS,
    FREQUENT,
    drift,
    js,
    ks,
    ks_error,
    psi,
    wasserstein,
    wasserstein_error,
)
from scalai_nb.describe.summary import Summary, summarize

RNG = np.random.default_rng


def words(*x):
    return np.array(x, dtype=object)


def ds(**columns):
    return xr.Dataset({n: ("row", np.asarray(x)) for n, x in columns.items()})


def one(a, b):
    return drift(ds(x=a), ds(x=b))["x"]


def exact_ks(a, b):
    x = np.union1d(a, b)
    below = [np.searchsorted(np.sort(y), x, "right") / len(y) for y in (a, b)]
    return np.abs(below[0] - below[1]).max()


# ---- numbers ----

FLOATS = arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6))


@settings(deadline=None, database=None)
@given(FLOATS, FLOATS)
def test_few_numbers_are_compared_exactly(a, b):
    f = one(a, b)
    assert np.isclose(f.ks, exact_ks(a, b), atol=1e-12) and f.ks_error == f.wasserstein_error == 0
    assert np.isclose(f.wasserstein, stats.wasserstein_distance(a, b), rtol=1e-9, atol=1e-9)


SHIFTS = {
    "same": lambda r, n: r.normal(0, 1, n),
    "shifted": lambda r, n: r.normal(0.5, 1, n),
    "wider": lambda r, n: r.normal(0, 3, n),
    "far": lambda r, n: r.normal(1e4, 1, n),
    "skewed": lambda r, n: r.lognormal(0, 2, n),
    "zeros": lambda r, n: np.where(r.random(n) < 0.4, 0, r.normal(0, 1, n)),
    "few": lambda r, n: r.integers(0, 5, n).astype(float),
    "tiny": lambda r, n: r.normal(0, 1e-9, n),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_many_numbers_are_within_the_bounds(name):
    a, b = SHIFTS["same"](RNG(0), 30_000), SHIFTS[name](RNG(1), 20_000)
    d = drift(ds(x=a), ds(x=b))
    shares = [s["x"].buckets.counts.max() / s["x"].present for s in (d.reference, d.current)]
    exact, f = stats.ks_2samp(a, b, method="asymp").statistic, d["x"]
    assert f.ks - 1e-12 <= exact <= f.ks + f.ks_error + 1e-12 and (
        f.ks_error <= max(shares) or name == "few"
    )
    assert (
        abs(f.wasserstein - stats.wasserstein_distance(a, b))
        <= f.wasserstein_error
        <= 2**-8 * (np.abs(a).mean() + np.abs(b).mean())
    )


def test_many_numbers_are_within_the_accuracy_that_is_promised():
    "KS within 1e-3 and Wasserstein within 1 %, of data that moved and of data that did not"
    n, r = 200_000, RNG(2)

    def month(d):
        return {
            "normal": r.normal(d, 1, n).astype("f4"),
            "lognormal": r.lognormal(d, 2, n),
            "pressure": r.normal(1013 + 10 * d, 10, n).astype("f4"),
            "gamma": r.gamma(2 + d, 5, n),
            "uniform": r.random(n) * (1 + d),
            "rounded": r.normal(15 + d, 8, n).round(1),
            "id": r.integers(0, int(1e12 * (1 + d)), n),
            "negative": -r.lognormal(3, 1 + d, n),
            "zeros": np.where(r.random(n) < 0.3, 0, r.normal(d, 1, n)),
            "heavy": r.standard_t(3, n) + d,
        }

    then = month(0)
    for d in (0, 0.3):
        found = drift(ds(**then), ds(**(now := month(d))))
        for name, f in found.features.items():
            a, b = (x[name].astype(np.float64) for x in (then, now))
            assert abs(f.ks - exact_ks(a, b)) < 1e-3, name
            assert f.wasserstein == pytest.approx(stats.wasserstein_distance(a, b), rel=0.01), name
            assert f.ks_error < 3e-3, "also where many are zero"


@settings(deadline=None, database=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([6, 40, 300]))
def test_the_bounds_hold_for_the_worst_data(seed, size):
    "Values at the edges of their buckets, in few buckets"
    r = RNG(seed)
    edges = np.sort(r.choice(10_000, 2 * size, replace=False)).reshape(size, 2).astype(float)
    low, high = edges.T
    a, b = (r.integers(1, 200) * r.dirichlet(np.full(size, 0.3)) for _ in range(2))
    m, n = np.rint(a).astype(int), np.rint(b).astype(int)
    m[r.integers(size)] += 1
    n[r.integers(size)] += 1
    x, y = (
        np.repeat(np.where(r.random(size) < r.random(), *pair), counts)
        for pair, counts in (((low, high), m), ((high, low), n))
    )
    exact = exact_ks(x, y)
    assert ks(m, n) - 1e-12 <= exact <= ks(m, n) + ks_error(low, high, m, n) + 1e-12
    assert (
        abs(wasserstein(low, high, m, n) - stats.wasserstein_distance(x, y))
        <= wasserstein_error(low, high, m, n) + 1e-9
    )
    assert ks_error(low, low, m, n) == wasserstein_error(low, low, m, n) == 0


def test_the_bounds_are_reached():
    "All of one at the near end of the bucket, all of the other at the far end"
    low, high, m, n = np.array([1.0]), np.array([3.0]), np.array([5]), np.array([7])
    assert (
        ks(m, n) + ks_error(low, high, m, n) == 1
        and wasserstein(low, high, m, n) + wasserstein_error(low, high, m, n) == 2
    )


def test_the_wasserstein_distance_of_a_shift_is_the_shift():
    a = RNG(0).gamma(2, 5, 50_000)
    assert one(a, a + 3).wasserstein == pytest.approx(3, rel=1e-3) and one(
        a, a - 3
    ).wasserstein == pytest.approx(3, rel=1e-3)


def test_wasserstein_where_the_distribution_functions_cross_within_a_bucket():
    "Difference +1/2 before and -1/2 after a bucket from 1 to 3: two triangles of area 1/4"
    at = np.array([0.0, 1.0]), np.array([0.0, 3.0])
    assert wasserstein(*at, np.array([1, 1]), np.array([0, 2])) == pytest.approx(0.5 + 0.5)
    assert wasserstein(
        np.array([0.0, 1.0, 4.0]),
        np.array([0.0, 3.0, 4.0]),
        np.array([2, 0, 2]),
        np.array([0, 4, 0]),
    ) == pytest.approx(0.5 + 2 * 0.25 + 0.5)


def test_psi_and_js_are_those_of_the_deciles():
    "Few values, so that a bin is known: ten equally frequent numbers"
    a, b = np.repeat(np.arange(10), 100), np.repeat(np.arange(10), np.arange(50, 150, 10))
    m, n = np.full(10, 100), np.arange(50, 150, 10)
    p, q = (m + 0.5) / (m + 0.5).sum(), (n + 0.5) / (n + 0.5).sum()
    f = one(a, b)
    assert f.psi == pytest.approx(np.sum((q - p) * np.log(q / p))) and f.js == pytest.approx(
        jensenshannon(m, n, base=2)
    )


def test_bins_are_about_deciles_of_the_reference():
    from scalai_nb.describe.drift import _bins

    a = summarize(ds(x=RNG(0).lognormal(0, 2, 40_000)))["x"]
    m, n = _bins(a, a)
    assert (
        len(m) == BINS + 1
        and (m == n).all()
        and np.allclose(m[:-1] / 40_000, 0.1, atol=0.002)
        and m[-1] == 0
    )


@pytest.mark.parametrize(("size", "low", "high"), [(1000, 0.0, 0.08), (50_000, 0.0, 0.002)])
def test_psi_of_the_same_world_is_small(size, low, high):
    values = [
        one(RNG(2 * i).normal(size=size), RNG(2 * i + 1).normal(size=size)).psi for i in range(10)
    ]
    assert low < min(values) and max(values) < high


@settings(deadline=None, database=None)
@given(
    arrays(np.int64, 6, elements=st.integers(0, 50)),
    arrays(np.int64, 6, elements=st.integers(0, 50)),
)
def test_the_measures_of_counts(m, n):
    if not m.any() or not n.any():
        return
    assert (
        js(m, n) == pytest.approx(jensenshannon(m, n, base=2), abs=1e-7)
        and 0 <= js(m, n) <= 1 + 1e-12
    )
    assert (
        psi(m, n) >= 0
        and psi(m, m) == 0
        and js(m, m) == 0
        and psi(m, n) == pytest.approx(psi(n, m))
    )
    assert ks(m, n) == pytest.approx(np.abs(np.cumsum(m / m.sum()) - np.cumsum(n / n.sum())).max())


# ---- missing values, infinities, constants ----


def test_a_feature_that_falls_silent_is_an_alarm():
    a = RNG(0).normal(size=1000)
    d = drift(ds(x=a, y=a), ds(x=np.full(1000, np.nan), y=a))
    assert (
        d.alarms() == ["x"]
        and d["x"].missing_change == 1
        and np.isnan(d["x"].ks)
        and np.isnan(d["x"].wasserstein)
    )
    back = drift(ds(x=words(None, None)), ds(x=np.arange(9)))
    assert back.alarms() == ["x"] and back["x"].missing_change == -1, (
        "an all-missing column is comparable with any kind"
    )
    named = drift(ds(x=np.full(3, np.nan)), ds(x=words("a", "b", None)))
    assert named["x"].new_categories == ("a", "b") and named.alarms() == ["x"]


def test_a_change_of_the_missing_share():
    a, b = (
        np.where(np.arange(1000) % 10 == 0, np.nan, 1.0),
        np.where(np.arange(1000) % 2 == 0, np.nan, 1.0),
    )
    f = one(a, b)
    assert f.missing_change == pytest.approx(0.4) and f.psi > 0.2 and f.ks == f.wasserstein == 0


def test_constants():
    f = one(np.full(100, 5.0), np.full(100, 5.0))
    assert (f.psi, f.ks, f.js, f.wasserstein) == (0, 0, 0, 0)
    for now in (6.0, 4.0):
        f = one(np.full(100, 5.0), np.full(100, now))
        assert (
            f.psi > 1
            and f.ks == 1
            and f.js == pytest.approx(1)
            and f.wasserstein == pytest.approx(1)
        )


def test_infinities_count_for_ks_and_not_for_wasserstein():
    f = one(np.array([1.0, 2.0, np.inf, -np.inf]), np.array([1.0, 2.0, np.inf, np.inf]))
    assert f.ks == 0.25 and f.wasserstein == 0
    assert (
        np.isnan(one(np.array([np.inf]), np.array([1.0])).wasserstein)
        and one(np.array([np.inf]), np.array([1.0])).ks == 1
    )


def test_one_row_each():
    assert one([1.0], [1.0]).psi == 0 and one([1.0], [2.0]).ks == 1


# ---- whole numbers that the reference never had ----


@pytest.mark.parametrize("dtype", ["i8", "u1", "f8"])
def test_a_new_whole_number_counts_as_a_new_category_does(dtype):
    "A status that had three codes has a fourth one, be it above, between or below the others"
    for codes in ((10, 20, 30, 40), (10, 20, 40, 30), (20, 30, 40, 10)):
        a, b = np.repeat(codes[:3], [500, 300, 200]), np.repeat(codes, [400, 250, 150, 200])
        f = one(a, b.astype(dtype))
        names = [np.array([f"{code}" for code in x], object) for x in (a, b)]
        m, n = np.array([500, 300, 200, 0]), np.array([400, 250, 150, 200])
        assert f.psi == pytest.approx(psi(m, n)) == one(*names).psi > 0.2
        assert f.js == pytest.approx(jensenshannon(m, n, base=2))
        assert f.new_categories == () and np.isnan(f.new_share)


def test_whole_numbers_that_are_new_by_nature_are_no_alarm():
    r = RNG(3)
    ids = r.permutation(100_000)
    assert one(ids[:3000], ids[3000:6000]).psi < 0.05, "each is new, as each was in the reference"
    assert one(ids[:40_000], ids[40_000:]).psi < 0.02
    for draw in (lambda: r.poisson(3, 2000), lambda: r.geometric(0.01, 2000)):
        assert one(draw(), draw()).psi < 0.05, "a rare value of the tail"
    same = r.integers(0, 10**9, 2000)
    assert one(same, same).psi == 0 and one(same, same[:500]).psi < 0.05
    shifted = one(r.poisson(3, 2000), r.poisson(3, 2000) + 1000)
    assert shifted.psi > 5 and shifted.ks == 1


def test_a_code_that_many_rows_have_shows_among_many_values():
    r = RNG(4)
    a, b = (r.integers(0, 10**7, 20_000) for _ in range(2))
    b[:4000] = -999
    f = one(a, b)
    assert f.psi > 0.8 > 0.2 > one(a, b[4000:]).psi
    html = drift(ds(x=a), ds(x=b))._repr_html_()
    assert "moved" in html


def test_distances_beyond_the_range_of_a_float():
    a, b = np.tile([1.7e308, -1.7e308], 50), np.tile([1.7e308, 0.0], 50)
    assert one(a, a).wasserstein == 0 and one(a, b).wasserstein == pytest.approx(0.85e308)
    assert one(a[:1], a[1:2]).wasserstein == np.inf


# ---- strings, categories and bools ----


def test_categories():
    a, b = (
        np.repeat(words("UA", "AA", "B6"), [500, 300, 200]),
        np.repeat(words("UA", "AA", "VX"), [500, 200, 300]),
    )
    f = one(a, b)
    m, n = np.array([500, 300, 200, 0]), np.array([500, 200, 0, 300])
    assert (
        f.js == pytest.approx(jensenshannon(m, n, base=2))
        and f.psi == pytest.approx(psi(m, n))
        and f.new_categories == ("VX",)
        and f.new_share == 0.3
    )
    assert np.isnan([f.ks, f.ks_error, f.wasserstein_error]).all() and np.isnan(f.wasserstein)
    codes = xr.Dataset(
        {
            "x": (
                "row",
                np.repeat([0, 1, 2], [500, 200, 300]).astype("i1"),
                {"categories": ["UA", "AA", "VX"]},
            )
        }
    )
    assert drift(ds(x=a), codes)["x"] == f or np.isclose(drift(ds(x=a), codes)["x"].psi, f.psi)


def test_rare_values_share_a_bin_and_many_ids_are_no_alarm():
    ids = np.array([f"id{i}" for i in range(20_000)], dtype=object)
    a, b = (np.append(RNG(s).choice(ids, 30_000), np.repeat(words("x", "y"), 2000)) for s in (0, 1))
    f = one(a, b)
    assert f.psi < 0.01, "30 bins, not 20,000 with a row or two each"
    assert one(a, np.append(b[:-2000], np.repeat(words("new"), 2000))).new_categories == ("new",)
    assert FREQUENT == 30


def test_bools():
    f = one(np.arange(100) < 30, np.arange(100) < 60)
    m, n = np.array([70, 30]), np.array([40, 60])
    assert (
        f.psi == pytest.approx(psi(m, n)) and f.ks == pytest.approx(0.3) and f.new_categories == ()
    )
    g = one(np.arange(100) < 30, (np.arange(100) < 60).astype(int))
    assert alike(g, f), "False and True are 0 and 1"


# ---- the report ----


@pytest.fixture(scope="module")
def pair():
    r = RNG(0)

    def month(warm, n):
        return xr.Dataset(
            {
                "temp": ("row", r.normal(40 + warm, 10, n), {"units": "°F"}),
                "wind": ("row", r.gamma(2, 5, n)),
                "a<b": ("row", r.choice(words("x", "<y>"), n)),
                "time": (
                    "row",
                    np.datetime64("2013-01-01", "ns")
                    + warm * np.timedelta64(1, "D")
                    + np.arange(n),
                ),
            }
        )

    return month(0, 3000), month(30, 2000).assign(extra=("row", np.arange(2000))).drop_vars(
        "wind"
    ).assign(gust=("row", np.arange(2000)))


def test_the_report(pair):
    d = drift(*pair)
    assert list(d) == ["temp", "a<b"] and d.lost == ("wind",) and d.added == ("extra", "gust"), (
        "times are left out"
    )
    assert (
        d.alarms() == ["wind", "temp"]
        and d.alarms(psi=1e9) == ["wind"]
        and set(d.alarms(psi=0)) == {"wind", "temp", "a<b"}
    )
    assert (
        list(d.to_frame().index) == ["temp", "a<b"]
        and d.to_frame().loc["temp", "psi"] == d["temp"].psi
    )
    assert "2 above psi 0.2" in repr(d)
    with pytest.raises(ParameterError, match="Did you mean 'temp'"):
        d["temps"]


def test_stored_summaries_give_the_same(pair):
    a, b = (Summary.from_json(summarize(x).to_json()) for x in pair)
    assert drift(a, b).to_frame().equals(drift(*pair).to_frame()) and drift(
        a, pair[1]
    ).to_frame().equals(drift(*pair).to_frame())


def test_the_page_is_sound(pair):
    from test_summary import Page

    html = drift(*pair)._repr_html_()
    page = Page(html)
    assert (
        "2 of 3 columns moved: 3,000 rows then, 2,000 now" in page.text
        and "Lost: wind" in page.text
        and "a<b" in page.text
        and "moved" in page.text
    )
    assert not re.search(r"https?:|src=|href=|@import|url\(|<script", html)


def test_nothing_to_compare_is_an_error():
    for pair, which in (
        ((ds(x=[]), ds(x=[1])), "reference"),
        ((ds(x=[1]), ds(x=[])), "current data"),
    ):
        with pytest.raises(ParameterError, match=f"The {which} has no rows"):
            drift(*pair)


@pytest.mark.parametrize("now", [words("a"), np.array(["2013"], dtype="M8[ns]")])
def test_kinds_that_cannot_be_compared_are_named(now):
    with pytest.raises(
        ParameterError, match="Column 'x' is of kind integer in the reference and (string|time) now"
    ):
        drift(ds(x=[1]), ds(x=now))
