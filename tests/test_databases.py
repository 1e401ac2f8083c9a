"""Tables of real databases come as they are, of one moment, without a password anywhere"""

import logging
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import permutations, zip_longest

import numpy as np
import psutil
import pytest
from databases import PASSWORD, mariadb, postgresql

import scalai_nb as sn
from scalai_nb.compute.blocks import Blocks
from scalai_nb.data.ingestion import ingest
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.readers.databases.relations import Relation
from scalai_nb.errors import ParameterError, ScalaiError, WorkFailed

pytest.importorskip("adbc_driver_postgresql")
KINDS = ["postgresql", "mariadb", "sqlite", "duckdb"]


@dataclass
class Shop:
    "A database of a kind"

    kind: str
    uri: str
    connect: Callable
    quote: str = '"'
    address: str = ""  # for another process

    def __call__(self, *statements):
        with closing(self.connect()) as connection:
            cursor = connection.cursor() if self.kind != "duckdb" else connection
            for statement in statements:
                cursor.execute(statement)
            if self.kind != "duckdb":
                cursor.close()
                connection.commit()

    def read(self, table, *columns, **options):
        return sn.read_source(f"{self.uri}::{table}", list(columns) or None, **options)

    def named(self, name):
        return self.quote + name.replace(self.quote, self.quote * 2) + self.quote


@pytest.fixture(scope="module")
def pg():
    with postgresql() as server:
        yield server


@pytest.fixture(scope="module")
def maria():
    with mariadb() as server:
        yield server


