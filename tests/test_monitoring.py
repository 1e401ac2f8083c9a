"""Evidence keeps its promise in every urn, and a change is found, named and dated

`pytest -m campaign -s tests/test_monitoring.py` replays a thousand quiet years."""

from itertools import combinations, product
from math import comb, prod

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from scipy.stats import beta

from scalai_nb.compute.laws import alike
from scalai_nb.describe.cells import cells
from scalai_nb.describe.sketches import Values, _of_counts, float_keys
from scalai_nb.describe.summary import Column, Summary, summarize
from scalai_nb.errors import ParameterError
from scalai_nb.monitoring.detection import LENGTHS, Promise, detect
from scalai_nb.monitoring.evidence import average, cells_alone, evidence
from scalai_nb.words import percent

RNG = np.random.default_rng


def summary(**columns) -> Summary:
    return summarize(xr.Dataset({name: ("row", x) for name, x in columns.items()}))


# --- evidence -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_on_average_over_all_draws_it_is_one_at_most(data):
    urn = data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=4).filter(sum))
    rows = data.draw(st.integers(0, sum(urn)))
    value = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(np.nan))
    values = np.array([data.draw(value) for _ in urn], float)
    draws = [k for k in product(*(range(m + 1) for m in urn)) if sum(k) == rows]
    chance = [prod(map(comb, urn, k)) / comb(sum(urn), rows) for k in draws]
    found = [evidence(np.subtract(urn, k), np.array(k), values)[0] for k in draws]
    assert np.dot(chance, np.exp(found)) <= 1 + 1e-9


def odd_rows(rng, rows: int) -> dict:
    "Values as they are found: heavy tails, few numbers, rare labels, gaps"
    heavy = rng.standard_t(2, rows)
    heavy[rng.random(rows) < 0.1] = np.nan
    few = rng.poisson(0.3, rows)
    rare = np.array([f"k{i}" for i in rng.zipf(1.7, rows).clip(0, 200)])
    zeros = np.where(rng.random(rows) < 0.6, 0.0, rng.lognormal(0, 2, rows))
    return {"heavy": heavy, "few": few, "rare": rare, "zeros": zeros}


def test_the_cells_of_real_columns_keep_the_promise():
    "The mean over random splits of the same rows, by the way that the watcher takes"
    rng, splits = RNG(0), 150
    rows = xr.Dataset({name: ("row", x) for name, x in odd_rows(rng, 400).items()})
    found = {name: [] for name in rows}
    for _ in range(splits):
        order = rng.permutation(400)
        a, b = (summarize(rows.isel(row=part)) for part in (order[:300], order[300:]))
        for name in rows:
            c = cells(a[name], b[name])
            found[name].append(np.exp(evidence(c.reference, c.current, c.values)[0]))
    for name, values in found.items():
        assert np.mean(np.minimum(values, 100)) < 1.3, name


def test_a_cell_says_which_way_it_went():
    alone = cells_alone(np.array([500, 400, 100]), np.array([90, 100, 60]))
    assert alone[2] > 3 and alone[0] <= 0


def test_windows_of_different_cells_are_judged_together_as_alone():
    rng, held = RNG(1), []
    for n in (2, 5, 31):
        sides = rng.poisson(3, (2, n))
        held.append((*sides, np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n))))
    filled = np.zeros((3, 3, 31))
    for i, sides in enumerate(held):
        filled[:, i, : len(sides[0])] = sides
    alone = [evidence(*sides)[0] for sides in held]
    assert evidence(*filled) == pytest.approx(alone, rel=1e-12)
    one_cell = cells_alone(np.array([5, 0]), np.array([3, 0]))
    assert one_cell == pytest.approx([0, 0], abs=1e-9)


# --- detection ------------------------------------------------------------------------------------

FEATURES = 20


def window(rng, rows: int, shift: float = 0.0) -> Summary:
    "Rows of which the first column has moved by so many standard deviations"
    x = rng.normal(size=(FEATURES, rows))
    x[0] += shift
    return summary(**{f"x{i}": column for i, column in enumerate(x)})


