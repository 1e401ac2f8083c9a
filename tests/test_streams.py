"""The log in a folder: the laws of streams, killed writers, a full disk, damage, retention"""

import errno
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import pytest
from streams import check_stream, drain

import scalai_nb as sn
from scalai_nb.data.streams import embedded, framing
from scalai_nb.data.streams.embedded import Log, LogStream
from scalai_nb.errors import ParameterError, StreamError


def a_log(path: Path, **options):
    "What `check_stream` takes, over a log of small segments"
    logs: dict[int, Log] = {0: Log(path, **options)}

    def put(partition, values, keys):
        if partition not in logs:
            logs[partition] = Log(path, str(partition), **options)
        middle = len(values) // 3
        for part in (slice(0, middle), slice(middle, None)):
            logs[partition].append(values[part], keys[part])

    return (lambda: sn.open_stream(path)), put


@pytest.mark.parametrize("seed", range(3))
def test_a_log_keeps_the_laws_of_streams(tmp_path, seed):
    make, put = a_log(tmp_path / "log", segment=500)
    check_stream(make, put, seed=seed)


@pytest.mark.parametrize("bug", ["twice", "lost", "order", "seek", "positions"])
def test_the_laws_find_a_stream_that_breaks_them(tmp_path, monkeypatch, bug):
    take = embedded._Reader.take
    poll = LogStream.poll

    def broken_take(reader, rows):
        block = take(reader, rows)
        if block and bug == "lost" and len(block.values) > 9:
            return block.part(0, len(block.values) - 1)
        if block and bug == "order":
            block.values.reverse()
        return block

    def broken_poll(stream, rows, seconds):
        records, positions = poll(stream, rows, seconds)
        if bug == "twice" and len(records) > 9:
            stream.seek({})
        if bug == "positions" and len(records):
            positions = {p: n + 1 for p, n in positions.items()}
        return records, positions

    monkeypatch.setattr(embedded._Reader, "take", broken_take)
    monkeypatch.setattr(LogStream, "poll", broken_poll)
    if bug == "seek":
        monkeypatch.setattr(LogStream, "seek", lambda *_: None)
    make, put = a_log(tmp_path / "log")
    with pytest.raises((AssertionError, StreamError)):
        check_stream(make, put, seconds=2)


def values_of(path: Path) -> list[bytes]:
    stream = LogStream(path)
    ((_, end),) = stream.bounds().values()
    found, _ = drain(stream, end)
    stream.close()
    return [value for value, _ in found["0"]]


