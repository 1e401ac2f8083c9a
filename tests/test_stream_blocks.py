"""A reduction over a stream: what is a row, where it goes on when interrupted, what it refuses"""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import xarray as xr

import scalai_nb as sn
from scalai_nb.compute import reduce as reducing
from scalai_nb.compute.blocks import Blocks
from scalai_nb.compute.mergeable import Mergeable
from scalai_nb.data.streams.embedded import Log, LogStream
from scalai_nb.data.streams.records import StreamBlocks
from scalai_nb.errors import ParameterError, StreamError, WorkFailed

TOTAL = Mergeable(float, lambda s, b: s + float(b["kg"].sum()), lambda a, b: a + b)


@pytest.fixture
def picked(tmp_path, monkeypatch):
    "A log of small segments, and small runs"
    monkeypatch.setattr(reducing, "BLOCK", 1)
    with Log(tmp_path / "picked", segment=500) as log:
        put(log, *({"kg": i, "tree": f"t{i % 3}"} for i in range(100)))
        yield log


def put(log, *records):
    return log.append([r if isinstance(r, bytes) else json.dumps(r).encode() for r in records])


def blocks(log, **how):
    return StreamBlocks(LogStream(log.path), **{"rows": 7, "idle": 0, **how})


def interrupted(log, file, after=50):
    "Reduce until a block begins at `after` or later"

    def update(s, b):
        if b["kg"].values[0] >= after:
            raise OSError("gone")
        return TOTAL.update(s, b)

    with pytest.raises(WorkFailed, match=r"log:picked-.*, before \{'0': \d+\}: OSError: gone"):
        sn.reduce(replace(TOTAL, update=update), blocks(log), checkpoint=file)


def test_a_stream_is_data_like_others(picked):
    stream = LogStream(picked.path)
    assert sn.reduce(TOTAL, stream) == sum(range(100))
    assert sn.summarize(stream)["tree"].distinct == 3
    contract = sn.Contract.infer(next(iter(Blocks.of(blocks(picked, rows=100)))))
    assert contract.check(blocks(picked)).ok
    between = datetime.now(UTC)
    put(picked, {"kg": 7, "tree": "t0"})
    assert sn.reduce(TOTAL, blocks(picked, start=stream.at(between))) == 7
    _, last = Blocks.of(blocks(picked, rows=60), columns=["kg"])
    assert last["kg"].values.tolist() == [*range(60, 100), 7] and list(last) == ["kg"]


def test_what_is_interrupted_goes_on_from_its_positions(picked, tmp_path, monkeypatch):
    file, seen = tmp_path / "total", []
    interrupted(picked, file)
    put(picked, {"kg": 1000, "tree": "t1"})
    with Log(picked.path, "1") as added:
        put(added, {"kg": 10_000, "tree": "t1"})
    poll = LogStream.poll

    def watched(*words):
        records, positions = poll(*words)
        seen.extend(records.values)
        return records, positions

    monkeypatch.setattr(LogStream, "poll", watched)
    with pytest.raises(ParameterError, match="begun with other data or another algorithm"):
        sn.reduce(TOTAL, blocks(picked, decoder="raw"), checkpoint=file)
    assert sn.reduce(TOTAL, blocks(picked), checkpoint=file) == sum(range(100)) + 11_000
    assert len(seen) < 70 and not file.exists(), "what was counted is not read again"


def test_what_is_dropped_meanwhile_is_a_gap_and_not_passed_over(picked, tmp_path):
    interrupted(picked, tmp_path / "total", 20)
    picked.keep_bytes = 1000
    for i in range(100, 200):
        put(picked, {"kg": i, "tree": "t1"})
    for _ in range(2):
        with pytest.raises(StreamError, match=r"Records \d+ to \d+ of .* are not kept"):
            sn.reduce(TOTAL, blocks(picked), checkpoint=tmp_path / "total")
    assert (tmp_path / "total").exists()


def test_types_are_those_of_the_first_block(picked, tmp_path):
    interrupted(picked, tmp_path / "total", 90)
    put(picked, {"kg": 0.5, "tree": "t1"})
    with pytest.raises(StreamError, match=r"partition 0, record 100: .*on_bad='skip'"):
        sn.reduce(TOTAL, blocks(picked), checkpoint=tmp_path / "total")
    declared = {"types": {"kg": "float64"}}
    assert sn.reduce(TOTAL, blocks(picked, **declared)) == sum(range(100)) + 0.5


@pytest.mark.parametrize("record, said", [(b"{", "JSON"), (b"[1]", "JSON"), (None, "deletes")])
def test_what_is_no_row_is_named_or_left_out(picked, caplog, record, said):
    picked.append([record])
    with pytest.raises(StreamError, match=rf"record 100: .*{said}.*on_bad='skip'\) leaves out"):
        sn.reduce(TOTAL, blocks(picked))
    put(picked, {"kg": 5, "tree": "t1"})
    assert sn.reduce(TOTAL, blocks(picked, on_bad="skip")) == sum(range(100)) + 5
    assert "record 100: " in caplog.text and "1 records that are no rows" in caplog.text


def test_a_new_field_is_refused_or_ignored(picked):
    put(picked, {"kg": 5, "tree": "t1", "ripe": True})
    with pytest.raises(StreamError, match=r"record 100: it has 'ripe'.*new_fields='ignore'"):
        sn.reduce(TOTAL, blocks(picked))
    assert sn.reduce(TOTAL, blocks(picked, new_fields="ignore")) == sum(range(100)) + 5


def test_a_stream_that_forgets_is_refused(picked, monkeypatch):
    monkeypatch.setattr(LogStream, "lasting", False)
    with pytest.raises(StreamError, match="and never again; land it in a dataset"):
        sn.reduce(TOTAL, LogStream(picked.path))


def test_blocks_that_say_no_positions_are_counted_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(reducing, "BLOCK", 1)
    file = tmp_path / "total"
    given = [xr.Dataset({"kg": ("row", np.array([i]))}) for i in range(9)]

    def coming(broken):
        yield from given[:5]
        if broken:
            raise OSError("gone")
        yield from given[5:]

    with pytest.raises(OSError, match="gone"):
        sn.reduce(TOTAL, coming(True), checkpoint=file)
    assert file.exists()
    assert sn.reduce(TOTAL, coming(False), checkpoint=file) == sum(range(9))
