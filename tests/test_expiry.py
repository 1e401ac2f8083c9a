"What `scalai lake expire` promises: the remains of the dead go when asked, and nothing else"

import json
import os
import random
import signal

import numpy as np
import pytest
import xarray as xr
from test_publication import CONTRACT, WRITE
from toy import Project

from scalai_nb.data.lake.upkeep.expiry import expire
from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import environment
from scalai_nb.errors import LakeError
from scalai_nb.models.registry.registry import Registry
from scalai_nb.pipeline.run import load_run


def table(n: int, seed: int) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    return xr.Dataset({"x": ("row", rng.random(n)), "k": ("row", rng.integers(0, 9, n))})


def content(lake: Lake) -> dict:
    "Every file of a lake, but locks"
    found = (f for f in lake.path.rglob("*") if f.is_file() and ".locks" not in f.parts)
    return {str(f.relative_to(lake.path)): f.read_bytes() for f in found}


def history(lake: Lake, rng: random.Random, runs: int) -> None:
    "What runs do to datasets: they write on branches, publish, drop, die; others tag and restore"
    for run in range(runs):
        name, seed = rng.choice("ab"), rng.randrange(10**6)
        branch = f"{rng.choice(['dead', 'alive'])}-{run}.step"
        lake.write(name, table(rng.randrange(1, 3000), seed), branch=branch)
        if rng.random() < 0.3:
            lake.append(name, table(9, seed), branch=branch)
        what = rng.choice(["publish", "publish", "drop", "die", "die"])
        if what == "publish" and name not in lake.names():
            lake.publish(name, branch)
        elif what == "publish":
            lake.write(name, lake.read(name, branch))
        elif what == "drop":
            lake.drop(name, branch)
        if name in lake.names() and rng.random() < 0.3:
            lake.tag(name, f"tag{run}", rng.choice(lake.log(name)))
        if name in lake.names() and rng.random() < 0.2:
            lake.restore(name, rng.choice(lake.log(name)))


def readable(lake: Lake, dead: bool) -> dict:
    "The log of every branch and tag, and what its versions hold; `dead`: those of the dead as well"
    found = {}
    for name in sorted(p.name for p in lake.path.iterdir() if (p / "refs").is_dir()):
        for ref in (lake.path / name / "refs").iterdir():
            ref = ref.name.partition(".")[2]
            if dead or not ref.startswith("dead"):
                try:
                    versions = lake.log(name, ref)
                except LookupError:  # main of what was never published
                    continue
                sums = [float(lake.read(name, v).x.sum()) for v in versions]
                found[name, ref] = versions, sums
    return found


@pytest.mark.parametrize("seed", range(4))
def test_no_version_that_somebody_could_read_is_lost(tmp_path, seed):
    lake = Lake(tmp_path / "lake")
    history(lake, random.Random(seed), 12)
    living, before = readable(lake, dead=False), content(lake)
    listed = expire(lake, lambda branch: branch.startswith("dead"))
    assert content(lake) == before
    removed = expire(lake, lambda branch: branch.startswith("dead"), dry_run=False)
    assert listed and {r for r in listed if r.what == "branch"} <= set(removed)
    assert readable(lake, dead=True) == living
    assert not [f for name in lake.names() for f in lake.verify(name)]
    while expire(lake, lambda branch: branch.startswith("dead"), dry_run=False):
        assert readable(lake, dead=True) == living  # a folder goes in two steps
    assert sum(map(len, content(lake).values())) < sum(map(len, before.values()))
    history(lake, random.Random(seed + 100), 4)


def test_what_was_never_published_goes_as_a_whole(tmp_path):
    lake = Lake(tmp_path / "lake")
    lake.write("a", table(100, 1), branch="dead")
    expire(lake, lambda branch: branch == "dead", dry_run=False)
    assert not (lake.path / "a").exists()
    expire(lake, dry_run=False)
    assert not content(lake)
    lake.write("a", table(5, 1))
    assert lake.log("a")[0].rows == 5


def test_who_writes_is_waited_for(tmp_path):
    lake = Lake(tmp_path / "lake", lock_timeout=0.2)
    lake.write("a", table(100, 1))
    with lake.lock("a"), pytest.raises(Exception, match="has been writing 'a' for more than 0.2 s"):
        expire(Lake(lake.path, lock_timeout=0.2), dry_run=False)


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "lake").write_text("no folder")
    with pytest.raises(LakeError, match="refused: .*Nothing was changed|refused: .*nothing was"):
        expire(Lake(tmp_path / "lake"))


def test_sizes_say_what_the_newest_version_takes_and_what_the_others(tmp_path):
    project = Project(tmp_path)
    assert "The lake is empty" in project.said("lake", "sizes").stdout
    lake = Lake(project.root / ".scalai/lake")
    random = xr.Dataset({"x": ("row", np.random.default_rng(0).random(50_000))})  # 400 kB as it is
    lake.write("small", table(10, 1))
    lake.write("large", random)
    lake.write("large", random)
    lake.append("small", table(10, 2))
    before = content(lake)
    large, small = json.loads(project.said("lake", "sizes", "--json").stdout)
    assert (large["dataset"], large["rows"], large["versions"]) == ("large", 50_000, 2)
    assert 350_000 < large["newest"] < 420_000 and 350_000 < large["history"] < 420_000
    assert (small["rows"], small["versions"]) == (20, 2)
    on_disk = sum(map(len, before.values()))
    assert sum(s["newest"] + s["history"] for s in (large, small)) == on_disk
    assert "history" in project.said("lake", "sizes", "large").stdout
    assert "Did you mean 'large'?" in project.said("lake", "sizes", "larg").stderr
    assert content(lake) == before


def test_a_killed_run_and_what_it_leaves(tmp_path, database):
    project = Project(tmp_path, database=database)
    wait = "import time; print('written', flush=True); time.sleep(60)"
    project.step("00_make", CONTRACT, WRITE, wait)
    process = project.start("run", "toy")
    project.wait_for("written", "00_make")
    env = environment("laptop", settings=project.root / "settings.ini")
    alive = project.said("lake", "expire")
    assert alive.stdout.strip() == "Nothing is left of runs that died.", alive
    os.kill(load_run(env).pid, signal.SIGKILL)
    process.communicate(timeout=30)
    listed = json.loads(project.said("lake", "expire", "--json").stdout)
    id = load_run(env).id
    assert [(r["dataset"], r["what"], r["name"]) for r in listed] == [
        ("a", "branch", f"{id}.make"),
        ("a", "folder", "a, never published"),
        ("m", "staged version", "1"),
    ]
    said = project.said("lake", "expire")

    assert (
        "Nothing was removed yet; add --yes to remove it." in said.stdout and "never" in said.stdout
    )
    assert Registry(env).staged(f"{id}.make")
    assert "It was removed." in project.said("lake", "expire", "--yes").stdout
    assert not Registry(env).staged(f"{id}.make") and not (tmp_path / ".scalai/models/m/1").exists()
    project.said("lake", "expire", "--yes")
    assert project.said("lake", "expire").stdout == alive.stdout
