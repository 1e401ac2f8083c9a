"""What serving's journal, segments and log promise

What was acknowledged is found, once, whoever dies; nobody's value is written; nothing is raised.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.sources import type_of
from scalai_nb.data.streams.framing import frame, frames
from scalai_nb.files import file_lock
from scalai_nb.serving.log import journal as journals
from scalai_nb.serving.log import ingest as logs
from scalai_nb.serving.scoring.calls import Call
from scalai_nb.serving.log.encoding import read
from scalai_nb.serving.log.feedback import joined
from scalai_nb.serving.log.journal import Journal
from scalai_nb.serving.log.ingest import Compacted, LogKeeper, compact
from scalai_nb.metrics import Metrics
from scalai_nb.serving.log.pseudonyms import secret
from scalai_nb.serving.scoring.validation import Rows
from scalai_nb.serving.scoring.scorer import Column, Scorer

HOUR, TEMP = Column("hour", "number", "int64"), Column("temp", "number", "float64")
CARRIER = Column("carrier", "string", "category", categories=("AA", "UA"))


def scorer(*columns, version="3", name="late") -> Scorer:
    return Scorer(name, version, columns or (HOUR,), {}, {}, None)


def write(
    journal: Journal, served: Scorer, id: str, rows: int = 1, value=7.0, others=(), request_id=""
) -> bool:
    numbers = np.full((rows, len(served.numbers)), value, np.float32)
    rows_of_call, about = Rows(numbers, others), {"protocol": "v1", "request_id": request_id}
    call = Call(served, rows_of_call, id, None, None, received=time.perf_counter(), **about)
    return journal.append(
        served, [call], numbers, others, np.linspace(0, 1, rows, dtype=np.float32)
    )


def written(folder) -> list[str]:
    "Ids of all predictions in the journals of a service, in order"
    paths = sorted(
        p for p in Path(folder).glob("log/worker-*/*") if p.suffix in (".open", ".journal")
    )
    return [id for p in paths for found in read(p.read_bytes())[0] for id in found.ids]


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@pytest.fixture
def service(tmp_path):
    return tmp_path / "late"


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake", author="keeper")


@contextmanager
def journal(service, slot=0, **options):
    found = Journal(service, slot, secret=b"key", **options)
    try:
        yield found
    finally:
        found.close()


# --- frames ---------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=20), max_size=5), st.data())
@settings(deadline=None, max_examples=200)
def test_what_is_whole_is_read_and_what_is_torn_is_not(contents, data):
    whole = [frame(b"F", c) for c in contents]
    everything = b"".join(whole)
    cut = data.draw(st.integers(0, len(everything)))
    ends = np.cumsum([len(f) for f in whole])
    assert [c for _, c in frames(everything[:cut])] == contents[: int((ends <= cut).sum())]
    if everything:
        i = data.draw(st.integers(0, len(everything) - 1))
        damaged = everything[:i] + bytes([everything[i] ^ 255]) + everything[i + 1 :]
        assert [c for _, c in frames(damaged)] == contents[: int((ends <= i).sum())]


WRITER = """
import os, sys
sys.path.insert(0, "tests")
from test_log import Journal, scorer, write
journal, served, i = Journal(sys.argv[1], 0, secret=b"key"), scorer(), 0
while write(journal, served, f"{i}"):
    os.write(1, b"%d\\n" % i)
    i += 1
