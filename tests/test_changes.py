"""What is committed in a table of PostgreSQL comes once, in its order; what is lost is said"""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from databases import PASSWORD, postgresql
from streams import check_kills

from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.readers.located import Address
from scalai_nb.data.readers.databases.postgresql import PostgreSQL, PostgreSQLSession, conninfo
from scalai_nb.data.readers.databases.relations import server_of
from scalai_nb.data.streams.changes import stream
from scalai_nb.data.streams.landing import Landing, land
from scalai_nb.errors import ParameterError, StreamError

pytest.importorskip("adbc_driver_postgresql")


@pytest.fixture(scope="module")
def server():
    with postgresql() as server:
        yield server


@pytest.fixture
def shop(server, monkeypatch):
    "A table, a function that runs SQL, and one that opens its stream"
    monkeypatch.setenv("SCALAI_PASSWORD", PASSWORD)
    place = f"postgresql://reader@127.0.0.1:{server.port}/postgres"
    database = PostgreSQL(server_of(Address.of(place)))

    class Shop:
        opened = []
        uri = place

        def __call__(self, *statements):
            told = conninfo(database.server, PASSWORD)
            session = PostgreSQLSession("here", told, reads=False)
            for statement in statements:
                session.rows(statement)
            session.close()

        def stream(self, positions=None, table="orders"):
            found = stream(Address.of(f"{place.replace(':', '+changes:', 1)}::{table}"))
            self.opened.append(found)
            if positions is not None:
                found.seek(positions)
            return found

    shop = Shop()
    shop('CREATE TABLE orders (id INTEGER PRIMARY KEY, "the note" TEXT, x FLOAT8, ok BOOLEAN)')
    yield shop
    for found in shop.opened:
        found.close()
    shop(
        "DROP TABLE IF EXISTS orders",
        "SELECT count(pg_drop_replication_slot(slot_name)::text) FROM pg_replication_slots",
    )


def _told(records):
    return [
        (records.origin(i).key.decode(), value and json.loads(value))
        for i, value in enumerate(records.values)
    ]


def test_each_change_is_a_record(shop):
    first = shop.stream({})
    began = datetime.now(UTC)
    shop(
        "INSERT INTO orders VALUES (1, E'it''s\nnew-tuple: id[integer]:9', 0.5, true)",
        "UPDATE orders SET x = 'NaN' WHERE id = 1",
        "UPDATE orders SET id = 2 WHERE id = 1",
        "BEGIN",
        "INSERT INTO orders VALUES (3)",
        "INSERT INTO orders VALUES (4)",
        "COMMIT",
        "BEGIN",
        "INSERT INTO orders VALUES (5)",
        "ROLLBACK",
        "CREATE TABLE other (id INTEGER)",
        "INSERT INTO other VALUES (1)",
        "DROP TABLE other",
        "DELETE FROM orders WHERE id = 2",
    )
    records, positions = first.poll(100, 5)
    note = "it's\nnew-tuple: id[integer]:9"
    row = {"id": 1, "the note": note, "x": 0.5, "ok": True}
    empty = {"the note": None, "x": None, "ok": None}
    assert _told(records) == [
        ("1", row),
        ("1", row | {"x": None}),
        ("1", None),
        ("2", row | {"x": None, "id": 2}),
        ("3", {"id": 3} | empty),
        ("4", {"id": 4} | empty),
        ("2", None),
    ]
    assert all(began <= records.origin(i).time <= datetime.now(UTC) for i in range(7))
    assert len(first.poll(100, 0.2)[0]) == 0
    assert len(shop.stream(first.at(began)).poll(100, 1)[0]) == 7
    assert len(shop.stream(first.at(records.origin(6).time)).poll(100, 1)[0]) == 1
    first.acknowledge(positions)
    assert len(shop.stream(positions).poll(100, 0.2)[0]) == 0


def test_reading_goes_on_at_any_position(shop):
    one = shop.stream({})
    for start in (0, 10, 20):
        shop(f"INSERT INTO orders SELECT i FROM generate_series({start}, {start + 9}) s(i)")
    found, places = [], []
    while len(found) < 30:
        records, positions = one.poll(4, 5)
        assert 0 < len(records) <= 4
        found += [key for key, _ in _told(records)]
        places.append((len(found), positions))
    assert found == [str(i) for i in range(30)]
    for acknowledged in (False, True):
        for read, place in places:
            if acknowledged:
                one.acknowledge(place)
            again = shop.stream(place)
            rest = []
            while more := _told(again.poll(7, 0)[0]):
                rest += [key for key, _ in more]
            assert rest == found[read:]


def test_a_restart_loses_nothing(shop, server):
    one = shop.stream({})
    shop("INSERT INTO orders VALUES (1)")
    records, positions = one.poll(10, 5)
    assert len(records) == 1
    server.stop()
    with pytest.raises(StreamError, match="postgresql://"):
        one.poll(10, 0.1)
    server.start()
    shop("INSERT INTO orders VALUES (2)")
    assert [key for key, _ in _told(one.poll(10, 5)[0])] == ["2"]
    assert [key for key, _ in _told(shop.stream(positions).poll(10, 5)[0])] == ["2"]


