"""For the tests of each kind of stream: its laws, and its consumer killed at random moments

`check_stream(make, put)` and `check_kills(uri, …)`. As a program this file is a consumer that says
where it is: before, in or after a commit.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from random import Random

import numpy as np
import xarray as xr

import scalai_nb as sn
from scalai_nb.compute import checkpoint
from scalai_nb.compute import reduce as reducing
from scalai_nb.compute.mergeable import Mergeable
from scalai_nb.compute.state import load
from scalai_nb.data.ingestion import ingest
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.readers.located import Address
from scalai_nb.data.readers.databases.postgresql import PostgreSQLSession, conninfo
from scalai_nb.data.readers.databases.relations import server_of
from scalai_nb.data.streams.landing import Consumer, Landing, land
from scalai_nb.data.streams.records import Positions, Stream, StreamBlocks

Make = Callable[[], Stream]  # a new object over the same records, at their beginning
# into the partition with this number, made if it is not there: values and keys, the same many;
# they can be read when it returns
Put = Callable[[int, list[bytes | None], list[bytes | None]], None]
Found = dict[str, list[tuple[bytes | None, bytes | None]]]  # by partition: values and keys


class _Written:
    "What was put, and where"

    def __init__(self, put: Put, deletes: bool, keys: bool) -> None:
        self.put = put
        self.deletes = deletes
        self.keys = keys
        self.records: dict[int, list[tuple[bytes | None, bytes | None]]] = defaultdict(list)

    def add(self, partition: int, n: int) -> None:
        before = len(self.records[partition])
        values: list[bytes | None] = []
        keys: list[bytes | None] = []
        for i in range(before, before + n):
            deleted = self.deletes and i % 7 == 3
            values.append(None if deleted else b"%d value %d" % (partition, i))
            keys.append(b"%d key %d" % (partition, i) if self.keys else None)
        self.put(partition, values, keys)
        self.records[partition] += zip(values, keys, strict=True)

    def check(self, found: Found, law: str, since: dict[int, int] | None = None) -> None:
        "Each record once and in order, of each partition from number `since`"
        since = since or {}
        wanted = {p: r[since.get(p, 0) :] for p, r in self.records.items()}
        got = sorted(map(repr, found.values()))
        assert got == sorted(repr(r) for r in wanted.values() if r), law


def drain(
    stream: Stream,
    n: int,  # records that are to come
    random: Random | None = None,  # draws how much is asked for at once; None: all
    seconds: float = 20,  # in which they must
) -> tuple[Found, list[tuple[int, Positions]]]:  # after each poll: how many had come, and where
    "The next `n` records, and no more for a moment"
    found: Found = defaultdict(list)
    last: dict[str, int | str] = {}
    steps: list[tuple[int, Positions]] = []
    count, until = 0, time.monotonic() + seconds
    while count < n and time.monotonic() < until:
        rows = random.randint(1, max(2, n // 3)) if random else n
        records, positions = stream.poll(rows, random.choice((0, 0.01, 0.5)) if random else 1)
        assert len(records) == len(records.values) <= rows, "a poll gives at most `rows`"
        assert json.loads(json.dumps(positions)) == positions, "positions are JSON"
        for i, value in enumerate(records.values):
            origin = records.origin(i)
            assert last.get(origin.partition) != origin.position, "a record has its own position"
            last[origin.partition] = origin.position
            found[origin.partition].append((value, origin.key))
        count += len(records)
        steps.append((count, positions))
    records, _ = stream.poll(10, 0.05)
    assert (count, len(records)) == (n, 0), f"{n} records come, {count + len(records)} came"
    return found, steps


def check_stream(
    make: Make,
    put: Put,
    *,
    partitions: int = 3,  # that it may have; all but the first two come later
    deletes: bool = True,  # whether a record may have no value
    keys: bool = True,  # whether a record has a key
    bounds: bool = True,  # whether the broker says truly where a partition ends
    times: bool = True,  # whether it finds a record by its time
    rows: int = 100,  # of a partition
    seconds: float = 20,  # in which what was put must come
    seed: int = 0,
) -> None:
    "Check the laws of a stream that is empty yet; `AssertionError` names the one that fails"
    random, written = Random(seed), _Written(put, deletes, keys)
    _check_empty(make)
    first = range(min(partitions, 2))
    for p in first:
        written.add(p, rows)
    total = rows * len(first)
    positions = _check_order(make, written, total, random, seconds)
    if bounds:
        _check_bounds(make, total, positions)
    _check_readers(make, written, total)
    if times:
        _check_times(make, written, total, rows)
    if partitions > 2:
        _check_later(make, written, partitions, rows)


def _check_empty(make: Make) -> None:
    stream = make()
    started = time.monotonic()
    records, positions = stream.poll(10, 0.1)
    assert len(records) == 0, "an empty stream gives no record"
    assert time.monotonic() - started < 10, "a poll of an empty stream ends"
    stream.seek(positions)
    assert all(a == b for a, b in stream.bounds().values()), "an empty stream has no records"
    stream.close()


def _check_order(
    make: Make, written: _Written, total: int, random: Random, seconds: float
) -> Positions:
    "Once and in order however it is asked; from any positions exactly the rest; where it ends"
    stream = make()
    found, steps = drain(stream, total, random, seconds)
    written.check(found, "each record comes once, in the order of its partition")
    for count, positions in random.sample(steps, min(4, len(steps))):
        for other in (stream, make()):
            other.seek(json.loads(json.dumps(positions)))
            rest, _ = drain(other, total - count, random)
            _check_rest(found, rest)
            if other is not stream:
                other.close()
    stream.close()
    return steps[-1][1]


def _check_rest(all_: Found, rest: Found) -> None:
    for partition, records in rest.items():
        assert all_[partition][-len(records) :] == records, "`seek` goes on where positions say"


def _check_bounds(make: Make, total: int, ended: Positions) -> None:
    stream = make()
    bounds = stream.bounds()
    assert {p: end for p, (_, end) in bounds.items()} == ended, "all is read at the upper bounds"
    stream.seek({p: first for p, (first, _) in bounds.items()})
    drain(stream, total)
    said = {p: end for p, (_, end) in stream.last_bounds().items()}
    assert said == ended, "what was read last says where the stream ends"
    stream.seek({p: end for p, (_, end) in bounds.items()})
    drain(stream, 0)
    stream.close()


def _check_readers(make: Make, written: _Written, total: int) -> None:
    "Two readers, one of them ahead, do not disturb each other; nor does what one acknowledges"
    a, b = make(), make()
    _, ahead = a.poll(total // 2, 5)
    a.acknowledge(ahead)
    found, steps = drain(b, total)
    written.check(found, "a reader gets what another has read")
    b.acknowledge(steps[-1][1])
    a.seek(ahead)
    records, after = a.poll(1, 5)
    assert len(records) == 1, "a reader stays where it is when another goes ahead"
    b.seek(ahead)
    again, same = b.poll(1, 5)
    assert len(again) == 1, "what was acknowledged can be read again"
    assert {*after} == {*same}, "readers see the same partitions"
    a.close()
    b.close()


def _check_times(make: Make, written: _Written, total: int, rows: int) -> None:
    stream = make()
    time.sleep(0.05)
    between = datetime.now(UTC)
    time.sleep(0.05)
    since = {p: len(r) for p, r in written.records.items()}
    written.add(0, rows)
    stream.seek(stream.at(between))
    found, _ = drain(stream, rows)
    written.check(found, "`at` gives where the records of a time begin", since)
    stream.seek(stream.at(between - timedelta(days=1)))
    drain(stream, total + rows)
    stream.seek(stream.at(datetime.now(UTC) + timedelta(days=1)))
    drain(stream, 0)
    stream.close()


def _check_later(make: Make, written: _Written, partitions: int, rows: int) -> None:
    "A reader that is open finds what is put into a partition that was not there"
    stream = make()
    drain(stream, sum(map(len, written.records.values())))
    since = {p: len(r) for p, r in written.records.items()}
    for p in range(2, partitions):
        written.add(p, rows)
    found, _ = drain(stream, rows * (partitions - 2), seconds=60)
    written.check(found, "partitions that are added later are found", since)
    stream.close()


# ---- a consumer that is killed


def numbered(n: int, partition: int = 0) -> list[bytes]:
    "The records that `check_kills` expects in a partition"
    return [b'{"partition": %d, "n": %d, "text": "%d"}' % (partition, i, i) for i in range(n)]


def check_kills(
    uri: str,  # of a stream that has `numbered(n, partition)` in each of its partitions
    lake: Path,  # folder, new
    *,
    partitions: int,
    n: int,  # records of a partition
    kills: int,
    rows: int,  # of a commit
    work: str = "land",  # one of WORKS
    options: dict | None = None,  # of the work
    aims: tuple[str, ...] = ("before", "in", "after"),
    bug: bool = False,  # positions are stored before the rows
    seed: int = 0,
) -> Counter[str]:  # how many kills fell before, in and after a commit
    "Kill the consumer again and again; then each record is there once, in order"
    random, fell, began = Random(seed), Counter[str](), time.monotonic()
    words = [work, uri, str(lake), str(rows), json.dumps(options or {}), "bug" if bug else ""]
    command = [sys.executable, __file__, *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as starter:
        for i in range(kills):
            fell[_killed(starter, aims[i % len(aims)], random)] += 1
        *_, last = _lines(starter)
        assert last == "end 0", f"the last consumer ended with {last}"
        starter.stdin.close()
    found = Lake(lake).read("kills").compute()
    for partition in range(partitions):
        numbers = found["n"].values[found["partition"].values == partition]
        assert np.array_equal(numbers, np.arange(n)), _amiss(partition, numbers, n)
    where = ", ".join(f"{fell[at]} {at}" for at in ("before", "in", "after"))
    lasted = time.monotonic() - began
    print(f"{work} {uri}: {partitions * n:,} records, {kills} kills ({where}), {lasted:.0f} s")
    return fell


def _amiss(partition: int, numbers: np.ndarray, n: int) -> str:
    lost = np.setdiff1d(np.arange(n), numbers)
    twice = len(numbers) - len(np.unique(numbers))
    return f"partition {partition}: {len(lost)} records are lost, {twice} are there again"


def _lines(starter: subprocess.Popen) -> Iterator[str]:
    "What a new consumer says, to its end"
    starter.stdin.write("start\n")
    starter.stdin.flush()
    while not (line := starter.stdout.readline().strip()).startswith("end"):
        yield line
    yield line


def _killed(starter: subprocess.Popen, aim: str, random: Random) -> str:
    "Start a consumer and kill it; where it was"
    lines = _lines(starter)
    pid = int(next(lines))
    left, where = random.randint(2, 4), "before"
    began, lasts = 0.0, 0.0  # the last commit
    for line in lines:
        if line.startswith("end"):
            assert line == "end 9", f"{line}: it came to its end before it was killed"
            return where
        where, now = line, time.monotonic()
        lasts = now - began if line == "after" else lasts
        began = now if line == "in" else began
        left -= line == aim
        if left == 0 and line == aim:
            time.sleep(random.random() * (lasts if aim == "in" else 0.01))
            os.kill(pid, signal.SIGKILL)
    raise AssertionError


def _say(where: str, seconds: float = 0) -> None:
    os.write(1, f"{where}\n".encode())
    time.sleep(seconds)


def _land(uri: str, lake: Path, rows: int, options: dict, bug: bool) -> None:
    "Land a stream; the commit is that of its rows"
    write, settle = Consumer._write, Consumer._settle

    def written(self, ready, new):
        _say("in")
        if bug:
            version = write(self, replace(ready, rows=None), new)
            _say("in", 0.1)
            add = self.lake.append if self.rows.types else self.lake.write
            add(self.name, ready.rows, state=None if version else {"streams": {}})
        else:
            version = write(self, ready, new)
        _say("after", 0.03)
        return version

    def settled(self):
        committing = self.committing
        settle(self)
        if committing:
            _say("before", 0.03)

    Consumer._write, Consumer._settle = written, settled
    stream = sn.open_stream(uri, **options)
    land(stream, Lake(lake), "kills", Landing(rows=rows, seconds=0.2), idle=1)


def _ingest(uri: str, lake: Path, rows: int, options: dict, bug: bool) -> None:
    "Ingest what is new in a table of PostgreSQL that grows; the commit is that of a version"
    write = Lake.write_blocks

    def written(*words, **named):
        _say("in")
        version = write(*words, **named)
        _say("after", 0.03)
        return version

    Lake.write_blocks = written
    server = server_of(Address.of(uri))
    told, table = conninfo(server, os.environ["SCALAI_PASSWORD"]), uri.rpartition("::")[2]
    session, there = PostgreSQLSession("here", told, reads=False), 0
    while there < options["n"]:
        there = session.rows(f"SELECT count(*) FROM {table}")[0][0]
        more = f"generate_series({there}, {min(there + rows, options['n']) - 1}) s(i)"
        session.rows(f"INSERT INTO {table} SELECT 0, i, i::text FROM {more}")
        ingest(Lake(lake), uri, "kills", incremental="n")
        _say("before", 0.03)


def _reduce(uri: str, lake: Path, rows: int, options: dict, bug: bool) -> None:
    "Count each number of a stream; the commit is that of the checkpoint"
    shape, file = (options["partitions"], options["n"]), lake.with_name("checkpoint")
    save = checkpoint.save

    def saved(path, content):
        _say("in")
        if bug:
            place, state = content["done"]
            before = load(path)["done"][1] if path.exists() else np.zeros_like(state)
            save(path, content | {"done": (place, before)})
            _say("in", 0.1)
        save(path, content)
        _say("after", 0.03)
        _say("before", 0.03)

    def counted(state, block):
        state = state.copy()
        np.add.at(state, (block["partition"].values, block["n"].values), 1)
        return state

    checkpoint.save, checkpoint.EVERY, reducing.BLOCK = saved, 0, rows
    counts = Mergeable(lambda: np.zeros(shape, np.int8), counted, lambda a, b: a + b)
    blocks = StreamBlocks(sn.open_stream(uri), rows=rows, idle=1)
    partition, n = np.nonzero(found := sn.reduce(counts, blocks, checkpoint=file))
    twice = np.repeat(np.arange(len(n)), found[partition, n])
    there = xr.Dataset({"partition": ("row", partition[twice]), "n": ("row", n[twice])})
    Lake(lake).write("kills", there)


WORKS = {"land": _land, "ingest": _ingest, "reduce": _reduce}


def _start(work: str, uri: str, lake: str, rows: str, options: str, bug: str) -> None:
    "For each line that comes a consumer, until it ends; what takes long is imported once"
    for name in ("icechunk", "pandas", "pyarrow.csv", "pyarrow.json", "xarray", "zarr"):
        import_module(name)
    for _ in sys.stdin:
        if pid := os.fork():
            _, status = os.waitpid(pid, 0)
            os.write(1, f"end {status}\n".encode())
            continue
        _say(str(os.getpid()))
        WORKS[work](uri, Path(lake), int(rows), json.loads(options), bool(bug))
        os._exit(0)


if __name__ == "__main__":
    _start(*sys.argv[1:])
