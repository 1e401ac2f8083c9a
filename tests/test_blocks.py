"""The same rows from every kind of source, loaded block by block; what cannot be read is named."""

import pickle
import sys
from decimal import Decimal

import cloudpickle
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr

from scalai_nb.compute import blocks as module
from scalai_nb.compute.arrow import arrow_block
from scalai_nb.compute.blocks import Blocks
from scalai_nb.compute.cuts import even, joined, stored
from scalai_nb.compute.reduce import Mergeable, reduce
from scalai_nb.data.lake import layout
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import LakeError, MissingExtra, ParameterError, WorkFailed
from scalai_nb.describe.summary import summarize

RNG = np.random.default_rng
ROWS = 1000


def table(seed: int, n: int) -> xr.Dataset:
    "A column of each kind, with missing values where it can have them"
    r = RNG(seed)
    x = r.normal(0, 100, n)
    x[r.random(n) < 0.1] = np.nan
    time = np.datetime64("2013-01-01", "us") + r.integers(0, 10**12, n).astype("m8[us]")
    time[r.random(n) < 0.1] = np.datetime64("NaT", "us")
    return xr.Dataset(
        {
            "number": ("row", x, {"units": "m"}),
            "single": ("row", x.astype("f4")),
            "whole": ("row", r.integers(-9, 9, n)),
            "tiny": ("row", r.integers(0, 9, n).astype("u1")),
            "flag": ("row", r.random(n) < 0.3),
            "time": ("row", time),
            "word": ("row", r.choice(np.array(["a", "", "ü", np.nan], dtype=object), n)),
            "code": (
                "row",
                r.integers(-1, 3, n).astype("i1"),
                {"categories": ["low", "middle", "high"]},
            ),
        }
    )


def arrow(ds) -> pa.Table:
    "The Arrow table of the rows of `ds`"

    def column(x):
        if "categories" in x.attrs:
            return pa.DictionaryArray.from_arrays(
                pa.array(x.values, mask=x.values < 0), x.attrs["categories"]
            )
        return pa.array(x.values, from_pandas=x.dtype.kind in "OM")

    return pa.table({n: column(x) for n, x in ds.items()})


def labels(ds) -> xr.Dataset:
    "`ds` with names of categories for codes, without attributes: their numbering does not matter"
    names = {
        n: ("row", np.array([*x.attrs["categories"], np.nan], dtype=object)[x.values])
        for n, x in ds.items()
        if "categories" in x.attrs
    }
    return (
        ds.assign(names).drop_attrs().assign(tiny=ds.tiny.astype(int).drop_attrs())
        if "tiny" in ds
        else ds.assign(names).drop_attrs()
    )


def whole(blocks):
    return xr.concat([labels(b) for b in blocks], "row")


@pytest.fixture(scope="module")
def ds():
    return table(1, ROWS)


SOURCES = [
    "memory",
    "lazy",
    "dask",
    "lake",
    "file",
    "folder",
    "files",
    "table",
    "batch",
    "batches",
    "reader",
    "list",
    "iterator",
]
TRAVELS = {"dask", "lake", "file", "folder", "files"}
STREAMS = {"batches", "reader", "list", "iterator"}