"""


def test_a_killed_worker_takes_no_acknowledged_prediction_along(service, lake):
    rng, acknowledged = np.random.default_rng(0), 0
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(service)], stdout=subprocess.PIPE
        )
        try:
            said = process.stdout.readline()
            time.sleep(rng.uniform(0, 0.3))
        finally:
            process.kill()
        with process:
            said += process.stdout.read()
        whole = said[: said.rindex(b"\n")].split()
        acknowledged += len(whole)
        compact(service, lake)  # what a dead worker left is closed
        assert not list(service.rglob("*.open"))
    done = compact(service, lake, force=True)
    ids = lake.read("late-predictions", columns=["id"]).id.values.tolist()
    assert (
        done.rows == len(ids) and acknowledged <= len(ids) <= acknowledged + 2
    )  # at most the last of each was written and not said
    assert ids.count("0") == 2


def test_a_live_workers_file_is_left_alone_and_its_slot_too(service, lake):
    metrics = Metrics()
    with journal(service) as first, journal(service, metrics=metrics) as second:
        assert write(first, scorer(), "a") and not write(second, scorer(), "b")
        assert (
            compact(service, lake, force=True) == Compacted()
            and len(list(service.rglob("*.open"))) == 1
        )
        assert metrics.counters["scalai_log_lost_total",] == 1
    assert compact(service, lake, force=True).rows == 1


# --- a journal ------------------------------------------------------------------------------------


def test_an_fsync_comes_within_200_ms_and_none_when_idle(service, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (fsync(fd), synced.append(time.monotonic())))
    monkeypatch.setattr(journals, "AGE", 3600)
    with journal(service) as j:
        for i in range(5):
            before, at = len(synced), time.monotonic()
            assert write(j, scorer(), f"{i}")
            until(lambda n=before: len(synced) > n and j.disk.file.synced == j.disk.file.rows)
            assert synced[before] - at < 2  # 0.2 on a machine with nothing else to do
        before = len(synced)
        time.sleep(0.3)
        assert len(synced) == before and not j.disk.written.is_set()


def test_files_are_closed_by_size_and_by_age(service, monkeypatch):
    monkeypatch.setattr(journals, "SIZE", 2000)
    with journal(service) as j:
        served = scorer()
        for i in range(300):
            assert write(j, served, f"{i}")
        assert written(service) == [f"{i}" for i in range(300)]
        until(lambda: len(list(service.rglob("*.journal"))) > 3)
        monkeypatch.setattr(journals, "AGE", 0)
        assert write(j, served, "last")
        until(lambda: not list(service.rglob("*.open")))
    assert written(service)[-1] == "last"


DISK = 1  # MB of `small_disk`


def test_a_full_disk_is_an_alarm_and_passes(small_disk, caplog):
    metrics, served = Metrics(), scorer()
    with journal(small_disk, metrics=metrics) as j:
        (small_disk / "other").write_bytes(bytes(900_000))
        kept = [i for i in range(2000) if write(j, served, f"{i}", rows=10)]
        lost = 2000 - len(kept)
        assert (
            kept
            and lost > 100
            and metrics.counters["scalai_log_lost_total",] == 10 * lost
            and metrics.gauges["scalai_log_failing",] == 1
        )
        assert len(caplog.records) == 1 and "not logged" in caplog.text
        (small_disk / "other").unlink()
        assert write(j, served, "again")
        until(lambda: write(j, served, "again") and metrics.gauges["scalai_log_failing",] == 0)
    assert written(small_disk)[-1] == "again" and [
        id for id in written(small_disk) if id != "again"
    ] == [f"{i}:{k}" for i in kept for k in range(10)]


LIMITED = """
import resource, sys
sys.path.insert(0, "tests")
from test_log import Journal, Metrics, scorer, write, written
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))  \
# a stand-in for a full disk: it takes half a frame, then nothing
metrics = Metrics()
journal, served = Journal(sys.argv[1], 0, secret=b"key", metrics=metrics), scorer()
kept = [f"{i}" for i in range(1000) if write(journal, served, f"{i}")]
assert 100 < len(kept) < 1000 == len(kept) + metrics.counters["scalai_log_lost_total",], len(kept)
assert written(sys.argv[1]) == kept
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert write(journal, served, "again")
journal.close()
assert written(sys.argv[1]) == [*kept, "again"]
"""


def test_half_a_frame_is_cut_off(service):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(service)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("broken", ["fsync", "ftruncate"])
def test_a_disk_with_errors_is_counted_and_a_new_file_begun(service, monkeypatch, broken):
    def fail(*_):
        raise OSError(5, "Input/output error")

    metrics, served = Metrics(), scorer()
    with journal(service, metrics=metrics) as j:
        assert write(j, served, "a")
        with monkeypatch.context() as m:
            m.setattr(os, broken, fail)
            if broken == "ftruncate":
                m.setattr(os, "write", lambda fd, data, real=os.write: real(fd, data[:20]))
            write(j, served, "b")
            until(lambda: metrics.gauges.get(("scalai_log_failing",)) == 1)
        until(lambda: write(j, served, "c") and metrics.gauges["scalai_log_failing",] == 0)
    assert {"a", "c"} <= set(written(service)) and len(list(service.rglob("*.journal"))) >= 2


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_is_chosen_by_the_id_and_recorded(service, lake, share):
    with journal(service, sample=share) as j:
        for i in range(200):
            assert write(j, scorer(), f"{i}", rows=2)
    assert compact(service, lake, force=True).rows % 2 == 0
    if not share:
        return
    rows = lake.read("late-predictions").compute()
    assert 200 * share <= rows.sizes["row"] <= 600 * share and set(rows.share.values.tolist()) == {
        np.float32(share)
    }


# --- persons --------------------------------------------------------------------------------------


def test_nobodys_value_is_in_any_file(service, lake):
    service.mkdir()
    key = secret(service)
    columns = (
        Column("born", "time", pii=True),
        Column("ssn", "number", "int64", pii=True),
        HOUR,
        Column("name", "string", pii=True),
        CARRIER,
    )
    served, numbers = scorer(*columns), np.float32([[987654, 7]])
    others = (
        np.array([[1234567.0]]),
        np.array([["Grace Hopper"]], object),
        np.array([["UA"]], object),
    )
    for share in (1.0, 0.0):
        found = Journal(service, 0, secret=key, sample=share)
        call = Call(served, Rows(numbers, others), "a", None, None, received=time.perf_counter())
        assert found.append(served, [call], numbers, others, np.float32([0.5]))
        found.close()
    values = [
        b"Grace",
        b"Hopper",
        b"987654",
        numbers[:, 0].tobytes(),
        np.float64(987654).tobytes(),
        others[0].tobytes(),
        np.int64(1234567000000).tobytes(),
        np.int64(1234567).tobytes(),
    ]
    clean = lambda: (
        not any(
            v in p.read_bytes() for p in service.parent.rglob("*") if p.is_file() for v in values
        )
    )
    assert clean() and (service / "secret").stat().st_mode & 0o777 == 0o600
    compact(service, lake)
    assert clean() and list(service.rglob("*.arrow"))
    assert compact(service, lake, force=True).rows == 1 and clean()
    row = lake.read("late-predictions").compute()
    assert [len(str(row[n].values[0])) for n in ("born", "ssn", "name")] == [
        32
    ] * 3 and row.hour.values.tolist() == [7]


# --- the lake -------------------------------------------------------------------------------------


class Killed(BaseException):
    "What a process meets here in the place of SIGKILL"


CALLS = [(os, name) for name in ("fsync", "sync", "rename", "replace", "unlink")] + [
    (Lake, name) for name in ("write", "append", "branch", "drop", "publish")
]


def killed_at(monkeypatch, n: int, work) -> bool:
    "Whether `work` got as far as the `n`th of CALLS, and was killed before it"
    passed = iter(range(n + 1))

    def moment():
        if next(passed, None) == n:
            raise Killed

    def wrapped(function):
        def call(*args, **kw):
            moment()
            return function(*args, **kw)

        return call

    with monkeypatch.context() as m:
        for owner, name in CALLS:
            m.setattr(owner, name, wrapped(getattr(owner, name)))
        try:
            work()
        except Killed:
            return True
    return False


@pytest.mark.slow
@pytest.mark.campaign
def test_a_keeper_killed_at_any_moment_loses_nothing_and_doubles_nothing(tmp_path, monkeypatch):
    before = tmp_path / "before"
    with journal(before / "late") as j:
        write(j, scorer(HOUR), "old", rows=2)
    compact(before / "late", Lake(before / "lake"), force=True)
    with journal(before / "late") as j:
        write(j, scorer(HOUR), "a")
        write(
            j, scorer(HOUR, TEMP, version="4"), "b", rows=2
        )  # the dataset must be rewritten with another column
        j.feedback([{"id": "a", "truth": 1}])
    expected, n, killed = ["a", "b:0", "b:1", "old:0", "old:1"], 0, True
    while killed:
        here = tmp_path / f"{n}"
        shutil.copytree(before, here)
        service, lake = here / "late", Lake(here / "lake")
        killed = killed_at(
            monkeypatch, n, lambda service=service, lake=lake: compact(service, lake, force=True)
        )
        compact(service, lake, force=True)
        rows = lake.read("late-predictions").compute()
        assert sorted(rows.id.values.tolist()) == expected and lake.read(
            "late-feedback"
        ).id.values.tolist() == ["a"], n
        assert np.isnan(rows.temp.values).sum() == 3 and not [
            p for p in service.rglob("*") if p.suffix in (".arrow", ".journal", ".open", ".json")
        ], n
        shutil.rmtree(here)
        n += 1
    assert n > 30


def test_compactors_take_turns(service, tmp_path):
    for i in range(4):
        with journal(service, slot=i) as j:
            [write(j, scorer(), f"{i}-{k}") for k in range(20)]
    rows = []
    threads = [
        Thread(
            target=lambda: rows.append(compact(service, Lake(tmp_path / "lake"), force=True).rows)
        )
        for _ in range(3)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    ids = Lake(tmp_path / "lake").read("late-predictions").id.values.tolist()
    assert sum(rows) == 80 == len(ids) == len(set(ids))


@pytest.mark.parametrize("moment", ["making", "widening"])
def test_two_services_at_one_dataset_take_turns(tmp_path, monkeypatch, moment):
    "One lake, two hosts: while one makes a dataset, or gives it a column, the other wants to"
    one, two = tmp_path / "one" / "late", tmp_path / "two" / "late"
    lake, expected = Lake(tmp_path / "lake"), ["a", "b"]
    if moment == "widening":
        with journal(one) as j:
            write(j, scorer(HOUR), "old")
        compact(one, lake, force=True)
        expected.append("old")
    for service, id in ((one, "a"), (two, "b")):
        with journal(service) as j:
            write(j, scorer(HOUR, TEMP, version="4"), id)
    original, others = Lake.write, []

    def writes(self, *args, **kw):
        "The other comes when the first is about to write"
        if not others:
            work = lambda: compact(two, Lake(tmp_path / "lake"), force=True)
            others.append(Thread(target=work))
            others[0].start()
            others[0].join(2)
        return original(self, *args, **kw)

    monkeypatch.setattr(Lake, "write", writes)
    assert compact(one, lake, force=True).rows == 1
    others[0].join()
    monkeypatch.undo()
    assert sorted(lake.read("late-predictions").id.values.tolist()) == expected
    assert compact(one, lake, force=True) == compact(two, lake, force=True) == Compacted()


@pytest.mark.parametrize("earlier", [False, True])
def test_what_is_committed_and_not_deleted_is_not_committed_again(tmp_path, monkeypatch, earlier):
    "Another service commits meanwhile; an earlier scalai-nb wrote its token into the message"
    lake, one, two = Lake(tmp_path / "lake"), tmp_path / "one" / "late", tmp_path / "two" / "late"
    for service, id in ((one, "a"), (two, "b")):
        with journal(service) as j:
            write(j, scorer(HOUR), id)
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(os, "sync", lambda: (_ for _ in ()).throw(Killed))
        compact(one, lake, force=True)
    if earlier:
        path = next(one.rglob("plan.json"))
        token = json.loads(path.read_bytes()) | {"parent": None}
        path.write_text(json.dumps({k: v for k, v in token.items() if k != "writer"}))
        lake.write("late-predictions", lake.read("late-predictions"), f"1 rows, {token['token']}")
    compact(two, lake, force=True)
    compact(one, lake, force=True)
    assert lake.read("late-predictions").id.values.tolist() == ["a", "b"]


def test_whose_turn_it_is_not_goes_on_and_comes_again(tmp_path, lake):
    service = tmp_path / "late"
    with journal(service) as j:
        write(j, scorer(HOUR), "a")
    keeper = LogKeeper(service, lake, Metrics())
    locks = lake.path / ".locks" / "log"
    locks.mkdir(parents=True)
    with file_lock(locks / "late-predictions.lock", 0):
        begun = time.monotonic()
        assert compact(service, lake, rows=1) == Compacted(waiting=1)
        assert time.monotonic() - begun < 1
        assert keeper.step().waiting == 1 and not keeper.trouble
    assert compact(service, lake).rows == 1  # what was planned needs not wait for more


HOST = """
import sys
sys.path.insert(0, "tests")
from test_log import *
name, folder, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
service, lake = folder / name / "late", Lake(folder / "lake")
for i in range(n):
    with journal(service) as j:
        columns = (HOUR, TEMP) if i % 4 else (HOUR,)
        write(j, scorer(*columns, version=str(i % 4)), f"{name}-{i}", rows=2)
        j.feedback([{"id": f"{name}-{i}:0", "truth": i % 2}])
    compact(service, lake, rows=1)
