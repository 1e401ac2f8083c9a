"What lake and layout promise: exact content, whole versions, one writer, nothing lost"

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import dask
import dask.array as da
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings, strategies as st

import scalai_nb.data.lake.keyed
from scalai_nb.data.lake import layout
from scalai_nb.data.categories import coded
from scalai_nb.data.lake.lake import Lake, LakeReader
from scalai_nb.data.lake.layout import append_group, chunk_rows, read_group, schema, write_group
from scalai_nb.data.sources import from_frame, to_frame
from scalai_nb.errors import Conflict, DatasetNotFound, LakeError, VersionNotFound
from scalai_nb.files import file_lock

TEMP = {"units": "°F", "long_name": "temperature"}


def table(n: int, start: int = 0) -> xr.Dataset:
    "One column of each kind, `n` rows that say their own number"
    i = np.arange(start, start + n)
    return xr.Dataset(
        {
            "id": ("row", i),
            "temp": ("row", np.where(i % 3 == 0, np.nan, i / 2), TEMP),
            "carrier": ("row", (i % 3 - 1).astype("int8"), {"categories": ["AA", "UA"]}),
            "tailnum": (
                "row",
                np.array([None if k % 4 == 0 else f"N{k}" for k in i], dtype=object),
            ),
            "at": ("row", np.where(i % 5 == 0, np.datetime64("NaT", "ns"), i.astype("M8[ns]"))),
            "late": ("row", i % 2 == 0),
        },
        attrs={"title": "flights"},
    )


def assert_exact(a: xr.Dataset, b: xr.Dataset):
    "Same values, codes, dtypes, dimensions, coordinates, order of columns and attributes"
    a, b = coded(a.compute()), coded(b.compute())
    xr.testing.assert_equal(a, b)
    facts = lambda ds: (
        ds.attrs,
        {n: (str(v.dtype), v.dims, v.attrs) for n, v in ds.variables.items()},
        sorted(ds.coords),
    )
    assert json.dumps(facts(a)) == json.dumps(facts(b))  # as text: NaN is not equal to itself


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake", author="ada")


@pytest.fixture
def tiny(monkeypatch):
    "Chunks of four rows and blocks of one chunk, so that small datasets have many of both"
    monkeypatch.setattr(layout, "CHUNK", 4)
    monkeypatch.setattr(layout, "BLOCK", 1)
    monkeypatch.setattr(layout, "chunk_rows", lambda schema: 4)


# --- content --------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(
    ["\0", "\0\0", "\0a", ""]
)
values = st.recursive(
    text | st.integers(-(2**70), 2**70) | st.floats() | st.booleans(),
    lambda s: st.lists(s, max_size=3) | st.dictionaries(text, s, max_size=2),
    max_leaves=4,
)
attributes = st.dictionaries(
    text.filter(lambda t: t not in ("categories", "ordered", "timezone")), values, max_size=3
)
names = text.filter(lambda t: t not in ("", "row", "y", "x")) | st.sampled_from(
    [".", "..", "a/b", "/", "zarr.json", "c", "km/h", "%2F", "__x"]
)


@st.composite
def variables(draw, n):
    kind = draw(
        st.sampled_from(
            [
                "str",
                "category",
                "M8[s]",
                "M8[us]",
                "M8[ns]",
                "bool",
                *(f"{k}{b}" for k in "iu" for b in (1, 2, 4, 8)),
                "f4",
                "f8",
                "image",
            ]
        )
    )
    many = lambda s: draw(st.lists(s, min_size=n, max_size=n))
    attrs = draw(attributes)
    if kind == "str":
        return "row", np.array([*many(text | st.none()), None], dtype=object)[:-1], attrs
    if kind == "category":
        return (
            "row",
            np.array(many(st.integers(-1, 1)), dtype=draw(st.sampled_from(["i1", "i2", "i4"]))),
            attrs | {"categories": ["\0", "é"], "ordered": 1},
        )
    if kind == "image":
        return (
            ("row", "y", "x"),
            np.array(many(st.integers(-5, 5)), "f4")[:, None, None] * np.ones((2, 3), "f4"),
            attrs,
        )
    if kind == "bool":
        return "row", np.array(many(st.booleans()), dtype=bool), attrs
    if kind[0] == "f":
        return "row", np.array(many(st.floats(width=8 * int(kind[1]))), dtype=kind), attrs
    if kind[0] == "M":
        return (
            "row",
            np.array(
                many(
                    st.integers(-(2**63), 2**63 - 1)
                    if kind == "M8[ns]"
                    else st.integers(-(2**40), 2**40)
                ),
                "i8",
            ).view(kind),
            attrs,
        )
    info = np.iinfo(kind)
    return "row", np.array(many(st.integers(int(info.min), int(info.max))), dtype=kind), attrs


@st.composite
def datasets(draw):
    n = draw(st.integers(0, 9))
    columns = draw(st.dictionaries(names, variables(n), min_size=1, max_size=4))
    ds = xr.Dataset(columns, attrs=draw(attributes))
    if "y" in ds.dims and draw(st.booleans()):
        ds = ds.assign_coords(
            y=[10.0, 20.0], grid=(("y", "x"), np.arange(6).reshape(2, 3)), scalar=5
        )
    return ds.set_coords(draw(st.lists(st.sampled_from(list(columns)), max_size=1)))