@pytest.fixture(params=SOURCES)
def source(request, ds, tmp_path, monkeypatch):
    "Kind and data: the same rows from everywhere"
    pieces, t, kind = (
        [ds.isel(row=slice(i, i + 90)) for i in range(0, ROWS, 90)],
        arrow(ds),
        request.param,
    )
    if kind == "lake":
        monkeypatch.setattr(layout, "CHUNK", 128)
        monkeypatch.setattr(layout, "SMALL", 1)
        Lake(tmp_path / "lake").write("a", ds)
        return kind, Lake(tmp_path / "lake").read("a")
    if kind in ("file", "folder", "files"):
        for i, rows in enumerate((400, 600) if kind != "file" else (ROWS,)):
            pq.write_table(t.slice(400 * i, rows), tmp_path / f"{i}.parquet", row_group_size=70)
        return kind, {
            "file": tmp_path / "0.parquet",
            "folder": str(tmp_path),
            "files": [tmp_path / "0.parquet", tmp_path / "1.parquet"],
        }[kind]
    if kind == "lazy":
        ds.drop_vars(["word", "time"]).to_zarr(tmp_path / "z", zarr_format=2)
        return kind, xr.open_zarr(tmp_path / "z", chunks=None)
    batches = t.to_batches(max_chunksize=90)
    return kind, {
        "memory": ds,
        "dask": ds.chunk(row=90),
        "table": t,
        "batch": t.combine_chunks().to_batches()[0],
        "batches": batches,
        "reader": pa.RecordBatchReader.from_batches(t.schema, batches),
        "list": pieces,
        "iterator": iter(pieces),
    }.get(kind)


def test_every_source_gives_the_same_rows(source, ds):
    kind, data = source
    blocks = Blocks.of(data, rows=200)
    want = labels(ds.drop_vars(["word", "time"]) if kind == "lazy" else ds)
    assert blocks.travels == (kind in TRAVELS) and (blocks.sizes is None) == (kind in STREAMS)
    if kind not in STREAMS:
        assert sum(blocks.sizes) == ROWS and len(blocks) > 4 and max(blocks.sizes) <= 200
    got = whole(blocks)
    assert got.equals(want) and {n: x.dtype for n, x in got.items()} == {
        n: x.dtype for n, x in want.items()
    }


def test_every_source_loads_the_columns_asked_for(source, ds):
    _, data = source
    blocks = Blocks.of(data, columns=["code", "number"], rows=200)
    got = list(blocks)
    assert all(set(b.data_vars) == {"number", "code"} for b in got) and whole(got).number.equals(
        ds.number.drop_attrs()
    )


def test_coordinates_that_are_not_asked_for_are_not_loaded(ds, lake):
    timed = ds.set_coords("time").assign_coords(scale=2.0)
    lake.write("a", timed)
    for data in (timed, timed.chunk(row=300), lake.read("a"), [timed]):
        for columns in ("number", ["number"]):
            block = next(iter(Blocks.of(data, columns=columns)))
            assert set(block.variables) == {"number", "scale"}
    assert set(next(iter(Blocks.of(lake.read("a")))).coords) == {"time", "scale"}


def test_a_wrong_column_is_named(source):
    _, data = source
    with pytest.raises(ParameterError, match="No column is asked for"):
        list(Blocks.of(data, columns=[]))
    with pytest.raises(ParameterError, match="Did you mean 'number'"):
        list(Blocks.of(data, columns=["numbr"]))


def test_blocks_are_counted_sliced_and_pickled(source, ds):
    kind, data = source
    if kind in STREAMS:
        return
    blocks = Blocks.of(data, rows=200)
    part = blocks[2:5]
    assert (
        len(part) == 3
        and part.sizes == blocks.sizes[2:5]
        and labels(part[1]).equals(labels(blocks[3]))
        and labels(blocks[-1]).equals(labels(blocks[len(blocks) - 1]))
    )
    again = cloudpickle.loads(cloudpickle.dumps(part))
    assert (
        whole(again).equals(whole(part))
        and blocks.fingerprint()
        == Blocks.of(data, rows=200).fingerprint()
        != Blocks.of(data, columns=["number"], rows=200).fingerprint()
    )
    with pytest.raises(IndexError, match=f"There are {len(blocks)} blocks, no block 99"):
        _ = blocks[99]
    with pytest.raises(ParameterError, match="consecutive"):
        _ = blocks[::2]
    assert len(blocks[3:1]) == 0 and list(blocks[3:1]) == []


def test_every_source_can_be_summarised(source, ds):
    kind, data = source
    got, want = summarize(data), summarize(ds)
    for name in got:
        assert (got[name].count, got[name].missing, got[name].distinct) == (
            ROWS,
            want[name].missing,
            want[name].distinct,
        ) and got[name].top == want[name].top