@pytest.fixture(params=KINDS)
def shop(request, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALAI_PASSWORD", PASSWORD)
    return _shop(request.param, request.getfixturevalue, tmp_path)


@pytest.fixture
def postgres(pg, monkeypatch):
    monkeypatch.setenv("SCALAI_PASSWORD", PASSWORD)
    return _shop("postgresql", lambda name: pg, None)


def _shop(kind, fixture, folder):
    if kind == "postgresql":
        import adbc_driver_postgresql.dbapi as driver

        port = fixture("pg").port
        quoted = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
        told = f"host=127.0.0.1 port={port} user=reader dbname=postgres password='{quoted}'"
        uri = f"postgresql://reader@127.0.0.1:{port}/postgres"
        shop = Shop(kind, uri, lambda: driver.connect(told), address=told)
        shop("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        return shop
    if kind == "mariadb":
        import pymysql

        told = {"host": "127.0.0.1", "port": fixture("maria").port, "user": "reader"}
        told |= {"password": PASSWORD, "database": "shop"}
        shop = Shop(
            kind,
            f"mariadb://reader@127.0.0.1:{told['port']}/shop",
            lambda: pymysql.connect(**told),
            "`",
        )
        shop("DROP DATABASE shop", "CREATE DATABASE shop")
        return shop
    if kind == "sqlite":
        file = f"{folder}/shop.db"
        return Shop(kind, f"sqlite://{file}", lambda: sqlite3.connect(file), address=file)
    import duckdb

    return Shop(
        kind, f"duckdb://{folder}/shop.duckdb", lambda: duckdb.connect(str(folder / "shop.duckdb"))
    )


def _whole(blocks):
    import xarray as xr

    return xr.concat(list(blocks), "row")


def _picked(shop, start, stop, table="picked"):
    "Apples as they are picked"
    values = (
        f"({i}, {i / 4}, 'tree {i % 5}', '2026-09-01 00:{i // 60:02}:{i % 60:02}.5')"
        for i in range(start, stop)
    )
    made = (
        f"CREATE TABLE {table} (id INTEGER, kg DOUBLE PRECISION, tree VARCHAR(20), t TIMESTAMP(6))"
    )
    if shop.kind == "mariadb":
        made = made.replace("TIMESTAMP(6)", "DATETIME(6)")
    shop(*([made] if not start else []), f"INSERT INTO {table} VALUES {', '.join(values)}")


def test_values_come_as_they_are(shop):
    types = "n INTEGER, gap BIGINT, f DOUBLE PRECISION, d DECIMAL(10, 2), s VARCHAR(20), "
    types += "t TIMESTAMP, day DATE, none VARCHAR(5)"
    if shop.kind == "mariadb":
        types = types.replace("TIMESTAMP", "DATETIME")
    shop(
        f"CREATE TABLE t ({types})",
        "INSERT INTO t VALUES "
        "(1, NULL, 0.5, 1.25, 'it''s', '2026-09-01 10:00:00', '2026-09-01', NULL)",
        "INSERT INTO t VALUES (2, 7, NULL, NULL, NULL, NULL, NULL, NULL)",
        "INSERT INTO t VALUES (3, 8, 2.5, 3, 'née', '1969-12-31 23:59:59', '1600-02-29', NULL)",
    )
    ds = _whole(shop.read("t"))
    assert ds.n.dtype == np.int64 or ds.n.dtype == np.int32
    assert ds.n.values.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(ds.gap.values, [np.nan, 7, 8])
    np.testing.assert_array_equal(ds.f.values, [0.5, np.nan, 2.5])
    np.testing.assert_array_equal(ds.d.values, [1.25, np.nan, 3])
    assert ds.s.values.tolist()[::2] == ["it's", "née"] and ds.s.values[1] != ds.s.values[1]
    times = np.array(["2026-09-01T10", "NaT", "1969-12-31T23:59:59"], "M8[us]")
    np.testing.assert_array_equal(ds.t.values.astype("M8[us]"), times)
    days = np.array(["2026-09-01", "NaT", "1600-02-29"], "M8[D]")
    np.testing.assert_array_equal(ds.day.values.astype("M8[D]"), days)
    assert all(v != v for v in ds.none.values.tolist())
    assert list(shop.read("t", "s", "n").columns) == ["n", "s"]
    query = shop.read("", query="SELECT n, n * 2 AS twice FROM t WHERE n > 1;")
    assert _whole(query).twice.values.tolist() == [4, 6]
    assert _whole(shop.read("SELECT n FROM t -- all")).n.values.tolist() == [1, 2, 3]


def test_an_empty_table_has_its_columns(shop):
    shop("CREATE TABLE t (n INTEGER, s VARCHAR(9))")
    (only,) = shop.read("t")
    assert dict(only.sizes) == {"row": 0} and list(only.data_vars) == ["n", "s"]
    by = shop.read("t", partition="n")
    assert by.sizes == [0] and by[0].sizes["row"] == 0


def test_names_are_only_names(shop):
    "Reserved words, quotes, and what would be SQL if it were pasted"
    shop("CREATE TABLE kept (n INTEGER)", "INSERT INTO kept VALUES (1)")
    for name in (
        "select",
        "two words",
        "a\"b'c`d",
        'x"; DROP TABLE kept; --',
        "SELECT n FROM kept",
    ):
        shop(
            f"CREATE TABLE {shop.named(name)} ({shop.named(name)} INTEGER, k INTEGER)",
            f"INSERT INTO {shop.named(name)} VALUES (5, 1), (6, 2)",
        )
        blocks = shop.read(name, partition=name, rows=1)
        assert [b[name].values.tolist() for b in blocks] == [[5], [6]], name
        assert [b[name].values.tolist() for b in shop.read(name, name)] == [[5, 6]], name
    for wrong in ('kept"; DROP TABLE kept; --', "kept WHERE 1 = 1", "Kept2", "kept UNION SELECT 1"):
        with pytest.raises(ParameterError, match=r"is not in the tables; known: .*kept"):
            shop.read(wrong)
    with pytest.raises(ParameterError, match="'n; DROP TABLE kept' is not in the columns"):
        shop.read("kept", "n; DROP TABLE kept")
    with pytest.raises(ParameterError, match="'m' is not in the columns"):
        shop.read("kept", partition="m")
    with pytest.raises(ParameterError, match="name one: ADDRESS::TABLE"):
        shop.read("")
    with pytest.raises((ParameterError, WorkFailed)):
        list(shop.read("", query="DELETE FROM kept"))
    with suppress(ParameterError, WorkFailed):
        list(shop.read("", query="SELECT n FROM kept) AS a; DROP TABLE kept; --"))
    assert _whole(shop.read("kept")).n.values.tolist() == [1]


def test_ranges_hold_each_row_once(shop):
    _picked(shop, 0, 100)
    shop("INSERT INTO picked SELECT 7, kg, tree, t FROM picked WHERE id < 40")
    for column in ("id", "kg", "t"):
        blocks = shop.read("picked", "id", "kg", partition=column, rows=40)
        assert sum(blocks.sizes) == 140 and len(blocks) >= 3
        assert max(blocks.sizes) <= 40 + (41 if column == "id" else 2), "only equal values crowd"
        ds = _whole(blocks)
        assert sorted(ds.id.values) == sorted([*range(100), *[7] * 40])
        part = pickle.loads(pickle.dumps(blocks[1:3].select("kg")))
        assert [b.sizes["row"] for b in part] == blocks.sizes[1:3]
    shop("INSERT INTO picked VALUES (NULL, 1, 'a', NULL)")
    with pytest.raises(ParameterError, match="'id' has missing values"):
        shop.read("picked", partition="id")


@pytest.mark.parametrize(
    ("column", "options"), [("t", {}), ("id", {"partition": "id", "rows": 50})], ids=["t", "ranges"]
)
def test_only_what_is_newer_is_sent(shop, tmp_path, monkeypatch, column, options):
    sent = []

    def counting(self, session, *piece, genuine=Relation.batches):
        for batch in genuine(self, session, *piece):
            sent.append(len(batch))
            yield batch

    monkeypatch.setattr(Relation, "batches", counting)
    lake = Lake(tmp_path / "lake", author="you")
    bring = lambda: ingest(lake, f"{shop.uri}::picked", "picked", incremental=column, **options)
    _picked(shop, 0, 100)
    assert bring().rows == 100
    sent.clear()
    assert bring().version is None
    day = shop.kind == "sqlite" and column == "t"  # whose times are compared by the day
    assert sum(sent) == (100 if day else 1), "the greatest again, for equal is not newer"
    _picked(shop, 100, 130)
    done = bring()
    assert (done.rows, done.total) == (30, 130)
    assert lake.read("picked").id.values.tolist() == list(range(130))
    shop("INSERT INTO picked VALUES (NULL, NULL, 'x', NULL)")
    with pytest.raises(ParameterError, match="missing"):
        bring()
    assert lake.version("picked").rows == 130


def test_types_without_a_place_are_named(shop):
    odd = {
        "postgresql": ("b bytea, l integer[], t time", "'\\x01', ARRAY[1], '10:00'", "blt"),
        "mariadb": ("b BLOB, t TIME", "X'01', '10:00'", "bt"),
        "sqlite": ("b, m", "X'01', 'x'", "bm"),
        "duckdb": ("b BLOB, l INTEGER[], t TIME", "'\\x01'::BLOB, [1], TIME '10:00'", "blt"),
    }
    declared, values, names = odd[shop.kind]
    shop(f"CREATE TABLE t (n INTEGER, {declared})", f"INSERT INTO t VALUES (1, {values})")
    if shop.kind == "sqlite":
        shop("INSERT INTO t VALUES (2, X'02', 3)")
    for name in names:
        with pytest.raises(ParameterError, match=f"column '{name}'.*columns="):
            list(shop.read("t", "n", name))
    assert _whole(shop.read("t", "n")).n.values[0] == 1


def test_postgresql_has_more_types(postgres):
    values = (
        "9007199254740993, 'NaN'::numeric, '{\"a\": 1}'::jsonb, gen_random_uuid(), true, 'x'::name"
    )
    values += ", '1.2.3.4'::inet, 'infinity'::timestamp, '-infinity'::date"
    values += ", '2026-09-01 12:00+02'::timestamptz"
    postgres(
        "CREATE TYPE mood AS ENUM ('calm', 'keen')",
        "CREATE TABLE t AS SELECT 'keen'::mood AS m, v.* "
        f"FROM (VALUES ({values})) v(i, n, j, u, b, s, a, t, d, z)",
    )
    ds = _whole(postgres.read("t"))
    assert ds.i.values[0] == 2**53 + 1 and np.isnan(ds.n.values[0])
    assert (ds.m.values[0], ds.j.values[0], ds.a.values[0]) == ("keen", '{"a": 1}', "1.2.3.4/32")
    assert len(ds.u.values[0]) == 36 and ds.b.values[0]
    assert np.isnat(ds.t.values[0]) and np.isnat(ds.d.values[0])
    assert ds.z.values[0] == np.datetime64("2026-09-01T10:00") and ds.z.attrs == {"timezone": "UTC"}
    postgres("CREATE SCHEMA other", "CREATE TABLE other.t AS SELECT 3 AS n")
    assert _whole(postgres.read("other.t")).n.values[0] == 3
    with pytest.raises(
        ParameterError, match="'tt' is not in the tables; known: other.t, t. Did you"
    ):
        postgres.read("tt")
    with pytest.raises(ParameterError, match="gives the column 'n' twice"):
        postgres.read("", query="SELECT 1 AS n, 2 AS n")
    with pytest.raises(WorkFailed, match="division by zero"):
        list(postgres.read("", query="SELECT 1 / (n - 3) AS x FROM other.t"))


def test_sqlite_goes_by_what_is_there(tmp_path):
    "Late texts, numbers that are fractions later, declared types that lie"
    with closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.execute("CREATE TABLE t (late, f NUMERIC, at, not_at, big INTEGER, lie INTEGER)")
        rows = [(None, 1, "2026-01-02", "2026-01-02", 2**62, None)] * 70_000
        rows += [("x", 1.5, "2026-01-02 03:04:05.25", "2026-02-30", None, "y")]
        database.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)", rows)
        database.commit()
    ds = _whole(sn.read_source(tmp_path / "a.db"))
    assert ds.late.values[-1] == "x" and ds.lie.values[-1] == "y"
    assert ds.f.dtype == float and ds.f.values[-1] == 1.5
    assert ds["at"].values[-1] == np.datetime64("2026-01-02T03:04:05.250")
    assert ds.not_at.values[-1] == "2026-02-30"
    assert ds.big.dtype == float, "a whole number that is missing somewhere is a fraction"
    (tmp_path / "no.db").write_text("this is no database, but a text that is long enough for one")
    with pytest.raises(ScalaiError, match="not a database"):
        sn.read_source(tmp_path / "no.db")
    with pytest.raises(ParameterError, match="means 2 databases"):
        sn.read_source(tmp_path / "*.db")


def test_sqlite_knows_the_kinds_of_every_column(tmp_path):
    "Nulls first or between, kinds mixed, an order of texts that only the writer knows"
    from scalai_nb.data.readers.databases.sqlite import Look, SQLite

    some = {"integer": [1, -(2**62)], "real": [0.5, 1e300], "text": ["", "x"], "blob": [b"", b"a"]}
    mixes = [m for n in range(4) for m in permutations(some, n)]
    names = [f"c{i}" for i in range(len(mixes))]
    columns = [[None, None, *(v for k in m for v in some[k])] for m in mixes]

    def read(kinds):  # whole numbers among others are read as they are
        return {"real"} if set(kinds) == {"integer", "real"} else set(kinds)

    with closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.create_collation("ours", lambda a, b: 0)
        database.execute(f"CREATE TABLE t ({', '.join(f'{n} COLLATE ours' for n in names)})")
        rows = [*zip_longest(*columns)] * 2
        database.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(names))})", rows)
        database.commit()
    with closing(SQLite(str(tmp_path / "a.db")).session()) as session:
        assert [*map(read, Look([session], "t").kinds(names))] == [*map(read, mixes)]
        for name, mix in zip(names, mixes, strict=True):  # alone, where no other column is odd
            assert [*map(read, Look([session], "t").kinds([name]))] == [read(mix)]


