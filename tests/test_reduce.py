"""The laws of mergeable algorithms over the registry of all, and one reduction at three scales."""

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import cloudpickle
import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from dask import array as da
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra.numpy import arrays

import scalai_nb.evaluation.evaluation
import scalai_nb.describe.summary  # noqa: F401  both register algorithms
from scalai_nb.compute import laws, reduce as module, scatter
from scalai_nb.compute.blocks import Blocks
from scalai_nb.compute.cluster import connect
from scalai_nb.compute.laws import alike, check_mergeable
from scalai_nb.compute.parts import Part
from scalai_nb.compute.reduce import ALGORITHMS, Mergeable, each, on, reduce, together
from scalai_nb.compute.threads import ahead
from scalai_nb.describe.sketches import LIMIT, Values, distinct
from scalai_nb.environment import Environment
from scalai_nb.errors import ContractViolation, ParameterError, WorkFailed
from scalai_nb.evaluation.binary import EVALUATION
from scalai_nb.describe.summary import SUMMARY, Column, summarize

CLOSE = partial(
    alike, rtol=1e-8, atol=1e-5
)  # rounding only: values go up to 1e3 and their squares to 1e6
RNG = np.random.default_rng

# ---- blocks for each algorithm: small ones that shrink, and large ones that pass every limit ----

SIZES = st.integers(0, 12)
REALS = SIZES.flatmap(lambda n: arrays(np.float64, n, elements=st.floats(-1e3, 1e3)))
MANY = st.integers(0, 2**32 - 1).map(
    lambda seed: RNG(seed).normal(0, 200, 3000)
)  # three of them: more than LIMIT distinct values


def table(seed: int, n: int) -> xr.Dataset:
    "A block with a column of each kind, with missing values and infinities"
    r = RNG(seed)
    x = r.normal(0, 100, n).round(1 + seed % 3)
    x[r.random(n) < 0.1] = np.nan
    x[r.random(n) < 0.05] = [np.inf, -np.inf][seed % 2]
    words = np.array([*"abcdef", "", None], dtype=object)
    time = np.datetime64("2013-01-01", "ns") + r.integers(0, 10**14, n).astype("m8[ns]")
    time[r.random(n) < 0.1] = np.datetime64("NaT", "ns")
    return xr.Dataset(
        {
            "number": ("row", x, {"units": "m"}),
            "whole": ("row", r.integers(-9, 10 ** r.integers(1, 7), n)),
            "flag": ("row", r.random(n) < 0.3),
            "time": ("row", time),
            "word": ("row", r.choice(words, n)),
            "id": ("row", np.array([f"id{i}" for i in r.integers(0, 10**6, n)], dtype=object)),
            "code": (
                "row",
                r.integers(-1, 3, n).astype("i1"),
                {"categories": ["low", "middle", "high"]},
            ),
            "empty": ("row", np.full(n, np.nan)),
        }
    )


def scored(seed: int, n: int) -> xr.Dataset:
    "Labels, scores and a slice"
    r = RNG(seed)
    score = r.beta(1, 4, n).round(2 if seed % 2 else 17)
    return xr.Dataset(
        {
            "label": ("row", r.random(n) < score),
            "score": ("row", score),
            "by": ("row", r.choice(np.array(["a", "b", None], dtype=object), n)),
        }
    )


def sized(make, *sizes):
    "A strategy of blocks of one of `sizes`"
    return st.builds(make, st.integers(0, 2**32 - 1), st.sampled_from(sizes))


# ---- results that are inexact are compared within their stated bound ----


def alike_values(a: Values, b: Values) -> bool:
    "Counts differ by at most the slack of both, and that is at most 1/(LIMIT + 1) of all each"
    if not a.slack and not b.slack:
        return alike(a, b)
    x, y = (dict(zip(s.values.tolist(), s.counts.tolist(), strict=True)) for s in (a, b))
    near = all(
        y.get(v, 0) - a.slack <= x.get(v, 0) <= y.get(v, 0) + b.slack for v in x.keys() | y.keys()
    )
    return near and alike(a.registers, b.registers) and distinct(a) == distinct(b)