def test_a_task_is_small(tmp_path, monkeypatch):
    "It describes where the rows are, and does not hold them"
    monkeypatch.setattr(layout, "CHUNK", 5000)
    big = xr.Dataset({"x": ("row", np.arange(100_000.0)), "y": ("row", np.arange(100_000))})
    Lake(tmp_path / "lake").write("a", big)
    pq.write_table(arrow(big), tmp_path / "a.parquet", row_group_size=5000)
    for data in (Lake(tmp_path / "lake").read("a"), tmp_path / "a.parquet"):
        assert len(cloudpickle.dumps(Blocks.of(data, rows=5000)[3:5])) < 5000


# ---- cutting ----


def test_data_in_memory_are_cut_evenly():
    assert (
        even(10) == [10] and even(0) == [0] and even(10**8) == [2**20] * 95 + [10**8 - 95 * 2**20]
    )
    for rows in (1, 131_072, 131_073, 5_000_000, 10**7 + 1):
        assert sum(even(rows)) == rows and max(even(rows)) <= 2**20


def test_pieces_are_joined_up_to_a_size():
    for seed in range(20):
        sizes = RNG(seed).integers(0, 50, 100).tolist()
        counts = joined(sizes, 64)
        ends = np.cumsum([0, *counts])
        assert sum(counts) == 100 and all(
            sum(sizes[a:b]) <= 64 or b == a + 1 for a, b in zip(ends[:-1], ends[1:], strict=True)
        )
    assert joined([], 10) == []


# ---- the lake ----