def test_a_table_of_sqlite_may_be_as_wide_as_it_can_be(tmp_path):
    names = [f"c{i}" for i in range(1_900)]
    with closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.execute(f"CREATE TABLE t ({', '.join(names)})")
        for values in (["a", "2026-01-01"], [None, None], ["2026-01-01", "2026-01-02"]):
            database.execute(f"INSERT INTO t VALUES ({', '.join('?' * 1_900)})", values * 950)
        database.commit()
    ds = _whole(sn.read_source(tmp_path / "a.db"))
    assert list(ds.data_vars) == names and (ds.c0.dtype, ds.c1.dtype.kind) == (object, "M")


@pytest.mark.parametrize(
    "odd",
    ["2026-13-01", "not a date", "2026-01-01Z", "2026-01-01 10", ""]
    + ["2026-01-01 10:00  Z", "2026-01-01 10-00-00", "2026-01-01 10:00+00:00"],
)
def test_one_text_that_is_no_time_keeps_a_column_of_sqlite_as_text(tmp_path, odd):
    with closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.execute("CREATE TABLE t (x TEXT)")
        database.executemany("INSERT INTO t VALUES (?)", [("2026-01-01",), (None,), (odd,)])
        database.commit()
    assert _whole(sn.read_source(f"sqlite://{tmp_path}/a.db::t")).x.values.tolist()[-1] == odd