def alike_summary(a, b) -> bool:
    "Everything but the frequent values beyond the limit is the same"
    same = all(CLOSE(replace(a[n], values=Values()), replace(b[n], values=Values())) for n in a)
    return list(a) == list(b) and same and all(alike_values(a[n].values, b[n].values) for n in a)


def alike_evaluation(a, b) -> bool:
    return (
        CLOSE(a.state, b.state)
        and a.slices.keys() == b.slices.keys()
        and all(CLOSE(a.slices[v].state, b.slices[v].state) for v in a.slices)
    )


CONCAT = partial(xr.concat, dim="row")
CASES = {  # algorithm -> blocks, how they are joined, what is alike
    "moments": (REALS | MANY, np.concatenate, CLOSE),
    "buckets": (REALS | MANY, np.concatenate, alike),
    "values": (
        REALS
        | MANY
        | st.builds(lambda s: RNG(s).integers(0, 5000, 6000), st.integers(0, 2**32 - 1)),
        np.concatenate,
        alike_values,
    ),
    "summary": (sized(table, 0, 1, 7, 2500), CONCAT, alike_summary),
    "evaluation": (sized(scored, 0, 1, 9, 2500, 30_000), CONCAT, alike_evaluation),
}


def test_every_algorithm_has_blocks_to_be_checked_with():
    "Here, or in the tests of its module: they call check_mergeable with the algorithm's name"
    elsewhere = "".join(
        p.read_text()
        for p in Path(__file__).parent.glob("test_*.py")
        if "check_mergeable" in p.read_text()
    )
    assert CASES.keys() <= ALGORITHMS.keys()
    assert not [name for name in ALGORITHMS.keys() - CASES.keys() if f'"{name}"' not in elsewhere]


@pytest.mark.parametrize("name", CASES)
def test_laws(name):
    strategy, concat, same = CASES[name]

    @settings(
        max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(strategy, min_size=3, max_size=3))
    def check(blocks):
        check_mergeable(ALGORITHMS[name], blocks, concat, same)

    check()


def test_laws_beyond_every_limit():
    "Blocks that are sure to have more distinct values than are kept"
    blocks = [table(i, 2500) for i in range(3)]
    check_mergeable(SUMMARY, blocks, CONCAT, alike_summary)
    summary = reduce(SUMMARY, CONCAT(blocks))
    assert (
        all(
            summary[n].values.slack and summary[n].distinct > LIMIT
            for n in ("number", "id", "time")
        )
        and summary["time"].buckets.shift
    )
    blocks = [scored(2 * i, 30_000) for i in range(3)]
    check_mergeable(EVALUATION, blocks, CONCAT, alike_evaluation)


# ---- the checker itself ----


class Forgetful:
    "Loses its number when it is pickled"

    def __init__(self, x):
        self.x = x

    def __reduce__(self):
        return Forgetful, (-1.0,)


def last(s, x):
    return float(x[-1]) if len(x) else s


def grows(s, x):
    s.append(float(np.sum(x)))
    return s


BROKEN = {  # what is wrong -> an algorithm that is
    "empty state changes nothing": Mergeable(
        lambda: 1.0, lambda s, x: s + np.sum(x), lambda a, b: a + b
    ),
    "associative": Mergeable(
        lambda: 0.0,
        lambda s, x: s + np.sum(x),
        lambda a, b: a + b if not a or not b else (a + b) / 2,
    ),
    "commutative": Mergeable(lambda: np.nan, last, lambda a, b: a if np.isnan(b) else b),
    "update after update": Mergeable(lambda: 0.0, lambda s, x: np.sum(x), lambda a, b: a + b),
    "states merged": Mergeable(
        lambda: (0, 0.0),
        lambda s, x: (s[0] + len(x), s[1] + np.sum(x)),
        lambda a, b: (max(a[0], b[0]), a[1] + b[1]),
    ),
    "leave their states untouched": Mergeable(
        list, grows, lambda a, b: (a.extend(b), a)[1], finalize=sum
    ),
    "leaves the block untouched": Mergeable(
        lambda: 0.0, lambda s, x: (x.sort(), x[-1:].fill(9), s + np.sum(x))[2], lambda a, b: a + b
    ),
    "pickle": Mergeable(
        lambda: Forgetful(0.0),
        lambda s, x: Forgetful(s.x + np.sum(x)),
        lambda a, b: Forgetful(a.x + b.x),
        lambda s: s.x,
    ),
    "Arrow": Mergeable(lambda: np.zeros(1), lambda s, x: s + np.sum(x), lambda a, b: a + b),
}