def test_threads_share_an_fsync_and_processes_take_turns(tmp_path, monkeypatch):
    syncs = []
    sync = framing.FramedFile.sync

    def slow(file):
        syncs.append(file)
        time.sleep(0.05)
        sync(file)

    log = Log(tmp_path)
    monkeypatch.setattr(framing.FramedFile, "sync", slow)
    given: dict[bytes, int] = {}

    def write(who: int):
        for i in range(10):
            value = b"%d of %d" % (i, who)
            (given[value],) = log.append([value])

    threads = [Thread(target=write, args=[n]) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    values = values_of(tmp_path)
    assert {v: values.index(v) for v in values} == given and len(values) == 80
    assert len(syncs) < 18, "one for all: two groups that take turns need 20"
    code = (
        "import sys; from scalai_nb.data.streams.embedded import Log\n"
        "log = Log(sys.argv[1], segment=300)\n"
        "for i in range(50): log.append([b'%d of %s' % (i, sys.argv[2].encode())])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    others = [subprocess.Popen([*command, name]) for name in ("a", "b", "c")]
    for i in range(20):
        log.append([b"%d of me" % i])
    assert [p.wait(60) for p in others] == [0, 0, 0]
    values = values_of(tmp_path)
    for name, n in (("a", 50), ("b", 50), ("c", 50), ("me", 20)):
        mine = [v for v in values if v.endswith(b" of " + name.encode())]
        assert mine == [b"%d of %s" % (i, name.encode()) for i in range(n)]


def test_a_writer_that_is_killed_has_written_all_that_it_said(tmp_path):
    code = (
        "import sys; from scalai_nb.data.streams.embedded import Log\n"
        "log, n = Log(sys.argv[1], segment=50_000), int(sys.argv[2])\n"
        "while True:\n"
        "    n = log.append([b'%d' % i * 50 for i in range(n, n + 7)]).stop\n"
        "    print(n, flush=True)"
    )
    said = 0
    for _ in range(4):
        command = [sys.executable, "-c", code, str(tmp_path), str(said)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            lines = [writer.stdout.readline() for _ in range(20)]
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        said = int([line for line in lines if line.endswith(b"\n")][-1])
        values = values_of(tmp_path)
        assert len(values) >= said
        assert values == [b"%d" % i * 50 for i in range(len(values))]
        said = len(values)


def test_what_was_torn_is_cut_off_and_what_is_damaged_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_PATIENCE", 0.05)
    with Log(tmp_path) as log:
        log.append([b"one", b"two"])
        log.append([b"three"])
    (segment,) = tmp_path.glob("0/*.log")
    whole = segment.read_bytes()
    for torn in (whole[:9], whole[:20], bytes(50), whole[:30] + bytes(5)):
        segment.write_bytes(whole + torn)
        reader = LogStream(tmp_path)
        assert len(reader.poll(10, 0)[0]) == 3
        with Log(tmp_path) as log:
            assert log.append([b"four"]) == range(3, 4)
        assert reader.poll(10, 0.1)[0].values == [b"four"]
        assert values_of(tmp_path) == [b"one", b"two", b"three", b"four"]
        segment.write_bytes(whole)
    segment.write_bytes(whole[:30] + b"!" + whole[31:])
    reader = LogStream(tmp_path)
    with pytest.raises(StreamError, match="is damaged at byte 0"):
        reader.poll(10, 1)
    with pytest.raises(StreamError, match="is damaged at byte 0"):
        Log(tmp_path)
    assert segment.read_bytes() == whole[:30] + b"!" + whole[31:]


def test_a_full_disk_takes_nothing_half(tmp_path, monkeypatch):
    log, write, sync = Log(tmp_path), os.write, os.fsync
    log.append([b"one"])

    def full(fd, data):
        return write(fd, data[: len(data) // 2])

    def refused(fd):
        raise OSError(errno.EIO, "input/output error")

    for name, fault in (("write", full), ("fsync", refused)):
        monkeypatch.setattr(framing.os, name, fault)
        with pytest.raises(OSError):
            log.append([b"two"] * 100)
        monkeypatch.setattr(framing.os, "write", write)
        monkeypatch.setattr(framing.os, "fsync", sync)
        assert values_of(tmp_path) == [b"one"]
    assert log.append([b"two"]) == range(1, 2)
    assert values_of(tmp_path) == [b"one", b"two"]


def test_what_is_not_kept_is_a_gap_that_is_named(tmp_path):
    log = Log(tmp_path, segment=1000, keep_bytes=3000)
    reader = LogStream(tmp_path)
    log.append([b"%50d" % 0])
    assert len(reader.poll(10, 0)[0]) == 1
    for i in range(1, 200):
        log.append([b"%50d" % i])
    first, end = reader.bounds()["0"]
    assert end == 200 and 100 < first < 200
    assert sum(p.stat().st_size for p in tmp_path.glob("0/*.log")) < 5000
    with pytest.raises(StreamError, match=f"Records .* to {first - 1:,} of .* are not kept"):
        while True:
            reader.poll(10, 0)
    reader.seek({"0": first})
    assert len(reader.poll(1000, 0.05)[0]) == end - first
    for path in tmp_path.glob("0/*.log"):
        os.utime(path, (0, 0))
    log.keep_seconds = 60
    assert log.expire() and len([*tmp_path.glob("0/*.log")]) == 1
    reader.seek({"0": 1000})
    with pytest.raises(StreamError, match="is not what it was"):
        reader.poll(1, 0.05)


def test_times_in_a_log_do_not_go_back(tmp_path, monkeypatch):
    log = Log(tmp_path)
    log.append([b"one"])
    monkeypatch.setattr(embedded, "time", lambda: time.time() - 3600)
    between = datetime.now(UTC)
    log.append([b"two"])
    records, _ = LogStream(tmp_path).poll(2, 0)
    assert records.origin(1).time == records.origin(0).time <= between


def test_a_record_may_be_large_and_bad_input_is_said(tmp_path):
    log = Log(tmp_path)
    large = os.urandom(2**20) * 100
    log.append([b"before", large, b"after"])
    stream = LogStream(tmp_path)
    found, _ = drain(stream, 3)
    assert [v for v, _ in found["0"]] == [b"before", large, b"after"]
    with pytest.raises(ParameterError, match="A record is str; accepted: bytes"):
        log.append(["text"])
    with pytest.raises(ParameterError, match="2 values have 1 keys"):
        log.append([b"a", b"b"], [b"k"])
    with pytest.raises(ParameterError, match="cannot name a partition"):
        Log(tmp_path, "../0")
    with pytest.raises(StreamError, match="is no log"):
        sn.open_stream(tmp_path / "elsewhere")
    with pytest.raises(ParameterError, match="'partition' is not in the options"):
        sn.open_stream(tmp_path, partition=3)
