"What `Lake.copy` promises: a lake with the same versions, whatever happened on the way"

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from test_retention import contents, history, refs, table

from scalai_nb.cli import main
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.lake.repository import ROOT
from scalai_nb.data.lake.upkeep import copying
from scalai_nb.data.lake.upkeep.replica import bytes_in
from scalai_nb.data.lake.upkeep.retention import collect, ripe
from scalai_nb.errors import DatasetNotFound, LakeError


def same(lake: Lake, copy: Lake) -> None:
    "Every version of the one is in the other, with its rows, states, tags and branches"
    assert refs(copy) == refs(lake) and copy.verify("a") == []
    for ref in refs(lake):
        assert [v.id for v in lake.log("a", ref)] == [v.id for v in copy.log("a", ref)]
    ids = [v.id for v in lake.log("a")]
    assert contents(copy, ids) == contents(lake, ids) and copy.state("a") == lake.state("a")


def test_a_copy_that_is_repeated_has_what_is_new_and_keeps_what_expired(tmp_path):
    rng, lake, copy = random.Random(3), Lake(tmp_path / "lake"), Lake(tmp_path / "copy")
    history(lake, rng, 6)
    lake.append("a", table(1, 5), state={"read": 7})
    said = lake.copy(copy.path, dry_run=True)
    assert not copy.path.exists() and lake.copy(copy.path) == said and said[0].versions > 6
    same(lake, copy)
    assert [c.files for c in lake.copy(copy.path)] == [0]
    history(lake, rng, 4)
    before = [v.id for v in copy.log("a")]
    lake.expire("a", 2, (), dry_run=False)
    lake.copy(copy.path)
    assert [v.id for v in copy.log("a")][:2] == [v.id for v in lake.log("a")][:2]
    there = contents(copy, before)
    with copy.locked("a") as repo:
        collect(repo, copy.path / "a", ripe(copy.path))
    assert contents(copy, before) == there and copy.verify("a") == []
    assert copy.append("a", table(2, 5)).rows
    with pytest.raises(LakeError, match="another 'a': there branch 'main' is"):
        lake.append("a", table(3, 5))
        lake.copy(copy.path)


KILLED = """
import sys
from scalai_nb.data.lake.lake import Lake
Lake(sys.argv[1]).copy(sys.argv[2], progress=lambda done, total: print(done, flush=True))
"""


def test_a_copy_that_was_killed_goes_on(tmp_path):
    lake, copy = Lake(tmp_path / "lake"), Lake(tmp_path / "copy")
    for n in range(12):
        lake.write("a", table(n, 10_000))
    words, pipe = [sys.executable, "-c", KILLED, lake.path, copy.path], subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe) as process:
        process.stdout.readline()
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert "a" not in copy.names() or copy.verify("a") == []
    (rest,) = lake.copy(copy.path)
    assert rest.bytes < bytes_in(lake.path / "a")
    same(lake, copy)


def test_a_copy_that_is_cut_off_anywhere_goes_on(tmp_path, monkeypatch):
    "Before and after each file, and before the checksum of the first snapshot"
    lake = Lake(tmp_path / "lake")
    for n in range(3):
        lake.write("a", table(n))

    def cut(name: str, at: int, after: bool) -> bool:
        "Whether a copy was cut off beside the call with this number"
        copy, inner, left = Lake(tmp_path / f"{name}-{at}-{after}"), getattr(copying, name), at

        def call(*args, **more):
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise KeyboardInterrupt
            inner(*args, **more)
            if left == 0:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(copying, name, call)
            with suppress(KeyboardInterrupt):
                lake.copy(copy.path)
        lake.copy(copy.path)
        same(lake, copy)
        return left <= 0

    for name in ("put", "seal"):
        for after in (False, True):
            at = 1
            while cut(name, at, after):
                at += 1
            assert at > 1


def test_versions_expire_in_a_copy_as_they_do_here(tmp_path):
    lake, copy = Lake(tmp_path / "lake"), Lake(tmp_path / "copy")
    for n in range(6):
        lake.write("a", table(n))
    lake.tag("a", "gold", lake.log("a")[-1])
    lake.copy(copy.path)
    assert copy.expire("a", 2, (), dry_run=False) == lake.expire("a", 2, (), dry_run=False) != []
    same(lake, copy)


def test_a_copy_that_looks_younger_than_its_versions_is_copied_again_before_they_expire(tmp_path):
    "An earlier scalai-nb left the first snapshot of a copy, which is as old as the copy"
    lake, copy, new = (Lake(tmp_path / name) for name in ("lake", "copy", "new"))
    for n in range(3):
        lake.write("a", table(n))
    lake.copy(copy.path)
    with new.locked("a"):
        pass
    for record in (f"snapshots/{ROOT}", f"checksums/{ROOT}"):
        shutil.copy(new.path / "a" / record, copy.path / "a" / record)
    with pytest.raises(LakeError, match="copied by an earlier scalai-nb.*Copy it again"):
        copy.expire("a", 1, ())
    assert [c.files for c in copy.copy(lake.path)] == [0]
    assert [(c.versions, c.files) for c in lake.copy(copy.path)] == [(0, 1)]
    assert copy.expire("a", 1, (), dry_run=False) and copy.verify("a") == []