@given(datasets(), st.sampled_from([None, 1, 3, 7]))
@settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_dataset_comes_back_exactly(tiny, ds, chunk):
    group = zarr.group()
    write_group(group, ds if chunk is None else ds.chunk(row=chunk))
    back = read_group(lambda: group, "t")
    assert all(
        isinstance(v.data, da.Array) for n, v in back.variables.items() if n not in back.indexes
    )
    assert_exact(back, ds)


@given(datasets(), st.integers(0, 9), st.sampled_from([None, 1, 3]))
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_appending_the_rest_gives_the_whole(tiny, ds, cut, chunk):
    group = zarr.group()
    write_group(group, ds.isel(row=slice(0, cut)))
    rest = ds.isel(row=slice(cut, None))
    append_group(group, rest if chunk is None else rest.chunk(row=chunk))
    assert_exact(read_group(lambda: group, "t"), ds)
    assert_exact(
        read_group(lambda: group, "t", rows=(cut // 2, cut + 2)),
        ds.isel(row=slice(cut // 2, cut + 2)),
    )


def test_a_dataset_comes_back_exactly_from_disk(lake, tiny):
    ds = (
        table(30)
        .assign_coords(y=[1.0, 2.0])
        .assign(image=(("row", "y", "x"), np.arange(180, dtype="f4").reshape(30, 2, 3)))
    )
    lake.write("flights", ds.chunk(row=7))
    assert_exact(Lake(lake.path).read("flights"), ds)
    lake.append("flights", ds)
    both = lake.read("flights")
    assert_exact(both.isel(row=slice(0, 30)), ds)
    assert_exact(both.isel(row=slice(30, None)), ds)


def test_fixed_width_strings_become_strings(lake):
    lake.write("a", xr.Dataset({"s": ("row", np.array(["ab", "c"]))}))
    assert lake.read("a").s.compute().dtype == object and lake.read("a").s.values.tolist() == [
        "ab",
        "c",
    ]


def test_numpy_attributes_become_json(lake):
    lake.write("a", table(1).assign_attrs(n=np.int64(3), bounds=np.array([1.0, 2.0]), pair=(1, 2)))
    attrs = lake.read("a").attrs
    assert (attrs["n"], attrs["bounds"], attrs["pair"]) == (3, [1.0, 2.0], [1, 2])


@pytest.mark.parametrize(
    "ds, says",
    [
        (xr.Dataset({"x": ("time", [1])}), "one must be 'row'"),
        (xr.Dataset({"x": (("y", "row"), [[1]])}), "'row' must be the first"),
        (xr.Dataset({"x": ("row", [1j])}), "'x' holds complex128"),
        (xr.Dataset({1: ("row", [1])}), "A column is named 1"),
        (
            xr.Dataset({"x": ("row", np.array(["a", 1], dtype=object))}),
            "A column of strings holds 1",
        ),
        (
            xr.Dataset({"x": ("row", np.array([0], "uint8"), {"categories": ["a"]})}),
            "'x' holds codes of dtype uint8",
        ),
        (
            xr.Dataset({"x": ("row", [1], {"when": datetime(2020, 1, 1)})}),
            "Attribute 'when' of 'x' is datetime",
        ),
    ],
)
def test_what_cannot_be_stored_is_refused(lake, ds, says):
    lake.write("a", table(2))
    with pytest.raises((LakeError, ValueError), match=says):
        lake.write("a", ds)
    assert_exact(lake.read("a"), table(2))


def test_frames_are_written_and_appended(lake):
    "DataFrames of pandas and Polars, an Arrow table, arrays of pandas in a Dataset; times in UTC"
    at = pd.date_range("2024-03-31", periods=4, freq="h", tz="Europe/Berlin")
    sky = pd.Categorical(["rain", None, "sun", "rain"])
    df = pd.DataFrame({"at": at, "sky": sky, "x": [1.0, 2, 3, 4]})
    kept = xr.Dataset({n: ("row", df[n].array) for n in df})
    good = from_frame(df)
    for data in (df, pl.from_pandas(df), pa.Table.from_pandas(df), kept):
        lake.write("a", data)
        lake.append("a", data)
        ds = lake.read("a").compute()
        assert ds.isel(row=slice(4)).equals(good) and ds.isel(row=slice(4, None)).equals(good)
        assert ds["at"].attrs["timezone"] == "Europe/Berlin"
        assert ds["at"].values[0] == np.datetime64("2024-03-30T23:00")
        assert to_frame(ds).sky.tolist()[::2] == ["rain", "sun"] * 2
    with pytest.raises(ValueError, match="The data are of type list; accepted: an xarray.Dataset"):
        lake.write("a", [1, 2])


def test_a_write_replaces_all_columns(lake):
    lake.write("a", table(5))
    lake.write("a", xr.Dataset({"other": ("row", [1])}))
    assert list(lake.read("a")) == ["other"]


def test_a_dataset_can_be_derived_from_itself(lake, tiny):
    lake.write("a", table(20))
    lake.write("a", lake.read("a").isel(row=slice(0, 20, 2)))
    assert_exact(lake.read("a"), table(20).isel(row=slice(0, 20, 2)))


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 9), st.integers(1, 13))
@settings(deadline=None, max_examples=60)
def test_rows_are_written_in_whole_chunks(n, first, rows, dask_chunk):
    ds = xr.Dataset({"x": ("row", np.arange(n))})
    for given_as in (ds, ds.chunk(row=dask_chunk)):
        parts = [len(p["x"]) for p in layout._rechunk(given_as, first, rows)]
        assert sum(parts) == n and all(
            size == (rows if k else first) for k, size in enumerate(parts[:-1])
        )


# --- reading only what is asked for ---------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch):
    "Record (column, first row, end) of every load"
    seen, load = [], layout._Stored.__getitem__

    def recorded(self, key):
        seen.append((self.name, key[0].start + self.start, key[0].stop + self.start))
        return load(self, key)

    monkeypatch.setattr(layout._Stored, "__getitem__", recorded)
    return seen


def test_columns_and_rows_are_pushed_down(lake, tiny, loads):
    lake.write("a", table(40))
    assert_exact(
        lake.read("a", columns=["temp", "at"], rows=(10, 17)),
        table(40)[["temp", "at"]].isel(row=slice(10, 17)),
    )
    assert sorted(loads) == sorted(
        (c, *r) for c in ("temp", "at") for r in ((10, 12), (12, 16), (16, 17))
    )
    loads.clear()
    lake.read("a").temp.isel(row=slice(0, 3)).compute()
    assert loads == [("temp", 0, 3)] or loads == [("temp", 0, 4)]


@pytest.mark.parametrize(
    "rows",
    [
        (3, 9),
        slice(3, 9),
        slice(None, 5),
        slice(-3, None),
        (9, 3),
        (0, 100),
        slice(40, 50),
        slice(0, 0),
    ],
)
def test_rows(lake, tiny, rows):
    lake.write("a", table(12))
    expected = table(12).isel(row=rows if isinstance(rows, slice) else slice(*rows))
    assert_exact(lake.read("a", rows=rows), expected)


def test_wrong_columns_and_rows(lake):
    lake.write("a", table(3))
    with pytest.raises(
        LakeError, match="'tmep' is not in the columns; known: at, .* Did you mean 'temp'"
    ):
        lake.read("a", columns=["tmep"])
    with pytest.raises(LakeError, match="has a step"):
        lake.read("a", rows=slice(0, 3, 2))


def test_the_graph_is_one_task_a_block(lake, tiny):
    lake.write("a", xr.Dataset({f"c{i}": ("row", np.arange(40.0)) for i in range(20)}))
    ds = lake.read("a")
    total = da.blockwise(
        lambda *c: sum(c),
        "i",
        *(x for c in ds for x in (ds[c].data, "i")),
        dtype=float,
        meta=np.zeros(0),
    )
    assert total.npartitions == 10 and len(dict(dask.optimize(total)[0].__dask_graph__())) == 10
    np.testing.assert_array_equal(total, np.arange(40.0) * 20)


def test_small_chunks_are_read_together(lake):
    big = layout.SMALL // 8
    lake.write("a", xr.Dataset({"x": ("row", np.arange(10))}))
    lake.append("a", xr.Dataset({"x": ("row", np.arange(3 * big))}))
    assert lake.read("a").x.data.npartitions == 1


def test_chunks_are_bounded_in_bytes():
    for n in (1, 10**4, 10**9):
        for width in (1, 30, 10**4, 10**7):
            plan = {
                "sizes": {"row": n, "k": width},
                "columns": {"x": {"dims": ["row", "k"], "dtype": "float64"}},
            }
            rows = chunk_rows(plan)
            assert rows == 1 or rows * width * 8 <= layout.BLOCK
            assert 1 <= rows <= layout.CHUNK


def test_memory_is_bounded_by_the_block(tmp_path):
    "800 MB of lazy columns are written and read in a process that grows by less than half of that"
    script = """
import sys, dask.array as da, numpy as np, psutil, xarray as xr
from scalai_nb.data.lake.lake import Lake
from scalai_nb.bench.compare import resident
ds = lambda n: xr.Dataset({f"c{i}": ("row", da.arange(n, chunks=500_000, dtype="f8") * i) \
for i in range(10)})
lake = Lake(sys.argv[1])
lake.write("warm", ds(10))
lake.read("warm").compute()
before = resident("VmHWM")  # ru_maxrss is that of who started this process, too
lake.write("a", ds(10_000_000))
assert float(lake.read("a").c9.sum()) == 9 * (10_000_000 - 1) * 10_000_000 / 2
print((resident("VmHWM") - before) / 1e6)
"""
    grown = float(run(script, tmp_path / "lake").stdout)
    assert grown < 400


def test_a_version_travels_between_processes(lake, tiny):
    import pickle

    lake.write("a", table(10))
    ds = pickle.loads(pickle.dumps(lake.read("a")))
    assert_exact(ds, table(10))


# --- appending ------------------------------------------------------------------------------------


def test_new_categories_are_added_at_the_end(lake, tiny):
    lake.write("a", table(6))
    more = table(6, 6).assign(
        carrier=("row", np.int16([0, 1, 2, -1, 0, 1]), {"categories": ["VX", "AA", "B6"]})
    )
    lake.append("a", more.chunk(row=4))
    column = coded(lake.read("a").carrier.compute())
    assert column.attrs["categories"] == ["AA", "UA", "VX", "B6"] and column.dtype == "int8"
    assert column[6:].values.tolist() == [2, 0, 3, -1, 2, 0] and column[:6].equals(table(6).carrier)


def test_codes_grow_wider_when_they_must(lake, tiny):
    few = [f"c{i}" for i in range(100)]
    many = [f"c{i}" for i in range(50, 300)]
    lake.write(
        "a",
        xr.Dataset(
            {"k": ("row", np.int8([-1, 99, 0]), {"categories": few}), "n": ("row", [1, 2, 3])}
        ),
    )
    lake.append(
        "a",
        xr.Dataset(
            {"k": ("row", np.int16([249, -1, 0]), {"categories": many}), "n": ("row", [4, 5, 6])}
        ),
    )
    column = lake.read("a").k.compute()
    assert coded(column).dtype == "int16"
    assert column.fillna("").values.tolist() == ["", "c99", "c0", "c299", "", "c50"]


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda ds: ds.drop_vars("temp"), "'temp' is stored and is missing"),
        (lambda ds: ds.assign(gust=ds.temp), "'gust' is appended and is not stored"),
        (
            lambda ds: ds.assign(id=ds.id.astype("int32")),
            "'id' is stored with type 'int64' and appended with 'int32'",
        ),
        (lambda ds: ds.assign(tailnum=ds.id), "'tailnum' is stored with type 'string'"),
        (
            lambda ds: ds.assign(temp=ds.temp.assign_attrs(units="K")),
            "'temp' is stored with units '°F' and appended with 'K'",
        ),
        (
            lambda ds: ds.assign(at=ds["at"].astype("M8[s]")),
            r"'at' is stored with type 'datetime64\[ns\]'",
        ),
        (
            lambda ds: ds.drop_vars(["pixel", "x"]).assign(pixel=(("row", "x"), np.zeros((2, 3)))),
            "sizes {'x': 2} and appended with {'x': 3}",
        ),
        (lambda ds: ds.assign_coords(x=[0, 2]), "'x' is not over 'row' and differs"),
        (
            lambda ds: ds.assign(
                size=("row", np.int8([0, 0]), {"categories": ["L", "XL"], "ordered": 1})
            ),
            "'size' has ordered categories",
        ),
    ],
)
def test_rows_of_another_kind_are_refused(lake, change, says):
    ds = (
        table(2)
        .assign(
            pixel=(("row", "x"), np.zeros((2, 2))),
            size=("row", np.int8([0, 1]), {"categories": ["S", "L"], "ordered": 1}),
        )
        .assign_coords(x=[0, 1])
    )
    before = lake.write("a", ds)
    with pytest.raises(LakeError, match=says):
        lake.append("a", change(ds))
    assert lake.log("a") == [before]
    lake.append("a", ds)
    assert_exact(lake.read("a", rows=(2, 4)), ds)