def test_who_stops_early_leaves_no_thread_and_no_session(shop):
    "The next table is asked for while a block is used, and nobody will take it"
    _picked(shop, 0, 1000)
    before = threading.active_count()
    for _ in range(3):
        blocks = iter(shop.read("picked", rows=30))
        assert next(blocks).sizes["row"] >= 30
        blocks.close()
        assert threading.active_count() == before
    assert sum(b.sizes["row"] for b in shop.read("picked")) == 1000


def test_all_blocks_are_of_one_moment(postgres):
    _picked(postgres, 0, 100)
    blocks = postgres.read("picked", partition="id", rows=30)
    stream = Blocks(postgres.read("picked").source.pinned())
    postgres("DELETE FROM picked WHERE id % 2 = 0", "UPDATE picked SET kg = -1")
    for found in (blocks, stream, stream):
        ds = _whole(found)
        assert ds.id.values.tolist() == list(range(100)) and ds.kg.min() == 0
    there = "import pickle, sys; b = pickle.load(sys.stdin.buffer); print(b[3].id.values.tolist())"
    told = subprocess.run(
        [sys.executable, "-c", there], input=pickle.dumps(blocks), capture_output=True, check=True
    )
    assert told.stdout == b"[90, 91, 92, 93, 94, 95, 96, 97, 98, 99]\n"
    sent = pickle.dumps(blocks)
    del blocks, found
    with pytest.raises(ScalaiError, match="snapshot"):
        pickle.loads(sent)[0]