@pytest.fixture
def lake(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK", 64)
    monkeypatch.setattr(layout, "SMALL", 1)
    return Lake(tmp_path / "lake")


def direct(ds) -> bool:
    return type(Blocks.of(ds).source).__name__ == "_Lake"


@pytest.mark.parametrize("rows", [None, (0, 64), (10, 300), (63, 65), (5, 5), slice(-70, None)])
def test_rows_of_the_lake(lake, ds, rows):
    image = ds.assign(
        image=(("row", "y", "x"), RNG(0).normal(size=(ROWS, 2, 3))),
        wide=(("row", "k"), np.ones((ROWS, 2000), "i1")),
    ).assign_coords(y=[1.0, 2.0], at=("row", np.arange(ROWS)), scale=3.0)
    lake.write("a", image)
    got = lake.read("a", rows=rows)
    want = image.isel(
        row=slice(None) if rows is None else rows if isinstance(rows, slice) else slice(*rows)
    )
    assert direct(got)
    blocks = list(Blocks.of(got, rows=100))
    assert xr.concat(blocks, "row").identical(want) and all(
        b.identical(want.isel(row=slice(0, 0))) for b in blocks
    ) == (not want.sizes["row"])


def test_chunks_that_were_never_written_hold_the_fill_value(lake):
    zeros = xr.Dataset(
        {
            "x": ("row", np.zeros(200)),
            "i": ("row", np.zeros(200, "i2")),
            "b": ("row", np.zeros(200, bool)),
            "t": ("row", np.zeros(200, "M8[us]")),
        }
    )
    lake.write("a", zeros)
    assert direct(lake.read("a")) and xr.concat(Blocks.of(lake.read("a")), "row").identical(zeros)
    group = zarr.group()
    array = group.create_array(
        "x",
        shape=[200],
        chunks=[64],
        dtype="f8",
        fill_value=7.0,
        dimension_names=["row"],
        compressors=zarr.codecs.BloscCodec(typesize=8),
    )
    array[70:80] = 1.0
    plan = layout.schema(zeros[["x"]]) | {"chunk": 64}
    loaded = layout.Rows(lambda: group, plan).load(["x"], 10, 190)["x"]
    np.testing.assert_array_equal(loaded, array[10:190])
    assert loaded[0] == 7 and loaded[60] == 1


@pytest.mark.parametrize("codec", ["none", "zstd", "big-endian", "filters"])
def test_other_codecs_go_through_zarr(codec):
    from zarr.codecs import BytesCodec, ZstdCodec

    x, group = np.arange(300.0), zarr.group()
    options = {
        "none": {"compressors": None},
        "zstd": {"compressors": ZstdCodec()},
        "big-endian": {
            "compressors": zarr.codecs.BloscCodec(typesize=8),
            "serializer": BytesCodec(endian="big"),
        },
        "filters": {
            "filters": zarr.codecs.TransposeCodec(order=(0,)),
            "compressors": zarr.codecs.BloscCodec(typesize=8),
        },
    }[codec]
    group.create_array(
        "x", shape=[300], chunks=[64], dtype="f8", dimension_names=["row"], **options
    )[:] = x
    rows = layout.Rows(lambda: group, layout.schema(xr.Dataset({"x": ("row", x)})) | {"chunk": 64})
    assert not rows._array("x")[1]
    np.testing.assert_array_equal(rows.load(["x"], 5, 290)["x"], x[5:290])


def test_selected_renamed_and_joined_columns_are_read_directly(lake, ds):
    lake.write("a", ds)
    lake.write("b", ds[["number"]].rename(number="other"))
    a, b = lake.read("a"), lake.read("b")
    both = a[["whole", "word"]].rename(whole="w").merge(b)
    assert direct(both) and whole(Blocks.of(both)).equals(
        labels(ds[["whole", "word", "number"]].rename(whole="w", number="other"))
    )


def test_what_is_computed_from_the_lake_goes_through_dask(lake, ds):
    lake.write("a", ds)
    a = lake.read("a")
    a["number"][0] = 5.0
    changed, doubled, some = (
        a[["number"]],
        lake.read("a")[["number"]] * 2,
        lake.read("a")[["number"]].isel(row=slice(10, None)),
    )
    assert stored(changed.number.variable) is None and not any(
        map(
            direct,
            (
                changed,
                doubled,
                some,
                lake.read("a")[["number"]].chunk(row=77).assign(y=("row", np.zeros(ROWS))),
            ),
        )
    )
    assert whole(Blocks.of(changed)).number[0] == 5 and whole(Blocks.of(doubled)).number.equals(
        (ds.number * 2).drop_attrs()
    )
    assert whole(Blocks.of(some)).number.equals(ds.number[10:].drop_attrs())


def test_only_the_columns_asked_for_are_fetched(lake, ds, monkeypatch):
    lake.write("a", ds)
    asked, load = [], layout.Rows.load
    monkeypatch.setattr(
        layout.Rows,
        "load",
        lambda self, names, start, stop: (
            asked.append((tuple(names), stop - start)) or load(self, names, start, stop)
        ),
    )
    total = Mergeable(
        float,
        lambda s, b: s + float(b.number.sum()),
        lambda a, b: a + b,
        columns=("number", "whole"),
    )
    assert reduce(total, lake.read("a")) == pytest.approx(float(ds.number.sum()))
    assert {names for names, _ in asked} == {("number", "whole")} and sum(
        n for _, n in asked
    ) == ROWS


def test_a_damaged_chunk_names_its_column(ds):
    group = zarr.group()
    layout.write_group(group, ds[["number", "whole"]])
    key = next(k for k in group.store._store_dict if k.startswith("whole/c"))
    group.store._store_dict[key] = group.store._store_dict[key][:20]
    with pytest.raises(
        LakeError,
        match=(
            "Block 0 .*column 'whole' cannot be read: A stored chunk is damaged: it has 20 bytes"
        ),
    ):
        summarize(layout.read_group(lambda: group, "t"))


# ---- Arrow and Parquet ----


def test_arrow_types():
    t = pa.table(
        {
            "half": pa.array([1.0, None], "float16"),
            "u64": pa.array([2**63, 1], "uint64"),
            "day": pa.array([1, None], "date32"),
            "day64": pa.array([86_400_000, None], "date64"),
            "money": pa.array([Decimal("1.25"), None]),
            "nothing": pa.nulls(2),
            "ns": pa.array([1, None], pa.timestamp("ns")),
            "large": pa.array(["a", None], "large_string"),
            "numbers": pa.array([7, None]).dictionary_encode(),
            "u": pa.DictionaryArray.from_arrays(pa.array([1, None], "uint8"), ["x", "y"]),
            "odd": pa.DictionaryArray.from_arrays(pa.array([0, 1], "int8"), ["x", None]),
            "bools": [True, None],
        }
    )
    b = arrow_block(t)
    assert {n: str(x.dtype) for n, x in b.items()} == {
        "half": "float16",
        "u64": "uint64",
        "day": "datetime64[s]",
        "day64": "datetime64[ms]",
        "money": "float64",
        "nothing": "float64",
        "ns": "datetime64[ns]",
        "large": "object",
        "numbers": "float64",
        "u": "int64",
        "odd": "int8",
        "bools": "float64",
    }
    assert (
        b.u.values.tolist() == [1, -1]
        and b.odd.values.tolist() == [0, -1]
        and b.odd.attrs["categories"] == ["x"]
        and b.money.values[0] == 1.25
    )
    assert b.day.values[0] == np.datetime64("1970-01-02") == b.day64.values[0] and all(
        pd.isna(x.values[1]) for n, x in b.items() if n not in ("u64", "u", "odd")
    )


def test_numbers_without_nulls_are_not_copied():
    x = np.arange(100.0)
    block = arrow_block(pa.table({"x": pa.array(x)}).slice(10, 50))
    assert np.shares_memory(block.x.values, x) and block.x.values.tolist() == x[10:60].tolist()


@pytest.mark.parametrize(
    "column", [[{"a": 1}], [[1, 2]], pa.array([1], "duration[s]"), pa.array([b"x"])]
)
def test_a_type_without_a_place_is_named(column, tmp_path):
    t = pa.table({"x": [1], "odd": column})
    pq.write_table(t, tmp_path / "a.parquet")
    for data in (t, tmp_path / "a.parquet"):
        with pytest.raises(ParameterError, match="'odd' is of the Arrow type"):
            summarize(data)
        assert list(Blocks.of(data, columns=["x"])[0]) == ["x"]


def test_a_null_anywhere_makes_whole_numbers_float_everywhere(tmp_path):
    t = pa.table(
        {"x": pa.array([1, 2, 3, None]), "y": [1, 2, 3, 4], "b": [True, False, True, None]}
    )
    for statistics in (True, False):
        pq.write_table(t, tmp_path / "a.parquet", row_group_size=2, write_statistics=statistics)
        kinds = [
            [b[n].dtype.kind for n in ("x", "b")] for b in Blocks.of(tmp_path / "a.parquet", rows=2)
        ]
        assert kinds == [["f", "f"]] * 2
        assert [b.y.dtype.kind for b in Blocks.of(tmp_path / "a.parquet", rows=2)] == (
            ["i"] * 2 if statistics else ["f"] * 2
        )
    assert [b.x.dtype.kind for b in Blocks.of(t, rows=2)] == ["f"] * 2


def test_files_must_agree(tmp_path):
    pq.write_table(pa.table({"x": [1], "y": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [1.5], "z": [1]}), tmp_path / "b.parquet")
    with pytest.raises(
        ParameterError, match=r"b\.parquet holds 'x' as double, the first file as int64"
    ):
        Blocks.of(tmp_path, columns=["x"])
    with pytest.raises(ParameterError, match=r"b\.parquet has no column 'y'"):
        Blocks.of(tmp_path, columns=["y"])


def test_files_that_are_not_there_or_are_none(tmp_path):
    with pytest.raises(ParameterError, match="does not exist; pass a Parquet file"):
        Blocks.of(tmp_path / "none.parquet")
    with pytest.raises(ParameterError, match=r"holds no \*\.parquet"):
        Blocks.of(tmp_path)
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(ParameterError, match=r"a\.parquet is not a Parquet file"):
        Blocks.of(tmp_path)


def test_a_damaged_row_group_names_block_file_and_column(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"x": np.arange(50.0), "y": RNG(0).normal(size=50)}),
        path,
        use_dictionary=False,
        compression="snappy",
    )
    start = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 60] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(
        WorkFailed, match=r"Block 0 \(rows 0:50\): .*a\.parquet: column 'y' cannot be read"
    ):
        summarize(path)