GRID = np.arange(-12, 13) / 4
BELL = np.exp(-(GRID**2) / 2)
WORDS = np.array(sorted(f"k{i}" for i in range(28)), dtype=object)
SHAPES = {  # values, each a cell, and their weights; the last weight is that of missing values
    "bell": (GRID, [*BELL, 0]),
    "heavy": (np.exp(GRID), [*BELL, 0]),
    "few": (np.arange(8.0), [0.5, 0.3, 0.1, 0.05, 0.03, 0.01, 0.005, 0.005, 0]),
    "zeros": (np.append(0.0, np.exp(GRID)), [1.5 * BELL.sum(), *BELL, 0]),
    "gaps": (GRID, [*BELL, 0.2 * BELL.sum()]),
    "words": (WORDS, [*(1 + np.arange(28.0)) ** -1.7, 0.01]),
}


def drawn(rng, shape: str, rows: int) -> Column:
    "So many rows of a shape as a column, without the rows: how often each value came is drawn"
    found, weights = SHAPES[shape]
    counts = rng.multinomial(rows, np.array(weights) / np.sum(weights))[:-1]
    found, counts = found[counts > 0], counts[counts > 0]
    if found.dtype == object:
        return Column(
            "string", count=rows, missing=rows - counts.sum(), values=Values(found, counts)
        )
    return Column("number", count=rows, **vars(_of_counts(rows, found, counts, float_keys)))


def shapes(features: int) -> list[str]:
    return [list(SHAPES)[i % len(SHAPES)] for i in range(features)]


def year(rng, features: int, rows: int, windows: int) -> list[float]:
    "The evidence of each window of a year in which nothing happens"

    def quiet(rows):
        return Summary({f"x{i}": drawn(rng, s, rows) for i, s in enumerate(shapes(features))})

    reference, seen, found = quiet(10 * rows), [], []
    for _ in range(windows):
        seen.append(quiet(rows))
        found.append(detect(reference, seen).evidence)
    return found


def counted_year(rng, features: int, rows: int, windows: int) -> list[float]:
    "The same by `evidence` alone, as each value is a cell: a year in a seventh of the time"
    spans = [(w, n) for w in range(windows) for n in LENGTHS if n <= w + 1]
    most = max(len(weights) for _, weights in SHAPES.values())
    counts = np.zeros((1 + windows, features, most))
    values = np.full((features, most), np.nan)
    for size, at in ((10 * rows, 0), *((rows, 1 + w) for w in range(windows))):
        for i, shape in enumerate(shapes(features)):
            found, weights = SHAPES[shape]
            counts[at, i, : len(weights)] = rng.multinomial(size, weights / np.sum(weights))
            if found.dtype != object:
                values[i, : len(found)] = found
    until = counts.cumsum(axis=0)
    current = np.stack([until[w + 1] - until[w + 1 - n] for w, n in spans])
    sides = (np.broadcast_to(x, current.shape) for x in (counts[0], current, values))
    e = evidence(*(x.reshape(-1, most) for x in sides))
    by_window = np.full((windows, len(LENGTHS), features), -np.inf)
    for (w, n), each in zip(spans, e.reshape(-1, features), strict=True):
        by_window[w, LENGTHS.index(n)] = each
    return average(by_window.reshape(windows, -1)).tolist()


def test_a_year_of_counts_is_one_of_windows():
    for rows in (200, 10_000):
        same = [f(RNG(rows), 6, rows, 40) for f in (year, counted_year)]
        assert same[0] == pytest.approx(same[1], abs=1e-9)


def test_a_column_that_is_drawn_is_that_of_its_rows():
    for shape, (values, weights) in SHAPES.items():
        c = drawn(RNG(0), shape, 500)
        counts = RNG(0).multinomial(500, np.array(weights) / np.sum(weights))
        gap = np.array([None if values.dtype == object else np.nan], values.dtype)
        rows = RNG(1).permutation(np.repeat(np.append(values, gap), counts))
        assert alike(c, summary(x=rows)["x"]), shape


def campaign(years: int, features: int, rows: int):
    return pytest.param(
        years, features, rows, marks=[pytest.mark.campaign, pytest.mark.timeout(36_000)]
    )