@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_law_is_found(law, monkeypatch):
    if law == "Arrow":
        monkeypatch.setattr(laws, "_through_arrow", lambda x: x + 1)
    blocks = [np.arange(3.0), np.arange(4.0), np.arange(1.0, 6.0)]
    with pytest.raises(AssertionError, match=law):
        check_mergeable(BROKEN[law], blocks, np.concatenate)
    if law == "commutative":
        check_mergeable(replace(BROKEN[law], ordered=True), blocks, np.concatenate)


def test_alike():
    assert alike({"a": [1.0, np.nan], "b": "x"}, {"b": "x", "a": [1.0 + 1e-12, np.nan]})
    assert (
        not alike(1.0, 1.0 + 1e-6)
        and not alike(np.zeros(2), np.zeros(3))
        and not alike([1], [1, 2])
        and not alike({"a": 1}, {"b": 1})
    )
    assert alike(Column(count=1), Column(count=1)) and not alike(Column(count=1), Column(count=2))


# ---- one reduction, three scales ----

ROWS = 5000
LOCAL = Environment(
    name="test", root=None, cluster="local", workers=2, memory=2_000_000_000
)  # beyond 80 % a worker would pause


@pytest.fixture(scope="module")
def client():
    with connect(LOCAL) as client:
        yield client


@pytest.fixture(scope="module")
def ds():
    return table(1, ROWS)


def test_memory_chunks_stream_and_cluster_agree(ds, client, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 300)
    whole = summarize(ds)
    chunked = ds.chunk(row=300)
    assert alike_summary(whole, summarize(chunked))
    assert alike_summary(
        whole, summarize(ds.isel(row=slice(i, i + 700)) for i in range(0, ROWS, 700))
    )
    assert alike(summarize(chunked), summarize(chunked, client), rtol=0), (
        "the same to the last bit, wherever it ran"
    )
    assert alike(summarize(chunked), summarize(client.persist(chunked), client), rtol=0)
    assert alike(whole, summarize(ds, client), rtol=0)


def test_the_number_of_workers_does_not_matter(ds, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 300)
    chunked = ds.chunk(row=300)
    with dask.config.set(num_workers=1):
        one = summarize(chunked)
    with dask.config.set(num_workers=7):
        assert alike(one, summarize(chunked), rtol=0)


