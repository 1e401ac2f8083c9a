"What `Lake.expire` promises: what stays can be read at any moment, what goes is said before"

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import xarray as xr
from test_publication import CONTRACT, WRITE
from killing import DEADLY
from toy import Project

from scalai_nb.data.lake.upkeep.replica import bytes_in
from scalai_nb.cli import main
from scalai_nb.data.lake import layout
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.lake.repository import opened
from scalai_nb.data.lake.storage import is_remote
from scalai_nb.errors import Conflict, DatasetNotFound, LakeError, VersionNotFound

CAMPAIGN = [pytest.mark.campaign, pytest.mark.slow]


def table(seed: int, n: int = 3000) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    return xr.Dataset({"x": ("row", rng.random(n)), "k": ("row", rng.integers(0, 9, n))})


def history(lake: Lake, rng: random.Random, writes: int) -> list[str]:
    "The versions of a dataset: written, appended to, tagged, branched, restored, compacted"
    ids = [lake.write("a", table(0)).id]
    for n in range(1, writes):
        what = rng.choice(["write", "append", "append", "tag", "restore", "branch"])
        if what == "append":
            ids.append(lake.append("a", table(n, rng.randrange(1, 200))).id)
            if rng.random() < 0.5:
                lake.compact("a")
        elif what == "restore":
            ids.append(lake.restore("a", rng.choice(ids)).id)
        elif what == "tag":
            lake.tag("a", f"tag{len(refs(lake))}", rng.choice(ids))
        elif what == "branch":
            side = f"side{len(refs(lake))}"
            lake.branch("a", side, rng.choice(ids))
            if rng.random() < 0.7:
                lake.append("a", table(n, 7), branch=side)
        if what in ("write", "tag", "branch"):
            ids.append(lake.write("a", table(n)).id)
    return ids


def contents(lake: Lake, ids) -> dict[str, tuple[float, int]]:
    found = {id: lake.read("a", id) for id in ids}
    return {id: (float(ds.x.sum()), ds.sizes["row"]) for id, ds in found.items()}


def refs(lake: Lake) -> dict[str, str]:
    "The versions that tags and branches name"
    repo = opened(lake.path / "a")
    tags = {t: repo.lookup_tag(t) for t in repo.list_tags()}
    found = tags | {b: repo.lookup_branch(b) for b in repo.list_branches()}
    return {ref: id for ref, id in found.items() if not ref.startswith("kept.")}


def files(lake: Lake) -> dict:
    "Every file of a dataset with its bytes; one in a bucket with its tag and time"
    folder = lake.path / "a"
    if is_remote(folder):
        return folder.objects()
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def check_expiry(lake: Lake, rng: random.Random, keep: int, writes: int) -> None:
    "The law of an expiry, here and in a bucket"
    history(lake, rng, writes)
    before = [v.id for v in lake.log("a")]
    named, tips = rng.sample(before, 2), refs(lake)
    stay = {*before[:keep], *named, *tips.values()}
    there, stored, size = contents(lake, stay), files(lake), bytes_in(lake.path / "a")
    said = lake.expire("a", keep, named)
    assert files(lake) == stored and contents(lake, stay) == there
    assert lake.expire("a", keep, named, dry_run=False) == said
    (gone,) = said
    assert bytes_in(lake.path / "a") == size - gone.bytes < size
    assert not stay & {*gone.versions} and refs(lake) == tips
    assert contents(lake, stay) == there and lake.verify("a") == []
    assert [v.id for v in lake.log("a")] == [id for id in before if id not in gone.versions]
    assert [v.parent for v in lake.log("a")] == [*[v.id for v in lake.log("a")][1:], None]
    assert lake.expire("a", keep, named) == []
    for id in gone.versions:
        with pytest.raises(VersionNotFound, match="expired on 2"):
            lake.read("a", id[:8])


@pytest.mark.parametrize("seed", range(2))
def test_what_stays_is_as_it_was_and_what_goes_was_said(tmp_path, seed):
    rng, lake = random.Random(seed), Lake(tmp_path)
    for keep in (4, 1):
        check_expiry(lake, rng, keep, writes=8)