def test_a_copy_of_what_is_newer_is_shorter(tmp_path):
    lake, short, full = (Lake(tmp_path / name) for name in ("lake", "short", "full"))
    v = [lake.write("a", table(n, 10_000)) for n in range(5)]
    lake.copy(full.path)
    ids, files = [x.id for x in v], bytes_in(lake.path / "a")
    said = lake.copy(short.path, since=v[2], dry_run=True)
    assert not short.path.exists() and said[0].versions == 2 and said[0].bytes < files / 2
    assert lake.copy(short.path, since=ids[2]) == said
    assert [x.id for x in short.log("a")] == [ids[4], ids[3]] and short.verify("a") == []
    assert contents(short, ids[3:]) == contents(lake, ids[3:])
    assert bytes_in(lake.path / "a") == files and lake.log("a") == v[::-1]
    assert [c.files for c in lake.copy(short.path, since=v[3].time.isoformat())] == [0]
    v.append(lake.append("a", table(9, 10)))
    for there, length in ((short, 3), (full, 6)):
        assert [c.versions for c in lake.copy(there.path, since=ids[3])] == [1]
        assert [x.id for x in there.log("a")] == [x.id for x in v[::-1][:length]]
        assert there.verify("a") == []
        assert there.append("a", table(7, 5)).rows == v[-1].rows + 5
    with pytest.raises(LakeError, match="neither a version of 'a' nor a time; accepted"):
        lake.copy(short.path, since="yesterday")


def test_a_copy_after_a_gap_keeps_what_was_there(tmp_path):
    lake, copy = Lake(tmp_path / "lake"), Lake(tmp_path / "copy")
    v = [lake.write("a", table(n)) for n in range(2)]
    lake.tag("a", "gold", v[0])
    lake.copy(copy.path)
    v += [lake.write("a", table(n)) for n in range(2, 6)]
    lake.copy(copy.path, since=v[3])
    assert [x.id for x in copy.log("a")] == [v[5].id, v[4].id, v[0].id]  # it has a tag
    assert copy.verify("a") == []
    there = [v[0].id, v[1].id, v[4].id, v[5].id]
    with copy.locked("a") as repo:
        collect(repo, copy.path / "a", ripe(copy.path))
    assert contents(copy, there) == contents(lake, there)
    assert copy.version("a", "gold").id == v[0].id


def test_damage_is_not_copied(tmp_path):
    lake, copy = Lake(tmp_path / "lake"), Lake(tmp_path / "copy")
    first = lake.write("a", table(0, 10_000))
    lake.copy(copy.path)
    lake.write("a", table(1, 10_000))
    for kind in ("chunks", "manifests", "transactions", "snapshots"):
        new = {f.name for f in (lake.path / "a" / kind).iterdir()}
        new -= {f.name for f in (copy.path / "a" / kind).iterdir()}
        file = lake.path / "a" / kind / min(new)
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(LakeError, match="damaged"):
            lake.copy(copy.path)
        assert [v.id for v in copy.log("a")] == [first.id] and copy.verify("a") == []
        file.write_bytes(whole)
    lake.copy(copy.path)
    same(lake, copy)


def test_a_dataset_that_was_lost_is_restored_by_the_command(tmp_path, capsys):
    lake, copy = Lake(tmp_path / "lake"), Lake(tmp_path / "copy")
    ids = [lake.write("a", table(n)).id for n in range(2)]

    def scalai(*words: str) -> str:
        with pytest.raises(SystemExit):
            main(["lake", "copy", *map(str, words)])
        return "".join(capsys.readouterr())

    since = "--since", ids[0], "--dry-run", "--json"
    assert json.loads(scalai(lake.path, tmp_path / "short", *since))[0]["versions"] == 1

    assert "versions" in scalai(lake.path, copy.path, "--dry-run") and not copy.path.exists()
    assert '"versions": 2' in scalai(lake.path, copy.path, "a", "--json")
    assert "The other lake has all of it." in scalai(lake.path, copy.path)
    shutil.rmtree(lake.path / "a")
    scalai(copy.path, lake.path)
    assert [v.id for v in lake.log("a")] == ids[::-1] and lake.verify("a") == []
    assert "is this lake itself" in scalai(lake.path, lake.path)
    assert "There is no lake in" in scalai(tmp_path / "none", copy.path)
    with pytest.raises(DatasetNotFound):
        lake.copy(copy.path, ["b"])