def test_lazy_data_without_dask_is_read_block_by_block(ds, tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    monkeypatch.setattr(module, "BLOCK", 999)
    numbers = ds[["number", "whole"]]
    numbers.to_zarr(tmp_path / "z", zarr_format=2)
    lazy = xr.open_zarr(tmp_path / "z", chunks=None)
    assert not lazy.chunks and alike_summary(summarize(lazy), summarize(numbers))


def test_tasks_are_few_and_of_all_columns():
    wide = xr.Dataset({f"x{i}": ("row", da.zeros(2000, chunks=10)) for i in range(5)})
    parts = Part.of(Blocks.of(wide, rows=10))
    graph = scatter.task_tree(SUMMARY, [scatter.task(SUMMARY, part) for part in parts]).dask
    assert len(graph) == 100 + 13 + 2 + 1, (
        "200 blocks of 5 columns: 100 parts of 2 blocks, 13 merges of 8, 2 and 1 of these"
    )


def test_small_chunks_are_joined():
    many = xr.Dataset({"x": ("row", da.arange(1000, chunks=1))})
    assert (
        Blocks.of(many).sizes == [1000]
        and reduce(on("x", ALGORITHMS["moments"]), many).mean == 499.5
    )
    assert (
        Blocks.of(xr.Dataset({"x": ("row", da.zeros(300_000, chunks=100_000))})).sizes
        == [100_000] * 3
    )
    assert Blocks.of(xr.Dataset({"x": ("row", np.zeros(300_000))})).sizes == [
        131_072,
        131_072,
        37_856,
    ]
    assert Blocks.of(xr.Dataset({"x": ("row", da.zeros(5, chunks=((0, 5, 0),)))})).sizes == [5]


def test_a_task_carries_only_its_part():
    ds = xr.Dataset({"x": ("row", np.arange(1e6))}).chunk(row=20_000)
    tasks = [scatter.task(SUMMARY, part) for part in Part.of(Blocks.of(ds, rows=20_000))]
    assert len(tasks) == 50 and all(
        160_000 < len(cloudpickle.dumps(dict(t.dask))) < 320_000 for t in tasks
    )


def test_merges_keep_the_order_of_the_blocks(client, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 3)
    ordered = Mergeable(list, lambda s, x: [*s, int(x[0])], lambda a, b: a + b, ordered=True)
    ds = xr.Dataset({"x": ("row", np.arange(300))})
    for where in (None, client):
        assert reduce(on("x", ordered), ds.chunk(row=3), where) == list(range(0, 300, 3))


def test_several_algorithms_read_each_block_once(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 10)
    reads = []

    def read(x):
        reads.append(len(x))
        return x

    x = da.from_array(np.arange(100.0), chunks=10).map_blocks(read, meta=np.empty(0))
    result = reduce(
        {"a": on("x", ALGORITHMS["moments"]), "b": SUMMARY, "c": each(ALGORITHMS["buckets"])},
        xr.Dataset({"x": ("row", x)}),
    )
    assert reads == [10] * 10
    assert (
        result["a"].mean == result["b"]["x"].mean == 49.5 and result["c"]["x"].counts.sum() == 100
    )


def test_chunks_that_do_not_match_are_aligned():
    ds = xr.Dataset(
        {
            "a": ("row", da.arange(100, chunks=7)),
            "b": ("row", da.arange(100, chunks=30)),
            "c": ("row", np.arange(100)),
        }
    )
    s = summarize(ds)
    assert s["a"].mean == s["b"].mean == s["c"].mean == 49.5


def test_no_rows_and_one_row():
    ds = xr.Dataset({"x": ("row", np.empty(0)), "w": ("row", np.empty(0, object))})
    for empty in (ds, ds.chunk()):
        assert list(summarize(empty)) == ["x", "w"] and summarize(empty).rows == 0
    assert summarize(xr.Dataset({"x": ("row", [7])}))["x"].mean == 7
    assert len(summarize([])) == 0


# ---- what goes wrong is named ----


def boom(x, block_info=None):
    "Fails on the rows from 30 on"
    if len(x) and x[0] == 30:
        raise OSError("disk on fire")
    return x


def test_a_block_that_cannot_be_read_is_named(client, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 10)
    bad = da.arange(100, chunks=10).map_blocks(boom, dtype=int)
    ds = xr.Dataset({"good": ("row", da.zeros(100, chunks=10)), "bad": ("row", bad)})
    for where in (None, client):
        with pytest.raises(
            WorkFailed,
            match=r"Block 3 \(rows 30:40\): column 'bad' cannot be read: OSError: disk on fire",
        ):
            summarize(ds, where)


def test_a_block_that_cannot_be_used_is_named():
    def fail(s, x):
        raise ValueError("no") if x.values[0] == 20 else ContractViolation("broken")

    ds = xr.Dataset({"x": ("row", np.arange(40))})
    with pytest.raises(WorkFailed, match=r"^Block 0: column 'x': ValueError: no$"):
        reduce(on("x", Mergeable(int, fail, max)), [ds.isel(row=slice(20, 30))])
    with pytest.raises(ContractViolation, match=r"^Block 0 \(rows 0:40\): column 'x': broken$"):
        reduce(on("x", Mergeable(int, fail, max)), ds)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.arange(3), "Dataset or an iterable"),
        (xr.DataArray([1.0], dims="row"), "not DataArray"),
        (7, "not int"),
        ([7], "Block 0 is of type int, not"),
        (xr.Dataset({"x": ("time", [1.0])}), "no dimension 'row', only time"),
    ],
)
def test_data_of_the_wrong_kind(data, message):
    with pytest.raises(ParameterError, match=message):
        summarize(data)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_part_that_failed_is_the_one_named(workers, monkeypatch):
    "And no other is begun"
    monkeypatch.setattr(module, "BLOCK", 10)
    begun = []

    def fail(s, x):
        begun.append(x.values[0])
        if x.values[0] >= 500:
            raise ValueError(x.values[0])
        return s

    ds = xr.Dataset({"x": ("row", np.arange(10_000))})
    with (
        dask.config.set(num_workers=workers),
        pytest.raises(WorkFailed, match="column 'x': ValueError: ") as e,
    ):
        reduce(on("x", Mergeable(int, fail, max)), ds)
    assert len(begun) < 60 and "_Halt" not in str(e.value)