# --- versions -------------------------------------------------------------------------------------


def test_a_version_says_who_what_and_when(lake, monkeypatch):
    start = datetime.now(UTC)
    first = lake.write("a", table(3), "first")
    monkeypatch.setenv("SCALAI_USER", "bob")
    second = Lake(lake.path).append("a", table(2))
    assert (first.rows, first.message, first.author, first.parent, first.tags) == (
        3,
        "first",
        "ada",
        None,
        (),
    )
    assert (second.rows, second.message, second.author, second.parent) == (
        5,
        "5 rows",
        "bob",
        first.id,
    )
    assert start <= first.time <= second.time <= datetime.now(UTC)
    assert lake.log("a") == [second, first]
    monkeypatch.delenv("SCALAI_USER")
    import getpass

    assert Lake(lake.path).author == getpass.getuser()


def test_every_kind_of_reference(lake):
    first, second = lake.write("a", table(1)), lake.write("a", table(2))
    assert lake.tag("a", "v1", first) == lake.version("a", first) and lake.version(
        "a", "v1"
    ).tags == ("v1",)
    lake.branch("a", "side", "v1")
    for ref in (first.id, first.id[:6], first, "v1", "side"):
        assert lake.version("a", ref).id == first.id
        assert lake.read("a", ref).sizes["row"] == 1
    for name in ("a@v1", f"a@{first.id[:8]}", "a@side"):
        assert (
            lake.version(name).id == first.id
            and lake.read(name).sizes["row"] == 1
            and [v.id for v in lake.log(name)] == [first.id]
        )
    for ref in (None, "main", second.id):
        assert lake.version("a", ref).id == second.id
    assert [v.tags for v in lake.log("a")] == [(), ("v1",)]