def test_no_rows(tmp_path):
    empty = table(0, 0).drop_vars("code")
    assert all(b.sizes["row"] == 0 for t in (table(0, 0), arrow(table(0, 0))) for b in Blocks.of(t))
    pq.write_table(arrow(empty), tmp_path / "a.parquet")
    for data in (
        empty,
        empty.chunk(),
        arrow(empty),
        tmp_path / "a.parquet",
        arrow(empty).to_batches(),
    ):
        got = summarize(data)
        assert got.rows == 0 and (list(got) == list(empty) or not list(got))


def test_categories_of_row_groups_differ_and_their_names_agree(tmp_path):
    pq.write_table(
        pa.table({"c": pa.array(["a", "b", "b", "c"]).dictionary_encode()}),
        tmp_path / "a.parquet",
        row_group_size=2,
    )
    assert summarize(Blocks.of(tmp_path, rows=2))["c"].top == {"b": 2, "a": 1, "c": 1}


# ---- iterators, devices, other data ----


def test_an_iterator_is_read_once_a_list_again(ds):
    stream, again = Blocks.of(iter([ds])), Blocks.of([ds, ds])
    assert len(list(stream)) == 1 and len(list(again)) == len(list(again)) == 2
    with pytest.raises(ParameterError, match="can be read once, and were"):
        list(stream)
    with pytest.raises(TypeError, match="not known before its end"):
        len(stream)