def test_columns_are_those_of_the_algorithms(monkeypatch):
    seen = []
    names = replace(Mergeable(int, lambda s, b: seen.append(list(b)) or s, max), columns=("b",))
    ds = xr.Dataset({"a": ("row", [1]), "b": ("row", [2]), "c": ("row", [3])})
    (
        reduce(names, ds),
        reduce({"x": names, "y": on("c", names)}, ds),
        reduce(names, ds, columns=["a"]),
        reduce({"x": names, "y": each(names)}, ds),
    )
    assert seen[0] == ["b"] and seen[1] == ["b", "c"] and ["a"] in seen and ["a", "b", "c"] in seen
    with pytest.raises(ParameterError, match="'d' is not in the columns; known: a, b, c"):
        reduce(on("d", names), ds)


# ---- further passes ----


def centred(reads=None):
    "Squared deviations from the mean, in two passes; `reads` gets the first number of each block"

    def note(block):
        if reads is not None:
            reads.append(int(block.x.values[0]))
        return block.x.values

    def again(s):
        mean = s[1] / s[0]
        return Mergeable(
            float,
            lambda t, b: t + float(((note(b) - mean) ** 2).sum()),
            lambda a, b: a + b,
            columns=("x",),
        )

    return Mergeable(
        lambda: (0, 0.0),
        lambda s, b: (s[0] + b.sizes["row"], s[1] + float(note(b).sum())),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        lambda s: None,
        again=again,
    )


SQUARES = 83_325.0  # of 0 to 99 about their mean