def test_wrong_references(lake):
    version = lake.write("a", table(1))
    lake.tag("a", "v1")
    for ref in ("v2", "ABCDEF", "0" * 20, version.id[:5], "'"):
        with pytest.raises(VersionNotFound, match="known: main, v1"):
            lake.read("a", ref)
    with pytest.raises(VersionNotFound, match="Did you mean 'v1'"):
        lake.read("a@v11")
    with pytest.raises(LakeError, match="give one of the two"):
        lake.read("a@v1", "main")
    with pytest.raises(DatasetNotFound, match="'b' is not in the lake .*; known: a"):
        lake.read("b")
    for verb in (lake.append, lake.tag, lake.branch, lake.publish, lake.drop, lake.restore):
        with pytest.raises(DatasetNotFound):
            verb("b", "x")
    assert not (lake.path / "b").exists()


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "a/b", ".a", "-a", "ä", "a@b"])
def test_names_that_cannot_be(lake, name):
    with pytest.raises(LakeError, match="cannot name a dataset; accepted: lower-case"):
        lake.write(name, table(1))


def test_names_lists_what_can_be_read(lake):
    assert lake.names() == []
    for name in ("b", "a", "2.x_y-z"):
        lake.write(name, table(1))
    lake.write("hidden", table(1), branch="side")
    (lake.path / "folder").mkdir()
    (lake.path / "file").touch()
    assert lake.names() == ["2.x_y-z", "a", "b"]