def test_a_gap_is_named(shop):
    one = shop.stream({})
    shop("INSERT INTO orders VALUES (1)", "INSERT INTO orders VALUES (2)")
    _, middle = one.poll(1, 5)
    _, end = one.poll(1, 5)
    one.acknowledge(end)
    with pytest.raises(StreamError, match=f"begins at .* from {middle['0']} on are lost"):
        shop.stream(middle)
    shop("INSERT INTO orders VALUES (3)", "TRUNCATE orders")
    assert [key for key, _ in _told(one.poll(10, 5)[0])] == ["3"], "what comes before is given"
    with pytest.raises(StreamError, match="was truncated after"):
        one.poll(10, 5)
    one.close()
    shop(f"SELECT pg_drop_replication_slot('{one.slot}')::text")
    with pytest.raises(StreamError, match=f"is gone, so that the changes from {end['0']} on"):
        shop.stream(end)
    shop("CREATE TABLE keyless (n INTEGER)")
    with pytest.raises(ParameterError, match="0 columns as its primary key"):
        shop.stream(table="keyless")
    with pytest.raises(ParameterError, match="'order' is not in the tables.*orders"):
        shop.stream(table="order")
    shop("DROP TABLE keyless")


def test_a_key_may_be_several_columns(shop, tmp_path):
    lake, how = Lake(tmp_path / "lake"), Landing(key=("shop", "nr"))
    shop("CREATE TABLE sold (nr INTEGER, x INTEGER, shop TEXT, PRIMARY KEY (shop, nr))")
    shop.stream({}, "sold")
    insert = "INSERT INTO sold SELECT i % 3, i, 'é' || i / 3 FROM generate_series(0, 8) s(i)"
    shop(insert, "UPDATE sold SET x = 50 WHERE nr = 1 AND shop = 'é1'")
    bring = lambda: land(shop.stream(table="sold"), lake, "sold", how, idle=0.3)
    assert bring().rows == 9
    shop("DELETE FROM sold WHERE nr = 2", "UPDATE sold SET nr = 7 WHERE x = 0")
    shop("DELETE FROM sold WHERE x = 3", "INSERT INTO sold VALUES (0, 33, 'é1')")
    done = bring()
    assert (done.deleted, done.dead) == (4, 0)
    there = lake.read("sold").compute()
    found = zip(*(there[n].values.tolist() for n in ("shop", "nr", "x")), strict=True)
    wanted = {("é0", 1, 1), ("é1", 1, 50), ("é2", 0, 6), ("é2", 1, 7), ("é0", 7, 0), ("é1", 0, 33)}
    assert sorted(found) == sorted(wanted)
    shop("DROP TABLE sold")


@pytest.mark.parametrize("slot", ["moved", "dropped", "lost"])
def test_a_gap_is_gone_past_if_it_may_be(shop, tmp_path, slot):
    lake, how = Lake(tmp_path / "lake"), Landing(key="id", types={"the note": "string"})

    def bring(**more):
        return land(shop.stream(), lake, "orders", replace(how, **more), idle=0.2)

    add = lambda i: shop(f"INSERT INTO orders VALUES ({i}, '', 0, true)")
    bring()
    add(1)
    reached = bring().positions
    add(2)
    one = shop.stream(reached)
    if slot == "moved":
        one.acknowledge(one.poll(1, 5)[1])
    if slot == "dropped":
        shop(f"SELECT pg_drop_replication_slot('{one.slot}')::text")
    if slot == "lost":
        shop("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()")
        for _ in range(3):
            shop("SELECT pg_switch_wal()::text", "CREATE TABLE t ()", "DROP TABLE t", "CHECKPOINT")
        shop("ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")
    with pytest.raises(StreamError, match=rf"records from position {reached['0']} .*on_gap='skip'"):
        bring()
    bring(on_gap="skip")
    add(3)
    done = bring(on_gap="skip")
    assert lake.read("orders")["id"].values.tolist() == [1, 3]
    (gap,) = lake.state("orders")["streams"][done.stream]["gaps"]
    assert gap["from"] == reached["0"] and f"from position {reached['0']}" in str(
        [lake.version("orders", v).message for v in lake.log("orders")]
    )


# ---- a consumer that is killed


NUMBERS = "CREATE TABLE numbers (partition INTEGER, n INTEGER PRIMARY KEY, text TEXT)"


def killed(shop, work, tmp_path, n, kills, rows):
    "Where kills fell, while changes of a table of `n` rows are landed, or its new rows ingested"
    shop("DROP TABLE IF EXISTS numbers", NUMBERS)
    uri, options = shop.uri, {"n": n}
    if work == "land":
        uri, options = uri.replace(":", "+changes:", 1), {}
        shop.stream({}, "numbers")
        inserts = (f"({start}, {start + 999})" for start in range(0, n, 1000))
        shop(*(f"INSERT INTO numbers SELECT 0, i, i FROM generate_series{i} s(i)" for i in inserts))
    how = {"work": work, "options": options, "partitions": 1, "n": n, "kills": kills, "rows": rows}
    return check_kills(f"{uri}::numbers", tmp_path / "lake", **how)


BOTH = pytest.mark.parametrize("work", ["land", "ingest"])


@BOTH
def test_who_is_killed_brings_each_row_once(shop, work, tmp_path):
    assert sum(killed(shop, work, tmp_path, 20_000, 3, 1_500).values()) == 3


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@BOTH
def test_campaign_a_million_rows_and_fifty_kills(shop, work, tmp_path):
    fell = killed(shop, work, tmp_path, 1_000_000, 50, 6_000)
    assert min(fell[where] for where in ("before", "in", "after")) >= 5, fell