@pytest.mark.parametrize(
    ("years", "features", "rows"),
    [
        (20, 6, 200),
        campaign(1000, 1, 200),
        campaign(1000, 1, 10_000),
        campaign(1000, 20, 200),
        campaign(1000, 20, 10_000),
    ],
)
def test_a_year_in_which_nothing_happens_has_no_more_alarms_than_promised(years, features, rows):
    windows = 50
    found = np.array([counted_year(RNG(seed), features, rows, windows) for seed in range(years)])
    for false_alarms in (1, 0.05):
        alarms = (found >= Promise(false_alarms, windows).threshold).sum(axis=1)
        noisy = int((alarms > 0).sum())
        most = beta.ppf(0.95, noisy + 1, years - noisy)  # Clopper & Pearson 1934, one-sided
        print(
            f"{features} x {rows}, {false_alarms} a year promised: {alarms.sum()} windows in alarm "
            f"in {years} years, in {noisy} of them (at most {most:.2%}); greatest evidence "
            f"{found.max():.2f}"
        )
        assert alarms.mean() <= false_alarms
        assert years < 1000 or most <= false_alarms


@pytest.mark.parametrize(("shift", "within"), [(0.1, 3), (0.5, 1)])
def test_a_shift_is_found(shift, within):
    rng = RNG(1)
    reference, seen = window(rng, 50_000), [window(rng, 10_000) for _ in range(4)]
    assert not detect(reference, seen).alarm
    for _ in range(within):
        seen.append(window(rng, 10_000, shift))
    found = detect(reference, seen)
    assert found.alarm and found.certain == ("x0",) and found.windows <= 4


