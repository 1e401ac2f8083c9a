"""Dead letters that are read again: each a row once, whoever dies in between; the others stay"""

import json

import pandas as pd
import pytest

from scalai_nb.cli import main
from scalai_nb.data.contract import Contract
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.sources import as_dataset
from scalai_nb.data.streams.embedded import Log, LogStream
from scalai_nb.data.streams.landing import Landing, land
from scalai_nb.data.streams.replay import DeadLetters, replay
from scalai_nb.errors import Conflict, ParameterError

LAX = Landing(new_fields="ignore", rows=5)


class Killed(BaseException):
    "The process has died here, as far as what is stored can tell"


@pytest.fixture
def orders(tmp_path):
    with Log(tmp_path / "orders") as log:
        yield log


@pytest.fixture
def lake(orders, tmp_path):
    "A lake with a row of `orders`, and dead letters of which each second is a row for who is lax"
    lake = Lake(tmp_path / "lake")
    put(orders, {"id": 0, "x": 0.5})
    bring(orders, lake)
    put(orders, *(r for i in range(1, 6) for r in ({"id": i, "x": i, "new": 1}, b"{%d" % i)))
    assert bring(orders, lake).dead == 10
    return lake


def put(log, *records):
    log.append([r if isinstance(r, bytes) else json.dumps(r).encode() for r in records])


def bring(log, lake, how=Landing()):
    stream = LogStream(log.path)
    try:
        return land(stream, lake, "orders", how, idle=0.05)
    finally:
        stream.close()


def ids(lake):
    return lake.read("orders")["id"].values.tolist()


def raw(lake):
    return lake.read("orders.dead")["raw"].values.tolist()


BROKEN = ["{1", "{2", "{3", "{4", "{5"]


def test_what_is_a_row_now_comes_in_and_the_rest_stays(orders, lake):
    places = lake.read("orders.dead")
    would = replay(lake, "orders", LAX, dry_run=True)
    assert (would.rows, would.dead) == (3, 2) and lake.version("orders.dead").rows == 10
    done = replay(lake, "orders", LAX)
    assert (done.rows, done.dead) == (5, 5) and ids(lake) == [0, 1, 2, 3, 4, 5]
    dead = lake.read("orders.dead")
    assert raw(lake) == BROKEN, "in their order"
    for name in ("stream", "partition", "position", "written"):
        assert dead[name].values.tolist() == places[name].values[1::2].tolist(), "its first place"
    assert replay(lake, "orders", LAX).rows == 0 and raw(lake) == BROKEN
    put(orders, {"id": 6, "new": 1}, {"id": 7, "x": 7})
    assert bring(orders, lake).dead == 1, "the stream goes on where it was"
    assert replay(lake, "orders", LAX).rows == 1 and ids(lake)[-2:] == [7, 6]
    assert raw(lake) == BROKEN


def test_bytes_and_deletes_come_as_they_were(orders, lake):
    orders.append([b"\xff\x00", None])
    bring(orders, lake)
    replay(lake, "orders", LAX)
    dead = lake.read("orders.dead")
    assert dead["encoding"].values.tolist()[-2:] == ["base64", "none"]
    letters = DeadLetters(lake, "orders")
    letters.seek({})
    records, positions = letters.poll(100, 0)
    assert records.values[-2:] == [b"\xff\x00", None] and len(records) == 7
    assert positions == {"0": letters.end} and letters.end == 12 + 7


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", range(5))
def test_whoever_dies_at_a_write_nothing_is_twice_or_lost(lake, monkeypatch, when, nth):
    "Each write of a replay in turn: the letters set aside, the rows, the letters taken out"
    written = []

    def dying(genuine):
        def call(self, name, *more, **told):
            at, _ = len(written), written.append(name)
            if at == nth and when == "before":
                raise Killed
            version = genuine(self, name, *more, **told)
            if at == nth:
                raise Killed
            return version

        return call

    with monkeypatch.context() as patched:
        for verb in ("write", "append"):
            patched.setattr(Lake, verb, dying(getattr(Lake, verb)))
        with pytest.raises(Killed):
            replay(lake, "orders", LAX)
    done = replay(lake, "orders", LAX)
    assert sorted(ids(lake)) == [0, 1, 2, 3, 4, 5]
    assert sorted(raw(lake)) == BROKEN and done.dataset == "orders"


def test_a_letter_that_comes_meanwhile_is_kept(orders, lake, monkeypatch):
    put(orders, {"id": 6, "x": 6, "new": 1})
    genuine, came = DeadLetters.rows, []

    def meanwhile(self, start, stop):
        found = genuine(self, start, stop)
        if start > 9 and not came:  # what stays, as it is about to be written
            came.append(bring(orders, lake).dead)
        return found

    monkeypatch.setattr(DeadLetters, "rows", meanwhile)
    assert replay(lake, "orders", LAX).rows == 5
    assert came == [1] and len(raw(lake)) == 6 and '"id": 6' in raw(lake)[-1]
    assert replay(lake, "orders", LAX).rows == 1 and raw(lake) == BROKEN
    monkeypatch.setattr(DeadLetters, "rows", genuine)
    with pytest.raises(Conflict, match="another one has gone on"):
        first, second = (_consumer(lake) for _ in range(2))
        first.run(0, _never())
        second.run(0, _never())


def _consumer(lake):
    from scalai_nb.data.streams.landing import Consumer

    consumer = Consumer(DeadLetters(lake, "orders"), lake, "orders", LAX)
    consumer.begin(None)
    return consumer


def _never():
    from threading import Event

    return Event()


def test_what_breaks_the_contract_goes_into_quarantine(orders, lake):
    held = Contract.infer(as_dataset(pd.DataFrame([{"id": 0, "x": 0.5}]))).amend("x", max=2.4)
    held = held.amend("id", min=0, max=99)
    lake.write("orders", lake.read("orders").compute(), contract=held, on_breach="quarantine")
    done = replay(lake, "orders", LAX)
    assert (done.rows, done.aside, done.dead) == (3, 2, 5) and ids(lake) == [0, 1, 2, 3]
    assert lake.read("orders.quarantine")["id"].values.tolist() == [4, 5]


def test_the_command(lake, tmp_path, monkeypatch, capsys):
    (tmp_path / "settings.ini").write_text("[laptop]\nlake = lake\n")
    monkeypatch.chdir(tmp_path)
    lake.evolve("orders", {"new": "float64"})
    said = []
    for words in (["--dry-run"], ["--json"], []):
        with pytest.raises(SystemExit) as ended:
            main(["stream", "dead://orders", "orders", *words])
        assert ended.value.code == 0
        said.append(capsys.readouterr().out)
    assert "would bring to orders: 5 rows, 5 dead" in said[0]
    assert json.loads(said[1])["rows"] == 5 and "orders: 0 rows, 5 dead" in said[2]
    assert ids(lake) == [0, 1, 2, 3, 4, 5] and raw(lake) == BROKEN
    for words in (["dead://orders", "other"], ["dead://orders", "orders", "--from", "earliest"]):
        with pytest.raises(SystemExit) as ended:
            main(["stream", *words])
        assert ended.value.code == 2
        assert "goes into orders alone" in " ".join(capsys.readouterr().err.split())
    for name, how, why in (
        ("orders", Landing(key="id"), "may be older than the row"),
        ("nothing", Landing(), "is not in the lake"),
        ("orders.dead", Landing(), "has no dead letters"),
    ):
        with pytest.raises(ParameterError, match=why):
            replay(lake, name, how)
