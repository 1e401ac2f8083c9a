"""Records that become rows: types, dead letters, late rows, keys, gaps, two consumers"""

import json
from datetime import UTC, datetime, timedelta
from threading import Event
from time import sleep

import pandas as pd
import pytest

from scalai_nb.cli import main
from scalai_nb.data.contract import Contract
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.sources import as_dataset
from scalai_nb.data.streams.embedded import Log, LogStream
from scalai_nb.data.streams.landing import Consumer, Landing, counted, land
from scalai_nb.errors import Conflict, ContractViolation, ParameterError, StreamError


@pytest.fixture
def orders(tmp_path):
    with Log(tmp_path / "orders", segment=2000) as log:
        yield log


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake")


def put(log, *records, keys=None):
    values = [r if r is None or isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    return log.append(values, keys)


def bring(log, lake, how=Landing(), name="orders", **more):
    stream = LogStream(log.path)
    try:
        return land(stream, lake, name, how, idle=0.05, **more)
    finally:
        stream.close()


def ids(lake, name="orders"):
    return lake.read(name)["id"].values.tolist()


def test_each_record_is_a_row_or_a_dead_letter(orders, lake):
    put(orders, {"id": 1, "x": 1.5}, b"{", {"id": "2", "x": 1.0}, b"\xff", b"", b"[1]", None)
    put(orders, {"id": 3, "x": None, "at": {"city": "Graz"}}, b'{"id": 4}{"id": 5}')
    first = bring(orders, lake)
    assert (first.rows, first.dead, first.commits) == (2, 7, 1)
    put(
        orders,
        {"id": 6, "x": 2, "new": 1},
        {"x": 7.0},
        {"id": 8.5},
        {"id": 9, "at": {"city": "Linz"}},
    )
    put(orders, b'{"id":\n10}')
    then = bring(orders, lake)
    assert (then.rows, then.dead) == (2, 3) and ids(lake) == [1, 3, 9, 10]
    assert lake.read("orders")["at.city"].values.tolist()[1:3] == ["Graz", "Linz"]
    dead = lake.read("orders.dead")
    assert dead["position"].values.tolist() == ["1", "2", "3", "4", "5", "6", "8", "9", "10", "11"]
    assert dead["raw"].values[2] == "/w==" and dead["encoding"].values[2] == "base64"
    reasons = dead["reason"].values.tolist()
    assert "deletes, and no key=" in reasons[5] and "it has 'new'" in reasons[7]
    assert "it lacks 'id'" in reasons[8]
    assert counted(then).gauges["scalai_stream_lag_records", "orders", then.stream, "0"] == 0
    ignoring = Landing(new_fields="ignore")
    put(orders, {"id": 12, "x": 2, "new": 1})
    assert bring(orders, lake, ignoring).rows == 1


def test_nothing_but_bad_records_waits_for_a_first_row(orders, lake):
    put(orders, b"{", b"}")
    assert bring(orders, lake).dead == 2 and lake.names() == ["orders.dead"]
    assert bring(orders, lake).dead == 0
    put(orders, {"id": 1})
    assert bring(orders, lake).rows == 1 and lake.version("orders.dead").rows == 2


def test_rows_replace_those_with_their_key_and_deletes_take_them_out(orders, lake):
    how = Landing(key="id")
    put(orders, {"id": 1, "x": 1.0}, {"id": 2, "x": 1.0}, {"id": 1, "x": 2.0}, {"x": 3.0})
    assert bring(orders, lake, how).rows == 2
    put(orders, None, {"id": 3, "x": 1.0}, None, {"id": 3, "x": 4.0}, keys=[b"2", b"3", b"3", b"3"])
    put(orders, None, keys=[b"seven"])
    done = bring(orders, lake, how)
    found = lake.read("orders")
    assert dict(zip(ids(lake), found["x"].values.tolist(), strict=True)) == {1: 2.0, 3: 4.0}
    assert (done.rows, done.deleted, done.dead) == (1, 1, 1)
    assert lake.read("orders.dead")["reason"].values.tolist() == [
        "it lacks its key, 'id'",
        "it deletes, and its key is no 'id'",
    ]
    put(orders, None, None, keys=[b"1", b"3"])
    assert bring(orders, lake, how).deleted == 2 and ids(lake) == []
    with pytest.raises(ParameterError, match="'nr' is not in the columns"):
        put(orders, {"id": 9, "x": 1.0})
        bring(orders, lake, Landing(key="nr"))


def test_a_key_of_several_columns_is_deleted_by_an_object(orders, lake):
    how = Landing(key=("id", "at"))
    put(orders, *({"id": i, "at": at, "x": 1} for i in (1, 2) for at in ("a", "b")))
    put(orders, {"id": 1, "at": "b", "x": 2}, {"id": 1, "x": 2})
    first = bring(orders, lake, how)
    assert (first.rows, first.dead) == (4, 1)
    keys = [{"id": 1, "at": "b"}, {"at": "a", "id": 2}, {"id": 1}, {"id": 1, "at": 2}, [1], 7]
    put(orders, *[None] * 7, keys=[*(json.dumps(k).encode() for k in keys), b"{"])
    done = bring(orders, lake, how)
    assert (done.deleted, done.dead) == (2, 5)
    found = lake.read("orders")
    assert [*zip(ids(lake), found["at"].values.tolist(), strict=True)] == [(1, "a"), (2, "b")]
    reasons = set(lake.read("orders.dead")["reason"].values.tolist())
    assert reasons == {"it lacks its key, 'id', 'at'", "it deletes, and its key is no 'id', 'at'"}


def test_late_rows_are_the_same_however_batches_are_cut(orders, tmp_path):
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    minutes = [0, 30, -40, 10, 90, 29, 31, 60]
    put(
        orders,
        *({"id": i, "at": f"{noon + timedelta(minutes=m):%FT%TZ}"} for i, m in enumerate(minutes)),
    )
    put(orders, {"id": 99, "at": f"{datetime.now(UTC) + timedelta(days=3):%FT%TZ}"})
    for rows in (1, 3, 100):
        lake = Lake(tmp_path / f"lake-{rows}")
        done = bring(orders, lake, Landing(time="at", lateness=3600, rows=rows))
        assert (done.rows, done.late, done.dead) == (6, 2, 1)
        assert ids(lake, "orders.late") == [2, 5] and ids(lake) == [0, 1, 3, 4, 6, 7]
        assert "in the future" in lake.read("orders.dead")["reason"].values[0]
    lake = Lake(tmp_path / "kept")
    assert bring(orders, lake, Landing(time="at", lateness=3600, late="keep")).rows == 8
    put(orders, {"id": 100, "at": f"{noon - timedelta(hours=9):%FT%TZ}"})
    lake = Lake(tmp_path / "lake-3")
    assert bring(orders, lake, Landing(time="at", lateness=3600)).late == 1


def test_what_was_set_aside_before_a_failed_commit_is_not_set_aside_again(
    orders, lake, monkeypatch
):
    put(orders, {"id": 1}, b"{", {"id": 2})
    with monkeypatch.context() as m:
        m.setattr(Consumer, "_write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            bring(orders, lake)
    assert lake.names() == ["orders.dead"]
    put(orders, b"}")
    done = bring(orders, lake, Landing(rows=1))
    assert ids(lake) == [1, 2] and done.dead == 1 and lake.version("orders.dead").rows == 2


@pytest.mark.parametrize("key", [None, "id"])
def test_of_two_consumers_one_is_told(orders, lake, key):
    put(orders, {"id": 1}, {"id": 2})
    streams = [LogStream(orders.path) for _ in range(2)]
    one, other = (Consumer(s, lake, "orders", Landing(key=key)) for s in streams)
    for consumer in (one, other):
        consumer.begin(None)
    one.run(0.05, Event())
    with pytest.raises(Conflict, match="another one has gone on. Nothing of this batch"):
        other.run(0.05, Event())
    assert ids(lake) == [1, 2]
    for stream in streams:
        stream.close()


def test_a_gap_is_named_and_kept(orders, lake):
    put(orders, {"id": 0})
    bring(orders, lake)
    for i in range(1, 500):
        put(orders, {"id": i})
    orders.keep_bytes = 3000
    orders.expire()
    (first, _) = LogStream(orders.path).bounds()["0"]
    with pytest.raises(StreamError, match=f"partition 0: records 1 to {first - 1} are not kept"):
        bring(orders, lake)
    done = bring(orders, lake, Landing(on_gap="skip"))
    assert ids(lake) == [0, *range(first, 500)]
    assert lake.state("orders")["streams"][done.stream]["gaps"] == [
        {"partition": "0", "from": 1, "to": first - 1}
    ]
    assert f"records 1 to {first - 1}" in lake.version("orders").message
    assert bring(orders, lake).rows == 0


def test_where_a_dataset_begins(orders, lake):
    put(orders, {"id": 1})
    between = datetime.now(UTC)
    put(orders, {"id": 2})
    assert bring(orders, lake, name="latest", since="latest").rows == 0
    assert bring(orders, lake, name="later", since=between.isoformat()).rows == 1
    assert bring(orders, lake, name="all", since="earliest").rows == 2
    assert bring(orders, lake, name="second", since={"0": 1}).rows == 1
    with pytest.raises(ParameterError, match="goes on there; to begin elsewhere"):
        bring(orders, lake, name="all", since="earliest")
    with pytest.raises(ParameterError, match="'yesterday' is no place to begin"):
        bring(orders, lake, name="other", since="yesterday")


def test_a_broker_that_is_away_is_waited_for(orders, lake, monkeypatch, caplog):
    put(orders, {"id": 1})
    poll, failures = LogStream.poll, [StreamError("away")] * 2

    def away(*words):
        if failures:
            raise failures.pop()
        return poll(*words)

    monkeypatch.setattr(LogStream, "poll", away)
    assert bring(orders, lake).rows == 1 and "away; tried again in 0.5 s" in caplog.text
    failures += [StreamError("away")] * 9
    with pytest.raises(StreamError, match="away"):
        bring(orders, lake, Landing(away=0.1))
    assert ids(lake) == [1]


def test_csv_text_and_a_large_record(orders, lake, tmp_path):
    put(orders, b"1,apple", b"2,pear\r\n", b"3", b"4,a,b")
    how = Landing("csv:id,fruit", types={"id": "int64"})
    assert bring(orders, lake, how, "csv").dead == 2 and ids(lake, "csv") == [1, 2]
    assert bring(orders, lake, Landing("raw"), "raw").rows == 4
    with pytest.raises(ParameterError, match="csv names no column"):
        Landing("csv") and bring(orders, lake, Landing("csv"), "other")
    with Log(tmp_path / "large") as log:
        text = "a" * 100 * 2**20
        log.append(
            [json.dumps({"id": i, "text": t}).encode() for i, t in enumerate(("b", text, "c"))]
        )
        assert bring(log, lake, name="large").rows == 3
    assert [len(t) for t in lake.read("large")["text"].values] == [1, len(text), 1]


def test_what_waits_behind_a_commit_that_fails_is_not_committed(orders, lake, monkeypatch):
    orders.append([json.dumps({"id": i}).encode() for i in range(40)])
    write, calls = Consumer._write, []

    def failing(self, ready, new):
        calls.append(new["positions"])
        if len(calls) == 2:
            sleep(0.5)  # until the next one waits
            raise OSError("the disk is full")
        return write(self, ready, new)

    with monkeypatch.context() as m:
        m.setattr(Consumer, "_write", failing)
        with pytest.raises(OSError, match="full"):
            land(LogStream(orders.path), lake, "orders", Landing(rows=10), idle=0.1)
    assert len(calls) == 2 and lake.read("orders")["id"].values.tolist() == [*range(10)]
    assert land(LogStream(orders.path), lake, "orders", idle=0.1).rows == 30
    assert lake.read("orders")["id"].values.tolist() == [*range(40)]


def test_a_contract_says_the_types_and_what_rows_are_held_to(orders, lake, tmp_path, monkeypatch):
    good = {"id": 1, "kg": 2.5, "place": "Graz"}
    held = Contract.infer(as_dataset(pd.DataFrame([good])), key="id").amend("kg", min=0, max=9)
    put(orders, good | {"kg": 2}, good | {"id": 2, "kg": 3.5}, good | {"id": 3, "kg": -50})
    put(orders, good | {"id": 4, "ripe": True}, good | {"id": "five"})
    for rows in (1, 100):
        name = f"orders{rows}"
        how = Landing(contract=held, on_breach="quarantine", rows=rows)
        done = bring(orders, lake, how, name)
        assert (done.rows, done.aside, done.dead) == (2, 1, 2)
        assert [str(lake.read(name)[c].dtype) for c in ("id", "kg")] == ["int64", "float64"]
        assert lake.read(f"{name}.quarantine")["rule"].values.tolist() == ["kg range"]
        assert counted(done).counters["scalai_stream_aside_total", name, done.stream] == 1
    put(orders, good | {"id": 6, "kg": -60})
    assert bring(orders, lake, name="orders1").aside == 1, "the dataset remembers"
    with pytest.raises(ContractViolation, match="kg"):
        bring(orders, lake, Landing(on_breach="reject"), "orders100")
    (tmp_path / "settings.ini").write_text("[laptop]\nlake = lake\n")
    (tmp_path / "held.json").write_text(held.to_json())
    monkeypatch.chdir(tmp_path)
    for name, contract in (("byfile", "held.json"), ("byname", "orders1")):
        words = ["stream", f"log://{orders.path}", name, "--once", "--contract", contract]
        with pytest.raises(SystemExit) as ended:
            main([*words, "--on-breach", "quarantine", "--option", "nonsense=1"])
        assert ended.value.code == 2
        with pytest.raises(SystemExit) as ended:
            main([*words, "--on-breach", "quarantine"])
        assert ended.value.code == 0 and lake.version(name).rows == 2


def test_a_schema_that_changes_is_dead_letters_until_the_dataset_has_it(orders, lake):
    put(
        orders, {"id": 1, "x": 1}, {"id": 2, "x": 2}, {"id": 3, "x": 2.5}, {"id": 4, "x": 3, "y": 1}
    )
    for rows in (2, 3):  # it changes between two batches; within one
        done = bring(orders, lake, Landing(rows=rows), f"by{rows}")
        assert (done.rows, done.dead) == ((2, 2) if rows == 2 else (3, 1))
    reasons = lake.read("by2.dead")["reason"].values.tolist()
    assert "it has 'y'" in reasons[1] and len(reasons) == 2
    put(orders, {"key": 5, "x": 1}, {"id": "6", "x": 1}, {"id": 7, "x": 7})
    done = bring(orders, lake, name="by2")
    assert (done.rows, done.dead) == (1, 2) and ids(lake, "by2") == [1, 2, 7]
    running = Consumer(LogStream(orders.path), lake, "by2", Landing())
    running.begin(None)
    lake.evolve("by2", add={"y": "float64"})
    put(orders, {"id": 8, "x": 8, "y": 1})
    with pytest.raises(Conflict, match="other columns by now .*'y'.* start again"):
        running.run(0.05, Event())
    running.stream.close()
    assert bring(orders, lake, name="by2").rows == 1
    assert lake.read("by2")["y"].values.tolist()[-1] == 1 and ids(lake, "by2")[-1] == 8


def test_partitions_that_are_added_later_are_landed(orders, lake):
    put(orders, {"id": 0})
    consumer = Consumer(LogStream(orders.path), lake, "orders", Landing())
    consumer.begin(None)
    for i in (1, 2):
        consumer.run(0.05, Event())
        with Log(orders.path, str(i)) as later:
            put(later, {"id": i})
    consumer.run(0.05, Event())  # that is running
    consumer.stream.close()
    with Log(orders.path, "3") as later:
        put(later, {"id": 3})
    assert bring(orders, lake).positions == {"0": 1, "1": 1, "2": 1, "3": 1}  # that starts anew
    assert ids(lake) == [0, 1, 2, 3]


def test_a_clock_that_goes_back_loses_nothing(orders, lake, monkeypatch):
    from scalai_nb.data.streams import embedded, landing

    class Past(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(hours=5)

    how = Landing(time="at", lateness=600)
    stamped = lambda i: {"id": i, "at": f"{datetime.now(UTC):%FT%TZ}"}
    put(orders, stamped(0))
    assert bring(orders, lake, how).rows == 1
    monkeypatch.setattr(embedded, "time", lambda: datetime.now().timestamp() - 5 * 3600)
    monkeypatch.setattr(landing, "datetime", Past)
    put(orders, stamped(1), b"{")
    done = bring(orders, lake, how)
    assert (done.rows, done.dead, done.late) == (1, 1, 0) and ids(lake) == [0, 1]