def test_a_further_pass_is_run_where_data_can_be_read_again(client, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    ds = numbers(None)
    blocks = [ds.isel(row=slice(i, i + 20)) for i in range(0, 100, 20)]
    pq.write_table(pa.table({"x": ds.x.values}), tmp_path / "x.parquet", row_group_size=30)
    for data in (ds, ds.chunk(row=7), blocks, tuple(blocks), tmp_path / "x.parquet", Blocks.of(ds)):
        assert reduce(centred(), data) == SQUARES
    assert reduce(centred(), ds.chunk(row=5), client) == SQUARES
    assert (
        reduce(centred(), iter(blocks)) is None and reduce(centred(), (b for b in blocks)) is None
    )


def test_further_passes_of_several_algorithms_share_a_pass(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 10)
    reads, seen = [], []
    ds = numbers(None).assign(y=("row", np.arange(100.0)))
    twice = replace(centred(reads), columns=("x",))
    names = replace(COUNT, update=lambda s, b: seen.append(list(b)) or s + int(b.y.sum()))
    both = {"a": twice, "b": replace(names, columns=("y",)), "c": twice}
    found = reduce(both, ds)
    assert found == {"a": SQUARES, "b": SUM, "c": SQUARES} and list(found) == ["a", "b", "c"]
    assert len(reads) == 40 and len(seen) == 10, "what is done is not done again"
    nested = reduce({"in": together({"a": twice}), "b": names}, ds)
    assert nested == {"in": {"a": SQUARES}, "b": SUM}


def test_a_further_pass_reads_only_what_it_needs():
    widths = []
    ds = numbers(None).assign(y=("row", np.zeros(100)))
    algorithm = centred()
    further = algorithm.again((100, SUM))
    watched = replace(further, update=lambda s, b: widths.append(list(b)) or further.update(s, b))
    assert reduce(replace(algorithm, again=lambda s: watched), ds) == SQUARES
    assert widths == [["x"]]


def test_a_pass_over_passes(monkeypatch):
    "Each may ask for one more, also of one column and of all"
    monkeypatch.setattr(module, "BLOCK", 10)

    def counting(n):
        again = (lambda s: counting(n - 1)) if n else None
        return Mergeable(int, lambda s, x: s + 1, int.__add__, lambda s: (n, s), again=again)

    ds = numbers(None).assign(y=("row", np.zeros(100)))
    assert reduce(on("x", counting(3)), ds) == (0, 10)
    assert reduce(each(counting(2)), ds) == {"x": (0, 10), "y": (0, 10)}
    both = reduce(
        {"a": on("x", counting(1)), "b": each(counting(2)), "c": on("y", counting(0))}, ds
    )
    assert both == {"a": (0, 10), "b": {"x": (0, 10), "y": (0, 10)}, "c": (0, 10)}


def test_progress_is_told_of_each_pass(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 10)
    said = []
    assert reduce(centred(), numbers(None), progress=lambda *x: said.append(x)) == SQUARES
    assert said.count((10, 10)) == 2 and said[0] == said[11] == (0, 10)


@pytest.mark.parametrize("where", ["threads", "cluster"])
def test_an_interrupted_further_pass_keeps_the_first(where, client, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    client, file = client if where == "cluster" else None, tmp_path / "checkpoint"
    (tmp_path / "first").mkdir(), (tmp_path / "second").mkdir()
    first = Flaky(tmp_path / "first", -1, "fail")
    second = Flaky(tmp_path / "second", 50, "fail")
    algorithm = replace(COUNT, update=first, again=lambda s: replace(COUNT, update=second))
    with pytest.raises(WorkFailed, match="OSError: gone"):
        reduce(algorithm, numbers(client), client, checkpoint=file)
    assert file.exists() and len(first.runs()) == 20
    with pytest.raises(ParameterError, match="begun with other data"):
        reduce(algorithm, numbers(client).isel(row=slice(0, 50)), client, checkpoint=file)
    assert reduce(algorithm, numbers(client), client, checkpoint=file) == SUM
    assert not file.exists() and all(len(x) == 1 for x in first.runs().values())
    assert len(second.runs()) == 20


# ---- progress, interruption, loss ----

COUNT = Mergeable(int, lambda s, b: s + int(b.x.sum()), lambda a, b: a + b)
SUM = 4950


def numbers(client):
    ds = xr.Dataset({"x": ("row", np.arange(100))})
    return ds.chunk(row=5) if client else ds


@pytest.mark.parametrize("where", ["threads", "cluster"])
def test_progress_counts_every_block(where, client, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    client, said = client if where == "cluster" else None, []
    assert (
        reduce(
            COUNT, numbers(client), client, progress=lambda done, total: said.append((done, total))
        )
        == SUM
    )
    assert said[-1] == (20, 20) and [d for d, _ in said] == sorted(d for d, _ in said)


def test_progress_of_a_stream_and_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(module, "BLOCK", 5)
    said, ds = [], numbers(None)
    assert (
        reduce(
            COUNT,
            (ds.isel(row=slice(i, i + 2)) for i in range(0, 100, 2)),
            progress=lambda *x: said.append(x),
        )
        == SUM
    )
    assert said[-1] == (50, None)
    assert reduce(COUNT, ds, progress=True) == SUM and reduce(COUNT, ds) == SUM
    assert not capsys.readouterr().out


class Flaky:
    "Counts blocks in a folder; the first time that it sees the number `at`, it fails as `how` says"

    def __init__(self, folder, at, how):
        self.folder, self.at, self.how = folder, at, how

    def __call__(self, s, b):
        first = int(b.x.values[0])
        with open(self.folder / f"block{first}", "a") as f:
            f.write(f"{os.getpid()}\n")
        if first == self.at and not (self.folder / "failed").exists():
            (self.folder / "failed").touch()
            if self.how == "kill":
                time.sleep(0.5), os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt if self.how == "interrupt" else OSError("gone")
        return s + int(b.x.sum())

    def runs(self):
        return {int(p.name[5:]): p.read_text().split() for p in self.folder.glob("block*")}


@pytest.mark.parametrize("where", ["threads", "cluster", "stream"])
def test_an_interrupted_job_goes_on_where_it_was(where, client, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    client, flaky, file = (
        client if where == "cluster" else None,
        Flaky(tmp_path, 70, "fail"),
        tmp_path / "checkpoint",
    )
    algorithm = replace(COUNT, update=flaky)

    def go():
        data = list(Blocks.of(numbers(None), rows=5)) if where == "stream" else numbers(client)
        return reduce(algorithm, data, client, checkpoint=file)

    with dask.config.set(num_workers=1):
        with pytest.raises(WorkFailed, match="OSError: gone"):
            go()
        assert file.exists()
        with pytest.raises(ParameterError, match="begun with other data"):
            reduce(algorithm, numbers(client).isel(row=slice(0, 50)), client, checkpoint=file)
        assert go() == SUM and not file.exists()
    runs = flaky.runs()
    assert len(runs) == 20 and len(runs[70]) == 2 and sum(len(r) for r in runs.values()) < 40, (
        "what was done is not done again"
    )
    assert where == "cluster" or all(len(runs[i]) == 1 for i in range(0, 65, 5))


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "c").write_text("no")
    with pytest.raises(ParameterError, match="is no state, or is damaged"):
        reduce(COUNT, numbers(None), checkpoint=tmp_path / "c")


def test_ctrl_c_keeps_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    algorithm = replace(COUNT, update=Flaky(tmp_path, 50, "interrupt"))
    with dask.config.set(num_workers=1), pytest.raises(KeyboardInterrupt):
        reduce(algorithm, numbers(None), checkpoint=tmp_path / "c")
    assert reduce(algorithm, numbers(None), checkpoint=tmp_path / "c") == SUM


def test_a_lost_worker_costs_its_blocks_and_nothing_else(client, tmp_path):
    flaky = Flaky(tmp_path, 40, "kill")
    blocks = Blocks.of(numbers(client), rows=5)
    assert reduce(replace(COUNT, update=flaky), blocks, client) == SUM
    runs, lost = flaky.runs(), (flaky.runs()[40])[0]
    assert len(runs) == 20 and all(len(r) == 1 or lost in r for r in runs.values())


def test_workers_that_have_all_paused_are_named_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(scatter, "STALLED", 2)
    with dask.config.set({"distributed.worker.memory.pause": 0.01}), connect(LOCAL) as client:
        while not all(
            w["status"] == "paused" for w in client.scheduler_info(n_workers=-1)["workers"].values()
        ):
            time.sleep(0.1)
        with pytest.raises(
            WorkFailed, match=r"All workers \(2\) have paused, as their memory of 2 GB"
        ):
            reduce(COUNT, numbers(client), client)


def test_a_persisted_dataset_needs_its_client(ds, client):
    with pytest.raises(ParameterError, match="pass its client"):
        summarize(client.persist(ds.chunk(row=1000)))


def test_what_is_got_ahead_comes_in_order_and_its_error_where_it_happened():
    def items():
        yield 1
        yield 2
        raise WorkFailed("the third")

    found = []
    with pytest.raises(WorkFailed, match="the third"), ahead(items()) as coming:
        found.extend(coming)
    with ahead(iter([])) as coming:
        assert found == [1, 2] and not [*coming]