def test_tags_and_branches_keep_their_names(lake):
    lake.write("a", table(1))
    lake.tag("a", "v1")
    lake.branch("a", "side")
    for verb in (lake.tag, lake.branch):
        for taken in ("v1", "side", "main"):
            with pytest.raises(LakeError, match="is a tag or branch of 'a' already"):
                verb("a", taken)
        with pytest.raises(LakeError, match="cannot name a tag or branch"):
            verb("a", "x/y")
    with pytest.raises(LakeError, match="is a tag or branch"):
        lake.write("a", table(2), branch="v1")


def test_restore_loses_no_history(lake, tiny):
    first = lake.write("a", table(9), "good")
    lake.write("a", table(2).drop_vars("temp"), "bad")
    back = lake.restore("a", first)
    assert_exact(lake.read("a"), table(9))
    assert [v.message for v in lake.log("a")] == [
        f"restore {first.id[:6]}: good",
        "bad",
        "good",
    ] and lake.log("a")[0] == back


def test_a_log_with_a_limit_looks_at_nothing_that_it_does_not_show(lake, tiny):
    first, *later = [lake.write("a", table(n)) for n in (1, 2, 3)]
    assert lake.log("a", limit=9) == [*reversed(later), first]
    assert lake.log("a", later[0], limit=1) == later[:1]
    with pytest.raises(LakeError, match="limit is 0; accepted: a number from 1"):
        lake.log("a", limit=0)
    (lake.path / "a/snapshots" / first.id).write_bytes(b"damaged")
    assert lake.log("a", limit=2) == later[::-1]
    with pytest.raises(LakeError, match="is damaged"):
        lake.log("a")


# --- state ----------------------------------------------------------------------------------------


def test_a_state_is_committed_with_its_rows(lake, tiny):
    first = lake.write("a", table(3), state={"topic": {"0": 2**70}, "file": "x.csv"})
    second = lake.append("a", table(2, 3))
    lake.append("a", table(0), state={"topic": {"0": 7}})  # no rows, and a version all the same
    lake.append("a", table(0), state={"topic": {"0": 7}})  # neither
    lake.write("a", table(1), state={"file": None}, branch="b")
    assert [v.rows for v in lake.log("a")] == [5, 5, 3]
    assert lake.state("a", first) == lake.state("a", second)
    assert lake.state("a", first) == {"topic": {"0": 2**70}, "file": "x.csv"}
    assert lake.state("a") == {"topic": {"0": 7}, "file": "x.csv"}
    assert lake.state("a@b") == {"topic": {"0": 7}}
    lake.restore("a", first)
    assert lake.state("a") == lake.state("a", first) and not lake.verify("a")
    assert_exact(lake.read("a"), table(3))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ([("a", 1)], "is list; accepted: a dict"),
        ({"a": np.float64("nan")}, "finite numbers"),
        ({"at": datetime(2026, 1, 1)}, "datetime is not JSON"),
        ({"a": "x" * 70_000}, "accepted: 65,536. Write what is large as a dataset"),
        ({"dsn": "postgres://u:hunter2@h"}, "a secret of this run"),
    ],
)
def test_a_state_that_cannot_be(lake, state, says, monkeypatch):
    monkeypatch.setenv("PASSWORD", "hunter2")
    monkeypatch.setenv("SCALAI_SECRETS", "PASSWORD")
    lake.write("a", table(3))
    with pytest.raises(LakeError, match=says) as e:
        lake.append("a", table(2), state=state)
    assert "hunter2" not in str(e.value) and [v.rows for v in lake.log("a")] == [3]


# --- keys -----------------------------------------------------------------------------------------


def keyed(ids, value: str) -> xr.Dataset:
    "Rows with a key of each kind that says `ids`"
    names = sorted({f"k{i}" for i in ids})
    code = [names.index(f"k{i}") for i in ids]
    return xr.Dataset(
        {
            "id": ("row", np.array(ids, np.int64)),
            "text": ("row", np.array([f"\0{i}" for i in ids], object)),
            "kind": ("row", np.array(code, "int8"), {"categories": names}),
            "at": ("row", np.array(ids, "M8[ns]")),
            "value": ("row", np.array([f"{value}{i}" for i in ids], object)),
            "grid": (("row", "cell"), np.outer(ids, [1.0, np.nan])),
        }
    )


