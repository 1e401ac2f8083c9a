"""Documents of MongoDB become columns, by PyMongo itself; the server is a stand-in (`mongo.py`)"""

import logging
import pickle
import uuid
from datetime import datetime

import numpy as np
import pytest
from databases import PASSWORD
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import scalai_nb as sn
from scalai_nb.cli import app
from scalai_nb.data.ingestion import ingest
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import ParameterError, ScalaiError, WorkFailed

bson = pytest.importorskip("bson")
from mongo import mongodb


@pytest.fixture
def server():
    with mongodb() as server:
        yield server


def _whole(blocks):
    import xarray as xr

    return xr.concat(list(blocks), "row")


def _picked(server, start, stop):
    "Apples as they are picked; ids grow as those of one process do"
    for i in range(start, stop):
        tree = {"row": i % 7, "sort": f"sort {i % 5}"}
        known = {"_id": bson.ObjectId(f"{i:024x}"), "n": i, "kg": i / 4}
        server("picked", known | {"tree": tree, "at": datetime(2026, 9, 1, 0, i // 60, i % 60)})


def test_values_come_as_they_are(server):
    first = bson.ObjectId()
    known = uuid.UUID(int=7)
    server(
        "t",
        {"_id": first, "n": 1, "big": bson.Int64(2**53 + 1), "f": 1, "d": bson.Decimal128("1.25")},
        {"n": 2, "f": 2.5, "s": "née", "at": datetime(1600, 2, 29), "ok": True, "gap": 7},
        {"n": 3, "in": {"a": {"b": "x"}, "c": None}, "u": bson.Binary.from_uuid(known)},
        {"n": 4, "s": None, "at": datetime(2026, 9, 1, 10, 0, 0, 500_000), "in": None},
    )
    ds = _whole(sn.read_source(f"{server.uri}/t"))
    wanted = ["_id", "n", "big", "f", "d", "s", "at", "ok", "gap", "in.a.b", "in.c", "u"]
    assert list(ds.data_vars) == wanted
    assert ds["_id"].values[0] == str(first)
    assert ds.n.dtype == np.int64 and ds.n.values.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(ds.f.values, [1, 2.5, np.nan, np.nan])
    np.testing.assert_array_equal(ds.d.values, [1.25, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(ds.gap.values, [np.nan, 7, np.nan, np.nan])
    assert ds.s.values[1] == "née" and ds.s.values[3] != ds.s.values[3]
    times = np.array(["NaT", "1600-02-29", "NaT", "2026-09-01T10:00:00.5"], "M8[ms]")
    np.testing.assert_array_equal(ds["at"].values.astype("M8[ms]"), times)
    assert ds["in.a.b"].values[2] == "x" and ds.u.values[2] == str(known)
    assert np.isnan(ds["in.c"].values.astype(float)).all()


def test_a_mapping_says_what_is_read(server):
    server("t", {"place": {"city": "Ulm"}, "tags": ["a", 1]}, {"place": {"city": "Bonn"}, "x": 1})
    with pytest.raises(ParameterError, match=r"'tags' holds array, which is no column; .*mapping="):
        sn.read_source(f"{server.uri}/t")
    assert list(sn.read_source(f"{server.uri}/t", ["place.city"]).columns) == ["place.city"]
    mapping = {"city": "place.city", "tags": "tags", "place": "place", "never": "a.b"}
    ds = _whole(sn.read_source(f"{server.uri}/t", mapping=mapping))
    assert ds.city.values.tolist() == ["Ulm", "Bonn"] and ds.tags.values[0] == '["a", 1]'
    assert ds.place.values.tolist() == ['{"city": "Ulm"}', '{"city": "Bonn"}']
    assert np.isnan(ds.never.values).all()
    assert list(sn.read_source(f"{server.uri}/t", "city", mapping=mapping).columns) == ["city"]
    for wrong in ("a..b", "$where", ""):
        with pytest.raises(ParameterError, match="is no path of a field"):
            sn.read_source(f"{server.uri}/t", mapping={"x": wrong})
    with pytest.raises(ParameterError, match="'town' is not in the columns"):
        sn.read_source(f"{server.uri}/t", "town", mapping=mapping)


def test_what_has_no_place_is_named(server):
    server("t", {"n": 1, "mixed": 1, "b": b"\1", "r": bson.Regex("x"), "in": [{"a": 1}]})
    server("t", {"n": 2, "mixed": "x"})
    for name, why in {"mixed": "int and string", "r": "regex", "in": "array"}.items():
        with pytest.raises(ParameterError, match=f"'{name}' holds {why}"):
            sn.read_source(f"{server.uri}/t", ["n", name])
    with pytest.raises(ParameterError, match="'b' is not what it .*: it holds bytes"):
        list(sn.read_source(f"{server.uri}/t", ["n", "b"]))
    assert _whole(sn.read_source(f"{server.uri}/t", "n")).n.values.tolist() == [1, 2]
    with pytest.raises(ParameterError, match="'pickd' is not in the collections; known: t"):
        sn.read_source(f"{server.uri}/pickd")
    assert _whole(sn.read_source(f"{server.uri}::t", "n")).sizes["row"] == 2
    assert _whole(sn.read_source(server.uri, "n")).sizes["row"] == 2, "there is only one"
    server("none")
    del server.collections["none"][:]
    with pytest.raises(ParameterError, match="'' is not in the collections"):
        sn.read_source(server.uri)
    with pytest.raises(ParameterError, match="holds no documents"):
        sn.read_source(f"{server.uri}/none")
    (empty,) = sn.read_source(f"{server.uri}/none", mapping={"n": "n"})
    assert dict(empty.sizes) == {"row": 0}
    assert sn.read_source(f"{server.uri}/none", mapping={"n": "n"}).columns == ["n"]


def test_a_field_that_changes_meanwhile_is_an_error(server):
    server("t", {"n": 1})
    for value in ("x", 2.5, None):
        blocks = sn.read_source(f"{server.uri}/t", "n")
        server("t", {"n": value})
        with pytest.raises(ParameterError, match="'n' is not what it was found to be"):
            list(blocks)
        server.collections["t"].pop()


@pytest.mark.parametrize("column", ["_id", "n", "at", "kg"])
@pytest.mark.parametrize("partition", [None, "n"])
def test_only_what_is_newer_is_sent(server, tmp_path, column, partition):
    lake = Lake(tmp_path / "lake", author="you")
    told = {"partition": partition, "rows": 50, "incremental": column}
    bring = lambda: ingest(lake, f"{server.uri}/picked", "picked", **told)
    _picked(server, 0, 120)
    assert bring().rows == 120
    server.sent = 0
    assert bring().version is None
    looked = 120  # documents, for their fields
    assert server.sent < looked + 20, "the greatest again, for equal is not newer"
    _picked(server, 120, 150)
    done = bring()
    assert (done.rows, done.total) == (30, 150)
    assert lake.read("picked").n.values.tolist() == list(range(150))
    server("picked", {"n": None, "kg": None})
    if column != "_id":
        with pytest.raises(ParameterError, match="missing"):
            bring()
        assert lake.version("picked").rows == 150


def test_an_id_that_looks_like_a_number_is_a_text(server, tmp_path):
    lake = Lake(tmp_path / "lake", author="you")
    for n, id in enumerate(["1" * 24, "5" + "0" * 20 + "e10", "a" * 24]):
        server("t", {"_id": bson.ObjectId(id), "n": n})
        done = ingest(lake, f"{server.uri}/t", "t", incremental="_id")
        assert (done.rows, done.cursor) == (1, id)
    assert ingest(lake, f"{server.uri}/t", "t", incremental="_id").rows == 0
    assert lake.read("t").n.values.tolist() == [0, 1, 2]


def test_ranges_hold_each_document_once(server):
    _picked(server, 0, 120)
    for _ in range(40):
        server("picked", {"n": 7, "kg": 1.0, "tree": {}, "at": datetime(2026, 9, 1)})
    for column in ("n", "kg", "at", "_id"):
        blocks = sn.read_source(f"{server.uri}/picked", ["n", "kg"], partition=column, rows=40)
        assert sum(blocks.sizes) == 160 and len(blocks) >= 3
        assert sorted(_whole(blocks).n.values) == sorted([*range(120), *[7] * 40])
        part = pickle.loads(pickle.dumps(blocks[1:3].select("kg")))
        assert [b.sizes["row"] for b in part] == blocks.sizes[1:3]
    blocks = sn.read_source(f"{server.uri}/picked", "n", partition="n", rows=40)
    server("picked", {"n": 9})
    with pytest.raises(WorkFailed, match="they were changed meanwhile"):
        list(blocks)
    with pytest.raises(ParameterError, match="'kg' has missing values"):
        sn.read_source(f"{server.uri}/picked", partition="kg")


_SCALARS = st.none() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), _SCALARS | st.just({"x": 1})), min_size=1))
def test_numbers_of_any_documents_are_theirs(documents):
    "What a document says of a field stands in its row; a field of two kinds is refused"
    with mongodb() as server:
        server("t", *({"n": i} | d for i, d in enumerate(documents)))
        try:
            ds = _whole(sn.read_source(f"{server.uri}/t"))
        except ParameterError as e:
            kinds = [{type(d.get(k)) for d in documents if d.get(k) is not None} for k in "abc"]
            assert "holds" in str(e) and any(len(k) > 1 and dict in k for k in kinds)
            return
    for i, document in enumerate(documents):
        for name, value in document.items():
            if isinstance(value, dict):
                assert ds[f"{name}.x"].values[i] == 1
            elif value is not None:
                assert ds[name].values[i] == value


def test_a_password_is_nowhere(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    monkeypatch.setenv("SCALAI_PASSWORD", "wrong-one")
    lake = Lake(tmp_path / "lake", author="you")
    with mongodb(PASSWORD) as server:
        _picked(server, 0, 3)
        uri = f"{server.uri}/picked"
        blocks = sn.read_source(uri, password="SHOP_PASSWORD")
        done = ingest(lake, uri, "picked", password="SHOP_PASSWORD")
        version = lake.version("picked")
        said = [repr(blocks.source), str(pickle.dumps(blocks)), version.message, str(done)]
        said.append(str(lake.state("picked")))
        assert done.rows == 3 and "reader" not in version.message
        for variable in (None, "NO_SUCH_PASSWORD", PASSWORD):
            with pytest.raises((ParameterError, WorkFailed)) as raised:
                sn.read_source(uri, password=variable)
            said.append(f"{raised.value} {raised.value.__cause__}")
        assert "Authentication failed" in said[-3] and "SCALAI_PASSWORD" in said[-3]
        with pytest.raises(WorkFailed, match="requires authentication"):
            sn.read_source(uri.replace("reader@", ""))
        monkeypatch.delenv("SCALAI_PASSWORD")
        with pytest.raises(ParameterError, match="SCALAI_PASSWORD"):
            sn.read_source(uri)
        for address in (uri.replace("reader@", "reader:hush@"), f"{uri}?password=hush"):
            with pytest.raises(ParameterError, match="has a password in it") as raised:
                sn.read_source(address)
            assert "hush" not in str(raised.value)
    for file in (tmp_path / "lake").rglob("*"):
        if file.is_file():
            said.append(file.read_bytes().decode("latin-1"))
    for text in (*said, caplog.text):
        assert "pears" not in text and "wrong-one" not in text


def test_a_server_that_is_away_or_dies(server, tmp_path):
    lake = Lake(tmp_path / "lake", author="you")
    _picked(server, 0, 500)
    before = ingest(lake, f"{server.uri}/picked", "picked").version
    server.sent, server.dies_after = 0, 700  # 500 are looked at first
    with pytest.raises(WorkFailed, match=r"^mongodb://127.0.0.1:\d+/shop/picked: "):
        ingest(lake, f"{server.uri}/picked?serverSelectionTimeoutMS=300", "picked")
    assert lake.version("picked").id == before
    away = "mongodb://127.0.0.1:1/shop/picked?serverSelectionTimeoutMS=50"
    with pytest.raises(WorkFailed, match="start the server"):
        sn.read_source(away)
    for wrong, why in {
        "?tls=perhaps": "tls",
        "?autSource=admin": "'autSource' is not in the options .* Did you mean 'authSource'",
    }.items():
        with pytest.raises(ScalaiError, match=why):
            sn.read_source(f"{server.uri}/picked{wrong}")
    with pytest.raises(ParameterError, match="names no database"):
        sn.read_source("mongodb://127.0.0.1")


def test_scalai_ingest_reads_it(server, tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[laptop]\nlake = lake\n")
    monkeypatch.chdir(tmp_path)
    _picked(server, 0, 20)
    mapping = '--option=mapping={"sort": "tree.sort", "id": "_id"}'
    command = ["ingest", f"{server.uri}/picked", "picked", mapping, "--incremental", "id"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "20 rows came in" in done.stdout, done.output
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "nothing new for picked" in done.stdout, done.output