@pytest.fixture
def small_pieces(monkeypatch):
    "Pieces of few rows, so that small tables have many"
    from scalai_nb.data.readers.databases import postgresql, sqlite

    for module, name, value in ((sqlite, "_ROWS", 8), (sqlite, "_PIECE", 64)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(postgresql, "_PIECE", 1)
    return lambda shop, table="picked": len(shop.read(table).source.pieces)


@pytest.mark.parametrize("shop", ["postgresql", "sqlite"], indirect=True)
def test_sessions_side_by_side_give_each_row_once(shop, small_pieces):
    _picked(shop, 0, 1000)
    assert small_pieces(shop) > 5
    kept = set(range(1000))
    for delete in ("id % 3 = 0", "id < 200", "id BETWEEN 400 AND 900", "id > 950", "1 = 1"):
        assert _whole(shop.read("picked")).id.values.tolist() == sorted(kept), delete
        assert _whole(shop.read("picked", "tree")).sizes["row"] == len(kept)
        shop(f"DELETE FROM picked WHERE {delete}")
        ids = _whole(shop.read("picked")).id.values.tolist()
        kept = {i for i in kept if i in ids}
        assert len(kept) == len(ids)
    _picked(shop, 1, 30)
    shop("INSERT INTO picked (id) VALUES (NULL)")
    assert np.isnan(_whole(shop.read("picked")).id.values[-1]), "missing in the last piece"


@pytest.mark.parametrize("seed", range(12))
def test_a_table_of_sqlite_is_whole_whatever_numbers_its_rows_have(seed, tmp_path, small_pieces):
    shop = _shop("sqlite", None, tmp_path)
    rng = np.random.default_rng(seed)
    ends = [-(2**63), 2**63 - 1, 0, -1][: seed % 5]
    far = rng.integers(-(2**62), 2**62, seed % 3 * 200).tolist()
    numbers = sorted({*ends, *far, *rng.integers(-500, 500, rng.integers(1, 300)).tolist()})
    name, columns = (("rowid", "x"), ("oid", "rowid"), ("_rowid_", "RowID, oid"))[seed % 3]
    values = ", ".join(f"({n}, {i}{', 1' * (seed % 3 == 2)})" for i, n in enumerate(numbers))
    shop(
        f"CREATE TABLE t ({columns})",
        f"INSERT INTO t ({name}, {columns}) VALUES {values}",
        "CREATE VIEW v AS SELECT * FROM t",
        f"CREATE TABLE bare (number INTEGER PRIMARY KEY, {columns}) WITHOUT ROWID",
        f"INSERT INTO bare SELECT {name}, * FROM t",
        "CREATE TABLE taken (rowid INTEGER, oid INTEGER, _rowid_ INTEGER)",
        "INSERT INTO taken SELECT 1, 2, 3 FROM t",
    )
    first = columns.partition(",")[0]
    assert (small_pieces(shop, "t") > 1) == (numbers[-1] - numbers[0] >= 7)
    for table in ("t", "v"):
        ds = _whole(shop.read(table))
        assert ds[first].values.tolist() == list(range(len(numbers)))
    for table in ("bare", "taken", "v"):
        assert small_pieces(shop, table) == 1
        assert _whole(shop.read(table)).sizes["row"] == len(numbers)


_GIVES = """
import sqlite3, sys
import adbc_driver_postgresql.dbapi as driver
kind, address = sys.argv[1:]
while True:
    connection = (sqlite3 if kind == "sqlite" else driver).connect(address)
    cursor = connection.cursor()
    try:
        cursor.execute("UPDATE picked SET kg = kg - 1 WHERE id < 200")
        cursor.execute("UPDATE picked SET kg = kg + 1 WHERE id >= 200")
        connection.commit()
        print(end=".", flush=True)
    except sqlite3.OperationalError:  # a reader has locked the file
        connection.rollback()
    cursor.close()
    connection.close()
"""


@contextmanager
def _giver(shop):
    "Another process takes from the first rows what it gives to the last; how often it has done so"
    told = [sys.executable, "-c", _GIVES, shop.kind, shop.address]
    with subprocess.Popen(told, stdout=subprocess.PIPE) as process:
        os.set_blocking(process.stdout.fileno(), False)
        given = []

        def count():
            assert process.poll() is None
            given.append(len(process.stdout.read() or b""))
            return sum(given)

        try:
            yield count
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("shop", "log", "times"),
    [("postgresql", "", 60), ("sqlite", "WAL", 300), ("sqlite", "DELETE", 300)],
    indirect=["shop"],
)
def test_sessions_side_by_side_see_one_moment(shop, log, times, small_pieces, monkeypatch):
    monkeypatch.setattr("scalai_nb.data.readers.databases.relations.thread_count", lambda: 4)
    _picked(shop, 0, 400)
    if log:
        shop(f"PRAGMA journal_mode = {log}")
    whole = _whole(shop.read("picked")).kg.values.sum()
    with _giver(shop) as given:
        while given() < times:
            with suppress(WorkFailed):  # the file is locked by the writer
                assert _whole(shop.read("picked")).kg.values.sum() == whole