@settings(deadline=None, max_examples=5, suppress_health_check=[*HealthCheck])
@given(
    st.lists(st.integers(0, 30), unique=True),
    st.lists(st.integers(0, 30)),
    st.sampled_from(["id", "text", "kind", "at", ("id", "text")]),
    st.integers(1, 5),
)
def test_a_key_counts_once(tmp_path_factory, stored, given, key, chunk):
    lake = Lake(tmp_path_factory.mktemp("lake"))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(layout, "chunk_rows", lambda schema: 4)
        m.setattr(scalai_nb.data.lake.keyed, "CHUNK", 3)
        rows = keyed(given, "new").assign(n=("row", np.arange(len(given))))
        lake.write("a", keyed(stored, "old").assign(n=("row", np.full(len(stored), -1))))
        lazy = rows.chunk(row=chunk)
        lake.append("a", lazy, dedup=key)
        appended = lake.read("a").compute()
        lake.restore("a", lake.log("a")[-1])
        lake.upsert("a", lazy, key)
        merged = coded(lake.read("a").compute())
    first = dict.fromkeys(stored, -1) | {i: given.index(i) for i in given if i not in stored}
    assert dict(zip(appended.id.values.tolist(), appended.n.values.tolist(), strict=True)) == first
    last = dict.fromkeys(stored, -1) | {i: n for n, i in enumerate(given)}
    assert dict(zip(merged.id.values.tolist(), merged.n.values.tolist(), strict=True)) == last
    assert merged.id.values.tolist()[: len(stored)] == stored
    expected = [f"{'old' if last[i] < 0 else 'new'}{i}" for i in merged.id.values.tolist()]
    assert merged.value.values.tolist() == expected
    assert [merged.kind.attrs["categories"][c] for c in merged.kind.values] == [
        f"k{i}" for i in merged.id.values
    ]
    np.testing.assert_array_equal(merged.grid.values[:, 0], merged.id.values)
    assert not lake.verify("a")


@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        ("idd", {}, "Did you mean 'id'"),
        ((), {}, "names no column"),
        ("grid", {}, "cannot be a key; accepted: integers"),
        ("id", {"id": ("row", [1.0, 2.0])}, "stored with type 'int64' and given with 'float64'"),
        ("text", {"text": ("row", np.array(["a", None], object))}, "1 have no 'text'"),
        ("kind", {"kind": ("row", [-1, -1], {"categories": ["k1"]})}, "2 have no 'kind'"),
        ("at", {"at": ("row", np.array(["NaT", 1], "M8[ns]"))}, "1 have no 'at'"),
        ("value", {"value": ("row", ["same", "x"])}, "Several stored rows have one key"),
    ],
)
def test_a_key_that_cannot_be(lake, key, change, says):
    lake.write("a", keyed([1, 2], "").assign(value=("row", ["same", "same"])))
    with pytest.raises(LakeError, match=says):
        lake.upsert("a", keyed([1, 7], "new").assign(change), key)
    assert len(lake.log("a")) == 1 and not lake.verify("a")
    with pytest.raises(DatasetNotFound):
        lake.upsert("b", keyed([1], ""), "id")


def test_diff(lake):
    lake.write("a", table(3))
    lake.write(
        "a",
        table(4)
        .drop_vars("late")
        .assign(id=table(4).id.astype("f4"), gust=table(4).temp.assign_attrs(units="K"))
        .assign_attrs(title="new"),
    )
    first = lake.log("a")[-1]
    d = lake.diff("a", first)
    assert d.columns == {
        "id": ("int64", "float32"),
        "late": ("bool", None),
        "gust": (None, "float64"),
    }
    assert (
        d.attrs["title"] == ("flights", "new")
        and d.attrs["gust.units"] == (None, "K")
        and "temp.units" not in d.attrs
    )
    lines = str(d).splitlines()
    assert lines[0].endswith("3 -> 4 rows") and {
        "  ~ id int64 -> float32",
        "  - late bool",
        "  + gust float64",
    } <= set(lines)
    same = lake.diff("a", first, first)
    assert not same.columns and not same.attrs
    lake.write("a", table(1).assign_attrs(title="<b>"))
    assert "&lt;b&gt;" in lake.diff("a", first)._repr_html_()


def test_publish(lake):
    lake.write("a", table(1))
    lake.write("a", table(2), branch="run")
    tip = lake.append("a", table(1), branch="run")
    assert lake.version("a").rows == 1
    assert lake.publish("a", "run").id == tip.id == lake.version("a").id
    assert [v.rows for v in lake.log("a")] == [3, 2, 1]
    with pytest.raises(VersionNotFound):
        lake.version("a", "run")


def test_publish_compares_and_sets(lake):
    lake.write("a", table(1))
    lake.write("a", table(2), branch="run")
    other = lake.write("a", table(3), "theirs")
    with pytest.raises(
        Conflict, match=f"moved to {other.id[:6]} .'theirs' by ada.*nothing was published"
    ):
        lake.publish("a", "run")
    assert lake.version("a") == other and lake.version("a", "run").rows == 2
    lake.drop("a", "run")
    with pytest.raises(VersionNotFound):
        lake.version("a", "run")


def test_the_first_write_may_be_on_a_branch(lake):
    lake.write("a", table(2), branch="one")
    lake.write("a", table(3), branch="two")
    for look in (lake.read, lake.version, lake.log, lambda name: lake.append(name, table(1))):
        with pytest.raises(DatasetNotFound, match="'a' has nothing on 'main' yet"):
            look("a")
    assert lake.names() == [] and lake.version("a", "one").parent is None
    lake.publish("a", "one")
    assert lake.version("a").rows == 2
    with pytest.raises(Conflict):
        lake.publish("a", "two")


def test_main_is_not_a_run_s_branch(lake):
    lake.write("a", table(1))
    for verb in (lake.publish, lake.drop):
        with pytest.raises(VersionNotFound, match="the branches of 'a' beside main; known: none"):
            verb("a", "main")