FAULTS = {
    "a sensor that is stuck": (lambda x, k: (np.full_like(x, 1.3), k), "x", None),
    "°F for °C": (lambda x, k: (x * 1.8 + 32, k), "x", None),
    "a third is missing": (
        lambda x, k: (np.where(RNG(5).random(len(x)) < 0.3, np.nan, x), k),
        "x",
        "missing ↑",
    ),
    "a category renamed": (lambda x, k: (x, np.where(k == "b", "B", k)), "kind", "B ↑"),
    "a few wild values": (
        lambda x, k: (np.where(RNG(6).random(len(x)) < 0.02, -9999.0, x), k),
        "x",
        "-10000 to -9996 ↑",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_in_a_window_and_named(fault):
    rng = RNG(2)

    def usual(rows):
        return rng.normal(20, 4, rows), rng.choice(["a", "b", "c"], rows), rng.normal(size=rows)

    def described(x, kind, other):
        return summary(x=x, kind=kind, other=other)

    change, column, because = FAULTS[fault]
    x, kind, other = usual(2_000)
    windows = [described(*usual(2_000)) for _ in range(5)]
    found = detect(described(*usual(20_000)), [*windows, described(*change(x, kind), other)])
    assert found.alarm and found.windows == 1 and found.certain == (column,)
    if because:
        assert because in found.columns[column].because()


@pytest.mark.parametrize("codes", [4, 60])
def test_a_whole_number_that_was_never_there_is_found_and_named(codes):
    rng = RNG(8)
    reference = summary(code=rng.integers(0, codes, 20_000))
    usual = [rng.integers(0, codes, 2_000) for _ in range(6)]
    usual[-1][rng.random(2_000) < 0.02] = 99
    found = detect(reference, [summary(code=x) for x in usual])
    assert found.alarm and found.windows == 1
    assert found.columns["code"].because()[-1] == "99 ↑"


def test_what_matters_more_is_heard_earlier():
    rng = RNG(3)
    reference, moved = window(rng, 20_000), window(rng, 2_000, 0.15)
    heavy = detect(reference, [moved], weights={"x0": 0.9, "x1": 0.1})
    light = detect(reference, [moved], weights={"x0": 0.01, "x1": 0.99})
    assert heavy.evidence - light.evidence == pytest.approx(np.log(90), abs=0.1)
    assert heavy.certain == light.certain == ("x0",)


WEIGHT = st.just(0.0) | st.floats(1e-6, 1e3)  # np.average loses what is next to nothing


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_whatever_columns_weigh_the_evidence_is_one_at_most_on_average(data):
    "Over all windows of three rows of seven, whose columns depend on each other as they like"
    column = st.lists(st.integers(0, 2), min_size=7, max_size=7).map(np.array)
    rows = {name: data.draw(column) for name in "ab"}
    weights = data.draw(
        st.fixed_dictionaries({"a": WEIGHT, "b": WEIGHT}).filter(lambda w: any(w.values()))
    )
    found = []
    for drawn in combinations(range(7), 3):
        window = summary(**{name: x[[*drawn]] for name, x in rows.items()})
        reference = summary(**{name: np.delete(x, drawn) for name, x in rows.items()})
        said = detect(reference, [window], weights=weights)
        assert said.heard <= said.evidence + 1e-9
        each = [np.exp(said.columns[name].evidence) for name in weights]
        averaged = np.average(each, weights=[*weights.values()])
        assert np.exp(said.evidence) == pytest.approx(averaged)
        found.append(averaged)
    assert np.mean(found) * len(LENGTHS) <= 1 + 1e-9  # the other lengths have no windows yet


def test_what_weighs_little_may_move_far_and_nobody_is_told():
    rng = RNG(6)
    reference, moved = window(rng, 20_000), window(rng, 2_000, 1.0)
    weights = dict.fromkeys(reference, 1.0)
    assert detect(reference, [moved], weights=weights).alarm
    light = detect(reference, [moved], weights=weights | {"x0": 0.005})
    assert light.evidence > light.threshold and not light.alarm
    assert (light.certain, light.far, light.large) == (("x0",), ("x0",), ())
    assert light.because("x0")[-1] == f"weighs {percent(0.005)}" and light.shares == {}


def test_a_light_column_that_has_moved_lends_no_evidence_to_a_heavy_one():
    "Columns are named more readily than alarms are raised: what is heavy must be enough by itself"
    rng = RNG(7)
    reference = summary(heavy=rng.normal(size=20_000), light=rng.normal(size=20_000))
    moved = summary(heavy=rng.normal(0.1, 1, 2_000), light=rng.normal(3, 1, 2_000))
    found = detect(reference, [moved], weights={"heavy": 1.0, "light": 0.0001})
    assert found.large == ("heavy",) and found.heard < found.threshold < found.evidence
    assert not found.alarm


def test_certain_and_small_is_no_alarm():
    rng = RNG(4)
    reference, moved = window(rng, 200_000), window(rng, 200_000, 0.03)
    assert detect(reference, [moved], large=0).alarm
    found = detect(reference, [moved])
    assert found.certain == ("x0",) and not found.alarm


def test_windows_that_hold_little():
    rng = RNG(5)
    reference = summary(x=rng.normal(size=500), kind=rng.choice(["a", "b"], 500), same=np.ones(500))
    gone = summary(x=np.full(30, np.nan), kind=np.array(["a"] * 30), same=np.ones(30))
    ten = summary(x=rng.normal(size=10), kind=np.array(["a", "b"] * 5), same=np.ones(10))
    none = summary(x=np.empty(0), kind=np.array([], dtype=str), same=np.empty(0))
    assert not detect(reference, [ten]).alarm and not detect(reference, [ten, none]).alarm
    assert "x" in detect(reference, [gone]).certain
    assert detect(reference, [ten]).columns["same"].evidence <= 0
    ends = summary(x=np.array([np.inf, -np.inf, 1e308, -1e308]))
    assert not detect(ends, [ends]).alarm and "x" in detect(reference, [ends, ends]).columns
    empty = summary(x=np.full(5, np.nan))
    assert detect(empty, [empty]).columns["x"].evidence == pytest.approx(-np.log(7))
    other = summary(x=np.array(["a", "b"]), kind=np.array(["a", "b"]), same=np.ones(2))
    with pytest.raises(ParameterError, match="'x' is of kind number in the reference and string"):
        detect(reference, [other])
    with pytest.raises(ParameterError, match="no column of the reference"):
        detect(reference, [summary(y=np.ones(4))])


@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_of_a_standard_deviation_is_found_within_three_windows(seed):
    "Of one of five columns: what is certain there is large enough"
    rng = np.random.default_rng(seed)

    def window(shift: float = 0.0, rows: int = 50_000) -> Summary:
        x = rng.normal(size=(5, rows)) + np.array([[shift], *[[0.0]] * 4])
        return summarize(xr.Dataset({f"x{i}": ("row", part) for i, part in enumerate(x)}))

    reference = window(rows=500_000)
    kept = [window() for _ in range(5)]
    assert not detect(reference, kept).alarm
    found = [detect(reference, kept := [*kept, window(0.1)]) for _ in range(3)]
    assert found[-1].alarm and found[-1].large == ("x0",)