def test_a_server_without_another_connection_is_read_by_fewer(postgres, small_pieces, monkeypatch):
    monkeypatch.setattr("scalai_nb.data.readers.databases.relations.thread_count", lambda: 4)
    _picked(postgres, 0, 1000)
    quoted = PASSWORD.replace("'", "''")
    postgres(
        f"CREATE ROLE thin LOGIN CONNECTION LIMIT 2 PASSWORD '{quoted}'",
        "GRANT USAGE ON SCHEMA public TO thin",
        "GRANT SELECT ON picked TO thin",
    )
    source = sn.read_source(f"{postgres.uri.replace('reader', 'thin')}::picked").source
    with source.sessions(len(source.pieces)) as sessions:
        assert len(sessions) <= 2 < len(source.pieces)
    assert _whole(source).id.values.tolist() == list(range(1000))


@pytest.mark.parametrize("shop", ["mariadb", "sqlite"], indirect=True)
def test_a_change_that_cannot_be_kept_out_is_an_error(shop):
    _picked(shop, 0, 100)
    blocks = shop.read("picked", partition="id", rows=10)
    shop("DELETE FROM picked WHERE id = 15")
    assert blocks[0].sizes["row"] == 10
    with pytest.raises(WorkFailed, match="9 rows have .* 10 were counted"):
        blocks[1]