def test_numbers_go_to_the_device_asked_for(ds, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingExtra, match=r"scalai-nb\[gpu\]"):
        _ = Blocks.of(ds, device="cuda")[0]
    with pytest.raises(ParameterError, match="'gpu' is not in the devices; known: cpu, cuda"):
        Blocks.of(ds, device="gpu")

    class Moved(np.ndarray):
        "Stands for an array on a card"

    fake = type(sys)("cupy")
    fake.asarray, fake.cuda = (
        lambda x: x.view(Moved),
        type("c", (), {"runtime": type("r", (), {"CUDARuntimeError": OSError})}),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    block = Blocks.of(ds, device="cuda")[0]
    assert {n for n, x in block.variables.items() if isinstance(x.data, Moved)} == {
        "number",
        "single",
        "whole",
        "tiny",
        "flag",
        "code",
    } and block.code.attrs == ds.code.attrs


@pytest.mark.parametrize("data", [7, None, np.zeros(3), {"a": 1}, pd.Series([1]), b"x"])
def test_other_data_are_refused(data):
    with pytest.raises(ParameterError, match=f"not {type(data).__name__}; try"):
        Blocks.of(data)


def test_ragged_chunks_and_mixed_columns(ds):
    mixed = ds.chunk(row=130).assign(memory=("row", np.arange(ROWS)))
    mixed["number"] = mixed.number.chunk(row=70)
    assert whole(Blocks.of(mixed, rows=1)).equals(
        labels(ds.assign(memory=("row", np.arange(ROWS))))
    )


def test_blocks_in_memory_are_views(ds):
    assert np.shares_memory(Blocks.of(ds, rows=300)[1].number.values, ds.number.values)
    assert pickle.loads(pickle.dumps(Blocks.of(ds)))[0].identical(ds)
    assert module.BLOCK == 131_072
