"""What people have, in blocks: the same rows whatever they lie in, and mistakes named by line"""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
import xarray as xr

import scalai_nb as sn
from scalai_nb.compute.blocks import Blocks
from scalai_nb.data.opening import open_file
from scalai_nb.data.readers import pieces, readers
from scalai_nb.errors import ParameterError

ROWS = 500


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    "Pieces of a few lines, so that each file has many"
    monkeypatch.setattr(pieces, "PIECE", 1000)


def _orchard(rows: int = ROWS) -> pd.DataFrame:
    "Trees: text with quotes and ends of lines, numbers with one gap, times"
    n = np.arange(rows)
    df = pd.DataFrame({"tree": [f'p{i} "old",\nby the wall' for i in n], "n": n, "kg": n / 8})
    df["apples"] = n.astype(float)
    df.loc[rows // 2, "apples"] = np.nan  # the only gap: each piece but one is of whole numbers
    df["picked"] = pd.Timestamp("2026-09-01") + pd.to_timedelta(n, "s")
    return df


def _csv(df, path, **kw):
    df.assign(apples=df.apples.astype("Int64")).to_csv(path, index=False, **kw)


def _json(df, path):
    rows = df.assign(picked=df.picked.astype(str), apples=df.apples.astype("Int64"))
    rows.to_json(path, orient="records", lines=True)


def _arrow(df):
    table = pa.Table.from_pandas(df, preserve_index=False)
    at = table.column_names.index("apples")
    return table.set_column(at, "apples", pa.array(df.apples.astype("Int64"), from_pandas=True))


def _stream(df, path):
    table = _arrow(df)
    with pa.ipc.new_stream(path, table.schema) as to:
        to.write_table(table, max_chunksize=100)


WRITERS = {
    "t.csv": _csv,
    "t.tsv": lambda df, path: _csv(df, path, sep="\t"),
    "t.csv.gz": _csv,
    "t.csv.zst": lambda df, path: pa.output_stream(path).write(_text(df)),
    "t.jsonl": _json,
    "t.jsonl.gz": _json,
    "t.parquet": lambda df, path: pa.parquet.write_table(_arrow(df), path, row_group_size=100),
    "t.feather": lambda df, path: pa.feather.write_feather(_arrow(df), path, chunksize=100),
    "t.arrows": _stream,
}


def _text(df) -> bytes:
    return df.assign(apples=df.apples.astype("Int64")).to_csv(index=False).encode()


def _whole(blocks: Blocks) -> xr.Dataset:
    return xr.concat(list(blocks), "row")


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_rows_from_every_format(tmp_path, name):
    df = _orchard()
    WRITERS[name](df, tmp_path / name)
    blocks = sn.read_source(tmp_path / name)
    ds = _whole(blocks)
    assert list(ds) == list(df)
    assert ds.tree.values.tolist() == df.tree.tolist()
    assert ds.n.dtype.kind == "i" and (ds.n.values == df.n).all()
    np.testing.assert_array_equal(ds.apples.values, df.apples)
    assert ds.picked.dtype.kind == "M" and (ds.picked.values == df.picked.values).all()
    assert {b.apples.dtype for b in blocks} == {np.dtype(float)}, "of every block, not of the last"
    few = sn.read_source(tmp_path / name, columns=["kg", "n"])
    assert sorted(few.columns or []) == ["kg", "n"] and list(few.select("n"))[0].sizes["row"] > 0
    assert sn.summarize(blocks)["n"].max == ROWS - 1


def test_a_block_of_text_is_loaded_by_itself(tmp_path):
    df = _orchard()
    _csv(df, tmp_path / "t.csv")
    blocks = sn.read_source(tmp_path / "t.csv")
    assert len(blocks) > 10 and sum(blocks.sizes or []) == ROWS
    start = sum((blocks.sizes or [])[:7])
    assert blocks[7].n.values[0] == start == blocks[7:][0].n.values[0]
    before = blocks.fingerprint()
    _csv(df.head(3), tmp_path / "t.csv")
    with pytest.raises(ParameterError, match="has become shorter while it was read"):
        list(blocks)
    assert sn.read_source(tmp_path / "t.csv").fingerprint() != before


def test_files_folders_and_patterns(tmp_path):
    df, folder = _orchard(), tmp_path / "with space"
    folder.mkdir()
    for i in range(3):
        _csv(df[i * 100 : i * 100 + 100], folder / f"2026-{i}.csv")
    text = (folder / "2026-1.csv").read_text().replace("apples,picked", "picked,apples")
    assert "picked,apples" in text
    pd.read_csv(folder / "2026-1.csv")[["kg", "n", "picked", "tree", "apples"]].to_csv(
        folder / "2026-1.csv", index=False
    )
    for uri in (folder, folder / "*.csv", (folder / "2026-?.csv").as_uri().replace("%3F", "?")):
        assert _whole(sn.read_source(uri)).n.values.tolist() == list(range(300)), uri
    (folder / "2026-2.csv").write_text("tree,n\np1,1\n")
    with pytest.raises(ParameterError, match="2026-2.csv has no column 'kg', unlike the first"):
        sn.read_source(folder)
    _json(df, folder / "t.jsonl")
    with pytest.raises(ParameterError, match=r"holds 3 \.csv, 1 \.jsonl; pass a pattern"):
        sn.read_source(folder)


LINES = "\n".join(f'{i},"a\nb"' for i in range(200))
OBJECTS = "\n".join(json.dumps({"n": i, "at": {"row": i}}) for i in range(200))
BAD = {
    "quote.csv": (f'n,t\n{LINES}\n7,"x\n8,y\n', "line 402: a quote is not closed"),
    "cells.csv": (f"n,t\n{LINES}\n\n7,x,y\n", "line 403: 3 cells, where the first line has 2"),
    "short.csv.gz": (f"n,t\n{LINES}\n7\n", "line 402: 1 cell, where"),
    "latin.csv": (b"n,t\n" + LINES.encode() + b"\n7,\xe9\n", "line 402: byte .* is no UTF-8"),
    "half.jsonl": (f'{OBJECTS}\n\n{{"n": 3', "line 202: no JSON"),
    "list.jsonl": (f"{OBJECTS}\n[1]\n", "line 201: a list, where each line is to be an object"),
    "mixed.jsonl": (f'{OBJECTS}\n{{"n": "x"}}\n', "line 201: 'n' is text here and number in"),
    "deep.jsonl": (f'{OBJECTS}\n{{"at": {{"row": "x"}}}}\n', "line 201: 'at.row' is text here"),
    "near.jsonl": ('{"n": 1}\n{"n": "x"}\n', "line 2: 'n' is text here and number in a line"),
    "none.jsonl": ("", "is empty"),
    "none.csv": ("", "is empty"),
    "no.feather": ("ARROW1 nothing of the kind", "cannot be read as Arrow"),
    "no.parquet": ("nothing of the kind", "is not a Parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_line_is_named(tmp_path, name):
    text, said = BAD[name]
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(ParameterError, match=said):
        sn.read_source(tmp_path / name)


def test_a_type_is_that_of_all_rows_or_as_declared(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c,d\n" + "007,1,2026-01-01,\n" * 200 + "x,1.5,2026-01-02T03:04:05.5,\n")
    first = sn.read_source(path)[0]
    assert [str(first[n].dtype) for n in "abcd"] == [
        "object",
        "float64",
        "datetime64[us]",
        "float64",
    ]
    assert first.a.values[0] == "007", "text is kept as it was written"
    assert sn.read_source(path, types={"b": "string"})[0].b.values[0] == "1"
    with pytest.raises(ParameterError, match="line 202: 'x' is not of the type int64, as types="):
        sn.read_source(path, types={"a": "int64"})
    with pytest.raises(ParameterError, match="'apple' is not in the columns"):
        sn.read_source(path, types={"apple": "int64"})
    with pytest.raises(ParameterError, match="'whole' is not in the types"):
        sn.read_source(path, types={"a": "whole"})


def test_odd_texts(tmp_path):
    "A header alone; Windows' ends of lines; a field that comes late; inches, which open no quote"
    path = tmp_path / "t.csv"
    path.write_text("a,b\n")
    (only,) = sn.read_source(path)
    assert list(only) == ["a", "b"] and only.sizes["row"] == 0
    path.write_bytes(b"\xef\xbb\xbfa;b\r\n1;x\r\n")
    assert list(sn.read_source(path)[0].b.values) == ["x"]
    path.write_text('a,b\n1,3" pipe\n2,y\n')
    assert list(sn.read_source(path)[0].b.values) == ['3" pipe', "y"]
    late = tmp_path / "t.jsonl"
    late.write_text(f'{OBJECTS}\n{{"late": true, "at": {{"column": 2}}}}\n')
    blocks = sn.read_source(late)
    assert blocks.columns == ["n", "at.row", "at.column", "late"]
    assert np.isnan(blocks[0]["at.column"].values).all() and blocks[-1].late.values[-1] == 1


def test_what_is_not_read_lists_what_is(tmp_path):
    (tmp_path / "t.xlsx").touch()
    for uri in ("ftp://host/t.csv", tmp_path / "t.xlsx"):
        with pytest.raises(ParameterError, match=r"is not in the kinds of sources; known: .*\.csv"):
            sn.read_source(uri)
    with pytest.raises(ParameterError, match="is not there"):
        sn.read_source(tmp_path / "nowhere.csv")
    (tmp_path / "t.csv").write_text("a\nx\n")
    with pytest.raises(
        ParameterError, match="'part' is not in the options of .*t.csv; known: separator, types"
    ):
        sn.read_source(tmp_path / "t.csv", part="a")
    with pytest.raises(ParameterError, match="'b' is not in the columns"):
        sn.read_source(tmp_path / "t.csv", columns="b")


def test_a_reader_can_be_added(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "READERS", dict(readers.READERS))
    readers.register(".list", "scalai_nb.data.readers.delimited")
    (tmp_path / "t.list").write_text("a\nx\n")
    with pytest.raises(ParameterError, match="the endings that are read"):
        sn.read_source(tmp_path / "t.list")


def test_parquet_is_opened_as_arrow_says(tmp_path):
    "Categories, booleans with gaps, times with a zone, an index that pandas kept without a name"
    df = pd.DataFrame(
        {
            "kind": pd.Categorical(["a", None, "b"], categories=["b", "a"]),
            "ripe": pd.array([True, None, False], "boolean"),
            "when": pd.to_datetime(["2026-01-01"] * 3).tz_localize("Europe/Berlin"),
        },
        index=[7, 8, 9],
    )
    df.to_parquet(tmp_path / "t.parquet")
    ds = open_file(tmp_path / "t.parquet")
    xr.testing.assert_equal(ds.drop_vars("when"), sn.from_frame(df).drop_vars("when"))
    assert ds.when.attrs == {"timezone": "Europe/Berlin"}
    assert ds.when.values[0] == np.datetime64("2025-12-31T23:00")