compact(service, lake, force=True)
"""


@pytest.mark.slow
def test_three_hosts_share_a_lake_and_nothing_is_lost_or_doubled(tmp_path):
    "Each with a service of the same name and a folder of its own"
    hosts = [
        subprocess.Popen([sys.executable, "-c", HOST, name, str(tmp_path), "12"], stderr=-1)
        for name in "abc"
    ]
    for host in hosts:
        _, said = host.communicate(timeout=200)
        assert host.returncode == 0, said.decode()
    lake = Lake(tmp_path / "lake")
    expected = sorted(f"{name}-{i}:{row}" for name in "abc" for i in range(12) for row in (0, 1))
    assert sorted(lake.read("late-predictions").id.values.tolist()) == expected
    told = sorted(f"{name}-{i}:0" for name in "abc" for i in range(12))
    assert sorted(lake.read("late-feedback").id.values.tolist()) == told


def test_few_rows_wait_and_many_do_not(service, lake):
    with journal(service) as j:
        write(j, scorer(), "a", rows=30)
    assert compact(service, lake, rows=31) == Compacted(waiting=30)
    assert (
        compact(service, lake, rows=31, now=time.time() + 59).rows == 0
        and compact(service, lake, rows=31, now=time.time() + 61).rows == 30
    )
    with journal(service) as j:
        write(j, scorer(), "b", rows=31)
    assert compact(service, lake, rows=31).rows == 31


def test_a_commit_is_bounded(service, lake, monkeypatch):
    monkeypatch.setattr(logs, "BYTES", 1)
    for i in range(3):
        with journal(service) as j:
            write(j, scorer(), f"{i}")
    done = compact(service, lake, force=True)
    assert [v.rows for v in done.versions] == [1, 2, 3]


def test_versions_with_other_columns_are_one_dataset(service, lake, monkeypatch):
    monkeypatch.setattr(logs, "MANY", 3)
    carriers = lambda *values: (np.array(values, object).reshape(-1, 1),)
    steps = [
        ("1", (HOUR,), (), 7),
        ("2", (HOUR, CARRIER), carriers("ZZ", ""), 7),
        ("3", (CARRIER,), carriers("AA", "YY"), 7),
        ("4", (HOUR, TEMP), (), 7.5),
    ]
    for version, columns, others, value in steps:
        with journal(service) as j:
            assert write(
                j, scorer(*columns, version=version), version, rows=2, value=value, others=others
            )
        compact(service, lake, force=True)
    rows = lake.read("late-predictions").compute()
    assert rows.id.values.tolist() == [f"{v}:{i}" for v in "1234" for i in (0, 1)]
    np.testing.assert_array_equal(rows.hour, [7, 7, 7, 7, np.nan, np.nan, 7.5, 7.5])
    assert type_of(rows.carrier) == "string" and [
        v for v in rows.carrier.values if isinstance(v, str)
    ] == ["ZZ", "AA", "YY"]
    assert (
        rows.version.data.names == ("1", "2", "3", "4")
        and rows.temp.isnull().values.tolist() == [True] * 6 + [False] * 2
    )


def test_what_a_client_calls_its_request_is_kept_beside_the_prediction(service, lake):
    named = scorer(Column("request_id", "number"))
    with journal(service) as j:
        write(j, named, "a-0", rows=2, request_id="my flight 7")
        write(j, named, "a-1")
    compact(service, lake, force=True)
    rows = lake.read("late-predictions").compute()
    assert rows.id.values.tolist() == ["a-0:0", "a-0:1", "a-1"]
    assert rows.request_id.values[:2].tolist() == ["my flight 7"] * 2
    assert np.isnan(rows.request_id.values[2]) and rows.input_request_id.values.tolist() == [7] * 3


def test_a_log_of_an_earlier_version_goes_on(tmp_path):
    "A lake, a segment and a journal from before predictions had a column of request ids"
    with tarfile.open(Path(__file__).parent / "former" / "log.tar.gz") as stored:
        stored.extractall(tmp_path, filter="data")
    service, lake = tmp_path / "late", Lake(tmp_path / "lake")
    assert "request_id" not in lake.read("late-predictions")
    with journal(service) as j:
        write(j, scorer(HOUR), "new-0", request_id="mine")
        j.feedback([{"id": "new-0", "truth": 1}])
    compact(service, lake, force=True)
    rows = lake.read("late-predictions").compute()
    sent = dict(zip(rows.id.values.tolist(), rows.request_id.values.tolist(), strict=True))
    assert sent.pop("new-0") == "mine" and all(np.isnan(id) for id in sent.values())
    assert [*sent] == ["lake-a", "lake-b", "segment:0", "segment:1", "my flight 7"]
    both = joined(lake, "late")
    assert dict(zip(both.id.values.tolist(), both.truth.values.tolist(), strict=True)) == {
        "lake-a": 1,
        "lake-b": 1,
        "my flight 7": 0,
        "new-0": 1,
    }


def test_a_version_written_by_somebody_else_meanwhile_stays(service, lake, monkeypatch):
    with journal(service) as j:
        write(j, scorer(HOUR), "a")
    compact(service, lake, force=True)
    with journal(service) as j:
        write(j, scorer(HOUR, TEMP, version="4"), "b")
    publish = Lake.publish

    def late(self, name, branch):
        lake.write(
            name, lake.read(name).isel(row=[]), "erased"
        )  # between the keeper's reading and publishing
        return publish(self, name, branch)

    monkeypatch.setattr(Lake, "publish", late)
    keeper = LogKeeper(service, lake, Metrics())
    assert (
        keeper.step(force=True) is None
        and keeper.metrics.gauges["scalai_log_failing",] == 1
        and "moved" in keeper.trouble
    )
    monkeypatch.undo()
    assert keeper.step(force=True).rows == 1 and keeper.metrics.gauges["scalai_log_failing",] == 0
    assert lake.read("late-predictions").id.values.tolist() == ["b"]


def test_a_lake_that_is_away_costs_nothing(service, tmp_path, caplog):
    (tmp_path / "lake").write_text("no folder")
    keeper, lake = LogKeeper(service, Lake(tmp_path / "lake"), Metrics()), Lake(tmp_path / "lake")
    with journal(service) as j:
        write(j, scorer(), "a")
    assert [keeper.step(force=True), keeper.step(force=True)] == [None, None] and len(
        caplog.records
    ) == 1
    (tmp_path / "lake").unlink()
    assert keeper.step(force=True).rows == 1 and lake.read(
        "late-predictions"
    ).id.values.tolist() == ["a"]


def test_a_lake_that_becomes_read_only_costs_nothing(service, small_disk, caplog):
    lake = Lake(small_disk / "lake")
    keeper = LogKeeper(service, lake, Metrics())
    with journal(service) as j:
        write(j, scorer(), "a")
    assert keeper.step(force=True).rows == 1
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with journal(service) as j:
        write(j, scorer(), "b")
    assert [keeper.step(force=True), keeper.step(force=True)] == [None, None]
    assert len(caplog.records) == 1, caplog.text
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert keeper.step(force=True).rows == 1
    assert lake.read("late-predictions").id.values.tolist() == ["a", "b"]


def test_a_journal_that_cannot_be_read_does_not_stop_the_others(service, lake):
    with journal(service) as j:
        write(j, scorer(), "a")
    bad = service / "log" / "worker-1"
    bad.mkdir()
    (bad / "00000000000000000000.journal").write_bytes(
        frame(b"P", bytes(20))
    )  # a batch of no version
    keeper = LogKeeper(service, lake, Metrics())
    assert keeper.step(force=True) is None and keeper.trouble
    assert lake.read("late-predictions").id.values.tolist() == ["a"] and list(bad.glob("*.journal"))


def test_the_key_is_made_once_by_workers_that_start_together(tmp_path):
    keys = []
    threads = [Thread(target=lambda: keys.append(secret(tmp_path))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(keys)) == 1 and [p.name for p in tmp_path.iterdir()] == ["secret"]


def test_a_worker_loads_nothing_heavy_for_it():
    code = (
        "import sys, scalai_nb.serving.log.journal; print([m for m in "
        "('pandas', 'pyarrow', 'xarray', 'fastcore', 'onnxruntime') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )


RECORDS = st.fixed_dictionaries(
    {"id": st.one_of(st.text(max_size=5), st.integers(0, 9), st.none())},
    optional={
        "truth": st.one_of(
            st.booleans(), st.floats(), st.text(max_size=3), st.none(), st.lists(st.none())
        ),
        "model": st.one_of(
            st.sampled_from(["late", "", "LATE", "a/b", "x" * 300]), st.none(), st.integers(0, 9)
        ),
        "time": st.one_of(st.text(max_size=4), st.integers(0, 9), st.none()),
    },
)


@given(st.lists(RECORDS, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_no_line_of_feedback_stops_the_log_or_makes_a_dataset(records):
    "Whatever is in a journal, by whatever way: what has a place goes on, the rest is set aside"
    with tempfile.TemporaryDirectory() as folder:
        service = Path(folder, "late")
        with journal(service) as j:
            write(j, scorer(HOUR), "p")
            for r in records:
                j.feedback([r])
            j.feedback([{"id": "p", "truth": 1, "model": "late"}])
        lake = Lake(Path(folder, "lake"))
        keeper = LogKeeper(service, lake, Metrics())
        done = keeper.step(force=True)
        assert done and not keeper.trouble
        assert sorted(lake.names()) == ["late-feedback", "late-predictions"]
        assert lake.read("late-predictions").id.values.tolist() == ["p"]
        aside = [line for f in service.rglob("quarantine/*") for line in f.read_text().splitlines()]
        assert all(json.loads(line)["reason"] for line in aside)
        kept = lake.read("late-feedback").sizes["row"]
        assert kept + len(aside) == len(records) + 1 and kept >= 1
        assert not list(service.rglob("*.journal"))
        assert keeper.step(force=True).rows == 0