def test_an_empty_dataset_is_a_version_and_an_empty_append_is_none(lake):
    for _ in range(2):
        last = lake.write("a", table(0))
    assert lake.append("a", table(0)) == last
    assert [v.rows for v in lake.log("a")] == [0, 0]
    assert_exact(lake.read("a"), table(0))
    lake.append("a", table(5))
    assert_exact(lake.read("a"), table(5))


# --- what the disk refuses ------------------------------------------------------------------------


def test_a_lake_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "lake", "/proc/x"):
        with pytest.raises(
            LakeError,
            match=f"The lake in {path} refused: .*Check that it is a folder you may write",
        ):
            Lake(path).write("a", table(1))
    with pytest.raises(LakeError, match="refused: .*Not a directory"):
        Lake(tmp_path / "file").names()
    with pytest.raises(LakeError, match="accepted: a folder"):
        Lake("gs://bucket/lake")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_folder_that_is_no_repository(lake):
    lake.write("a", table(1))
    (lake.path / "b").mkdir()
    with pytest.raises(
        LakeError, match=f"The lake in {lake.path}/b refused: .* Nothing was changed"
    ):
        lake.read("b")


def test_an_error_of_the_data_is_not_blamed_on_the_lake(lake):
    def broken(block):
        raise FileNotFoundError("input.csv")

    ds = xr.Dataset({"x": ("row", da.zeros(4, chunks=2).map_blocks(broken, meta=np.zeros(0)))})
    lake.write("a", table(2))
    with pytest.raises(FileNotFoundError, match="input.csv"):
        lake.write("a", ds)
    assert_exact(lake.read("a"), table(2))


def run(script: str, *args, **kw):
    "Run a Python script to its end, in a process of its own"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        **kw,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_full_disk_keeps_the_former_version(lake):
    "A process that may not write files over 300 kB stands for a disk without room"
    lake.write("a", table(5))
    script = """
import resource, signal, sys, numpy as np, xarray as xr
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import LakeError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
lake, n = Lake(sys.argv[1]), 500_000
big = xr.Dataset({"id": ("row", np.random.default_rng(0).integers(0, 2**62, n))})
for write in (lambda: lake.write("a", big), lambda: lake.write("new", big)):
    try: write()
    except LakeError as e: print(e)
print(lake.version("a").rows, lake.names())
"""
    said = run(script, lake.path).stdout.splitlines()
    assert len(said) == 3 and all(
        "refused" in line and "File too large" in line and str(lake.path) in line
        for line in said[:2]
    )
    assert said[2] == "5 ['a']"
    assert_exact(lake.read("a"), table(5))
    lake.append("a", table(1))
    lake.write("new", table(1))


# --- one writer -----------------------------------------------------------------------------------


def test_a_second_writer_waits_then_is_told(lake):
    lake.write("a", table(1))
    with file_lock(lake.path / ".locks" / "a.lock", 1):
        start = time.monotonic()
        with pytest.raises(
            Conflict,
            match=(
                f"process {os.getpid()} .*has been writing 'a' for more than 0.3 s; nothing "
                "was changed"
            ),
        ):
            Lake(lake.path, lock_timeout=0.3).append("a", table(1))
        assert 0.3 <= time.monotonic() - start < 5
        assert lake.version("a").rows == 1  # readers do not wait
    lake.append("a", table(1))