def test_what_nobody_names_any_more_goes_the_next_time(tmp_path):
    lake = Lake(tmp_path)
    ids = [lake.write("a", table(n)).id for n in range(4)]
    lake.expire("a", 1, ids[1:2], dry_run=False)
    assert [v.id for v in lake.log("a")] == [ids[3], ids[1]]
    assert lake.expire("a", "10h", ids[1:2]) == []
    assert [r.versions for r in lake.expire("a", 1, (), dry_run=False)] == [(ids[1],)]
    assert [v.id for v in lake.log("a")] == ids[3:] and lake.verify("a") == []


def test_a_branch_that_was_begun_before_is_published_after(tmp_path):
    lake = Lake(tmp_path)
    ids = [lake.write("a", table(n)).id for n in range(4)]
    ids += [lake.write("a", table(n), branch="run").id for n in (9, 10)]
    time.sleep(0.1)
    lake.expire("a", "0.05s", (), dry_run=False)
    assert [v.id for v in lake.log("a", "run")] == [ids[5], ids[3]]
    lake.publish("a", "run")
    assert [v.id for v in lake.log("a")] == [ids[5], ids[3]]
    lake.expire("a", 2, (), dry_run=False)
    assert [v.id for v in lake.log("a")] == [ids[5], ids[3]] and lake.verify("a") == []
    contents(lake, [ids[3], ids[5]])


def test_a_flipped_bit_is_found_in_a_history_that_was_cut(tmp_path, monkeypatch):
    for name, small in (("CHUNK", 256), ("BLOCK", 2**17), ("SMALL", 2**12)):
        monkeypatch.setattr(layout, name, small)  # an append leaves the first chunks as they are
    lake = Lake(tmp_path)
    for n in range(4):
        lake.append("a", table(n, 9)) if n else lake.write("a", table(n, 1000))
    lake.expire("a", 1, (), dry_run=False)
    for file in sorted((tmp_path / "a/chunks").iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        assert [f for f in lake.verify("a") if f.bad], file
        file.write_bytes(whole)


def test_a_damaged_record_of_what_stays_is_not_sealed_as_if_it_were_whole(tmp_path):
    lake = Lake(tmp_path)
    ids = [lake.write("a", table(n)).id for n in range(3)]
    record = tmp_path / "a/snapshots" / ids[2]
    whole = record.read_bytes()
    record.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LakeError):
        lake.expire("a", 1, (), dry_run=False)
    record.write_bytes(whole)
    assert lake.verify("a") == [] and len(lake.log("a")) == 3


def test_who_reads_meanwhile_is_not_disturbed_and_who_writes_is_waited_for(tmp_path):
    lake, errors = Lake(tmp_path), []
    ids = [lake.write("a", table(n)).id for n in range(12)]
    expected, over = contents(lake, ids[-2:]), threading.Event()

    def read():
        while not over.is_set():
            try:
                assert contents(Lake(tmp_path), ids[-2:]) == expected
                assert [v.id for v in Lake(tmp_path).log("a")][:2] == ids[:-3:-1]
            except Exception as e:
                errors.append(e)

    reader = threading.Thread(target=read)
    reader.start()
    for keep in range(11, 1, -1):
        lake.expire("a", keep, (), dry_run=False)
    over.set()
    reader.join()
    assert errors == []
    with lake.lock("a"), pytest.raises(Conflict):
        Lake(tmp_path, lock_timeout=0.1).expire("a", 1, ())


def test_rows_that_expire_while_they_are_read_say_so(tmp_path):
    lake = Lake(tmp_path)
    lake.write("a", table(0, 10**5))
    lazy = lake.read("a")
    lake.write("a", table(1))
    lake.expire("a", 1, (), dry_run=False)
    with pytest.raises(VersionNotFound, match="expired on 2.*Read another version"):
        lazy.x.values.sum()