@pytest.mark.parametrize("shop", ["postgresql", "mariadb"], indirect=True)
def test_rows_that_come_while_it_is_read_come_next_time(shop, tmp_path, monkeypatch):
    lake = Lake(tmp_path / "lake", author="you")
    _picked(shop, 0, 10)
    begun = []

    def grows(self, session, *piece, genuine=Relation.batches):
        begun.append(self)
        if len(begun) == 2:
            _picked(shop, 10, 20)
            shop("INSERT INTO picked VALUES (5, -5, 'late', NULL)")
        return genuine(self, session, *piece)

    monkeypatch.setattr(Relation, "batches", grows)
    uri = f"{shop.uri}::picked"
    assert ingest(lake, uri, "picked", incremental="id").rows == 10
    assert ingest(lake, uri, "picked", incremental="id").rows == 10


def test_a_password_is_nowhere(shop, tmp_path, monkeypatch, caplog):
    if shop.kind in ("sqlite", "duckdb"):
        with pytest.raises(ParameterError, match="'password' is not in the options"):
            shop.read("t", password="X")
        return
    caplog.set_level(logging.DEBUG)
    _picked(shop, 0, 3)
    lake = Lake(tmp_path / "lake", author="you")
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    monkeypatch.setenv("SCALAI_PASSWORD", "wrong-one")
    uri = f"{shop.uri}::picked"
    blocks = sn.read_source(uri, password="SHOP_PASSWORD")
    done = ingest(lake, uri, "picked", password="SHOP_PASSWORD")
    said = [
        repr(blocks.source),
        str(pickle.dumps(blocks)),
        lake.version("picked").message,
        str(done),
    ]
    assert "reader" not in lake.version("picked").message
    for variable in (None, "NO_SUCH_PASSWORD", PASSWORD):
        with pytest.raises((ParameterError, WorkFailed)) as raised:
            sn.read_source(uri, password=variable)
        said.append(f"{raised.value} {raised.value.__cause__}")
    assert "SCALAI_PASSWORD" in said[-3] and "NO_SUCH_PASSWORD is not set" in said[-2]
    for text in (*said, caplog.text):
        assert "pears" not in text and "wrong-one" not in text
    for address in (uri.replace("reader@", "reader:hush@"), f"{shop.uri}?password=hush::t"):
        with pytest.raises(ParameterError, match="has a password in it") as raised:
            sn.read_source(address)
        assert "hush" not in str(raised.value)
    with pytest.raises(WorkFailed, match="start the server"):
        sn.read_source(f"{shop.uri.partition('://')[0]}://reader@127.0.0.1:1/shop::picked")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_server_that_is_killed_in_the_middle(kind, request, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALAI_PASSWORD", PASSWORD)
    server = request.getfixturevalue("pg" if kind == "postgresql" else "maria")
    shop = _shop(kind, request.getfixturevalue, tmp_path)
    _picked(shop, 0, 10)
    lake = Lake(tmp_path / "lake", author="you")
    before = ingest(lake, f"{shop.uri}::picked", "picked").version
    many = "SELECT a.id FROM picked a, picked b, picked c, picked d, picked e, picked f, picked g"
    seen = []

    def killed(*_):
        seen.append(1)
        if len(seen) == 3:
            server.stop(signal.SIGKILL)

    with pytest.raises(ScalaiError) as raised:
        ingest(lake, shop.uri, "picked", query=many, rows=5_000, progress=killed)
    assert len(seen) >= 3 and kind[:5] in str(raised.value).replace("mysql", "mariadb")
    assert lake.version("picked").id == before and lake.read("picked").sizes["row"] == 10
    server.start()
    assert ingest(lake, f"{shop.uri}::picked", "picked").rows == 10


@pytest.mark.slow
def test_a_table_larger_than_memory_streams(postgres):
    wide = ", ".join(f"i / {k}.0::float8 AS c{k}" for k in range(1, 11))
    blocks = postgres.read("", query=f"SELECT {wide} FROM generate_series(1, 3000000) s(i)")
    process, rows, most = psutil.Process(os.getpid()), 0, 0
    before = process.memory_info().rss
    for block in blocks:
        rows += block.sizes["row"]
        most = max(most, process.memory_info().rss - before)
    assert rows == 3_000_000 and most < 120e6, f"{most / 1e6:.0f} MB of 240"