def test_the_lock_goes_with_its_process(tmp_path):
    lock = tmp_path / "a.lock"
    script = (
        "import sys, time; from pathlib import Path; "
        "from scalai_nb.files import file_lock\n"
        "with file_lock(Path(sys.argv[1]), 1): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(Conflict, match=f"process {process.pid}"), file_lock(lock, 0):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with file_lock(lock, 0):
        pass


FORKS = """
import os, sys, time, warnings, numpy as np, xarray as xr, dask.array, zarr
from scalai_nb.data.lake.lake import Lake
def fork(work, *args):
    "Run `work(*args)` in a child: importing costs seconds, and once is enough"
    with warnings.catch_warnings(action="ignore"): child = os.fork()
    if child: return child
    try: work(*args)
    except BaseException as e: print(repr(e), file=sys.stderr, flush=True); os._exit(1)
    os._exit(0)
lake = Lake(sys.argv[1], lock_timeout=120)
rows = lambda *x: xr.Dataset({"x": ("row", np.array(x, dtype=float))})
"""

APPENDERS = (
    FORKS
    + """
def work(me):
    for k in range(8):
        print(lake.append("a", rows(*range(1000 * me + 10 * k, 1000 * me + 10 * k + 5))).id, \
flush=True)
        lake.write("a", rows(-1), branch=f"side-{me}-{k}")
        lake.drop("a", f"side-{me}-{k}")
assert not any(os.waitpid(child, 0)[1] for child in [fork(work, me) for me in range(4)])
"""
)


def test_writers_at_once_lose_nothing(lake):
    "Appends on main beside writes on branches: every reported version is logged, every row there"
    first = lake.write("a", xr.Dataset({"x": ("row", np.zeros(0))}))
    reported = run(APPENDERS, lake.path).stdout.split()
    assert len(set(reported)) == 4 * 8 and {v.id for v in lake.log("a")} == {first.id, *reported}
    assert sorted(lake.read("a").x.values.tolist()) == sorted(
        i + 1000 * me + 10 * k for me in range(4) for k in range(8) for i in range(5)
    )


def test_a_fork_of_a_process_that_used_a_lake_is_told(lake):
    "Icechunk's threads do not survive a fork: a call would wait for ever"
    lake.write("a", xr.Dataset({"x": ("row", np.zeros(3))}))
    script = (
        FORKS
        + """
lazy = lake.read("a")
def work():
    for use in (lambda: lake.version("a"), lambda: lake.append("a", rows(1)), lazy.compute):
        try: use()
        except OSError as e: print(type(e).__name__, e, flush=True)
os.waitpid(fork(work), 0)
"""
    )
    said = run(script, lake.path).stdout.splitlines()
    assert len(said) == 3 and all(
        "LakeError This process was forked" in line and "'spawn'" in line for line in said
    )


# --- a writer that is killed ----------------------------------------------------------------------

KILLED = (
    FORKS
    + """
def writer(lake, said):
    lake.write("warm", rows(0))
    os.write(said, b"x")
    while True:
        k = int(lake.version("a").message) + 1
        (lake.append if k % 2 else lake.write)("a", rows(*np.full(400_000, k)), str(k))

def upserter(lake, said):
    keyed = lambda k, n: rows(*np.full(n, k)).assign(id=("row", np.arange(n)))
    lake.write("warm", keyed(0, 2))
    lake.upsert("warm", keyed(1, 3), "id")
    os.write(said, b"x")
    while True:
        k = lake.state("a")["k"] + 1
        lake.upsert("a", keyed(k, 100_000 + k), "id", state={"k": k})

def maker(lake, said):
    lake.write("warm", rows(0))
    os.write(said, b"x")
    for i in range(1000): lake.write(f"d{i}", rows(*range(5)))

for line in sys.stdin:
    work, path, pause = line.split()
    ready, said = os.pipe()
    child = fork(globals()[work], Lake(path), said)
    os.read(ready, 1)
    time.sleep(float(pause))
    os.kill(child, 9)
    print(os.waitpid(child, 0)[1], flush=True)
"""
)


@pytest.fixture
def kill_after():
    "kill_after(work, path, seconds): kill -9 a process so long after it began its `work`"
    zygote = subprocess.Popen(
        [sys.executable, "-c", KILLED, "/"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def kill(work, path, seconds):
        print(work, path, seconds, file=zygote.stdin, flush=True)
        assert int(zygote.stdout.readline()) == signal.SIGKILL

    with zygote:
        yield kill
        zygote.stdin.close()


@pytest.mark.slow
def test_kill_in_mid_write_leaves_the_last_version(lake, kill_after):
    "Whenever a writer dies, what is there is whole and can be written on"
    lake.write("a", xr.Dataset({"x": ("row", np.zeros(3))}), "0")
    for seconds in np.random.default_rng(0).uniform(0, 0.5, 12):
        kill_after("writer", lake.path, seconds)
        log = lake.log("a")
        k = int(log[0].message)
        assert [int(v.message) for v in log] == list(range(k, -1, -1))
        x = lake.read("a").x.values
        assert len(x) == log[0].rows and x[-1] == k
        assert set(np.unique(x)) == ({k} if k % 2 == 0 else {k, k - 1})
    assert k > 2
    lake.append("a", xr.Dataset({"x": ("row", np.ones(1))}))


@pytest.mark.slow
def test_kill_in_an_upsert_leaves_rows_and_state_of_one_version(lake, kill_after):
    x, ids = np.zeros(100_000), np.arange(100_000)
    lake.write("a", xr.Dataset({"x": ("row", x), "id": ("row", ids)}), state={"k": 0})
    for seconds in np.random.default_rng(1).uniform(0, 0.6, 8):
        kill_after("upserter", lake.path, seconds)
        k, rows = lake.state("a")["k"], lake.read("a").compute()
        assert set(rows.x.values.tolist()) == {k}
        assert not any(finding.bad for finding in lake.verify("a"))
        np.testing.assert_array_equal(rows.id, np.arange(100_000 + k))
    assert k > 2


def test_kill_while_a_dataset_is_first_made(lake, kill_after):
    "Whatever is left behind, the next writer succeeds"
    for seconds in (0.0, 0.01, 0.03, 0.1, 0.2):
        here = Lake(lake.path / str(seconds))
        kill_after("maker", here.path, seconds)
        made = here.names()
        for name in made:
            assert here.read(name).x.values.tolist() in (list(range(5)), [0])
        for i in range(len(made) + 2):
            here.write(f"d{i}", table(1))


# --- what it costs --------------------------------------------------------------------------------


def test_imports_are_lazy(lake):
    lake.write("a", table(1))
    script = """
import sys
import scalai_nb.data.lake.lake as L
heavy = {"icechunk", "zarr", "xarray", "dask", "pandas"}
print(sorted(heavy & set(sys.modules)))
lake = L.LakeReader(sys.argv[1])
lake.version("a"), lake.log("a"), lake.names()
print(sorted(heavy & set(sys.modules)))
"""
    assert run(script, lake.path).stdout.splitlines() == ["[]", "['icechunk', 'zarr']"]


def test_a_reader_has_no_way_to_write(lake):
    assert not {"write", "append", "tag", "branch", "publish", "drop", "restore"} & set(
        dir(LakeReader(lake.path))
    )


def test_the_schema_is_json(lake):
    plan = schema(table(2))
    assert json.loads(json.dumps(plan)) == plan