@pytest.mark.parametrize("keep", [0, "0", -2, "soon", "3", "1.5", "-3d"])
def test_what_is_no_rule_is_refused(tmp_path, keep):
    lake = Lake(tmp_path)
    lake.write("a", table(0))
    if keep == "3":
        assert lake.expire("a", keep, ()) == []
        return
    with pytest.raises(LakeError, match="accepted: a number of versions from 1"):
        lake.expire("a", keep, ())
    with pytest.raises(DatasetNotFound, match="Did you mean 'a'|'b'"):
        lake.expire("b", 1, ())


CHILD = f"""{DEADLY}
from pathlib import Path
from icechunk import Repository
from scalai_nb.data.lake.lake import Lake

for name in ("create_branch", "delete_branch", "expire_snapshots", "garbage_collect"):
    deadly(Repository, name)
deadly(Path, "replace")
deadly(Path, "unlink")
lake, left, *named = sys.argv[1:]
left = int(left)
Lake(lake).expire("a", 2, named, dry_run=False)
"""


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=CAMPAIGN)])
def test_killed_at_a_step_nothing_that_stays_is_lost(tmp_path, every):
    template = Lake(tmp_path / "template")
    ids = [template.write("a", table(n, 20_000)).id for n in range(6)]
    template.tag("a", "old", ids[0])
    template.write("a", table(99), branch="side")
    template.expire("a", 5, ids[1:2], dry_run=False)
    named, stay = ids[2:3], [ids[0], ids[2], *ids[4:], "side"]
    expected = contents(template, stay)
    size = bytes_in(template.path / "a")
    for step in range(1, 400, every):
        lake = Lake(tmp_path / f"lake{step}")
        shutil.copytree(template.path, lake.path)
        words = [sys.executable, "-c", CHILD, lake.path, str(step), *named]
        status = subprocess.run(words).returncode
        assert contents(lake, stay) == expected and lake.verify("a") == [], step
        assert status in (0, -signal.SIGKILL)
        lake.expire("a", 2, named, dry_run=False)
        assert contents(lake, stay) == expected and lake.verify("a") == [], step
        assert {v.id for v in lake.log("a")} == {*stay} - {"side"}, step
        assert bytes_in(lake.path / "a") < size, step
        if status == 0:
            break
        shutil.rmtree(lake.path)
    assert status == 0 and step > 20


def test_the_command_keeps_what_runs_name_and_says_what_goes(tmp_path, monkeypatch, capsys):
    project = Project(tmp_path)
    project.step("00_make", CONTRACT, WRITE)
    assert project.said("run", "toy").returncode == 0
    lake = Lake(project.root / ".scalai/lake")
    run = lake.version("a").id
    ids = [lake.write("a", table(n)).id for n in range(3)]
    monkeypatch.chdir(project.root)

    def scalai(*words: str) -> tuple[str, str]:
        with pytest.raises(SystemExit):
            main(["lake", "expire", *words])
        return tuple(capsys.readouterr())

    words = "a", "--keep", "1"
    (said,) = json.loads(scalai(*words, "--dry-run", "--json")[0])
    assert (said["what"], said["versions"], said["name"]) == ("versions", ids[:2], "2 of 4")
    assert "Nothing was removed yet; add --yes" in scalai(*words)[0]
    assert "say the opposite" in scalai(*words, "--yes", "--dry-run")[1]
    assert "Did you mean" in scalai("aa", "--keep", "1")[1]
    assert "accepted: a number of versions" in scalai("--keep", "0")[1]
    before = bytes_in(lake.path / "a")
    assert "It was removed." in scalai(*words, "--yes")[0]
    assert bytes_in(lake.path / "a") == before - said["bytes"]
    assert [v.id for v in lake.log("a")] == [ids[2], run]
    assert "no version goes with --keep 1" in scalai(*words)[0]
    (record,) = (project.root / ".scalai").glob("runs/*/events.jsonl")
    record.write_bytes(record.read_bytes().replace(b'"inputs"', b'"inputs', 1))
    assert "names is not known" in scalai(*words, "--yes")[1]
    assert lake.read("a", run).sizes["row"]
