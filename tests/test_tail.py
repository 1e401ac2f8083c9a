"Small appends wait in a tail and move into chunks: no version ever says anything else"

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr
from toy import Project

from scalai_nb.bench.data.appends import held, pieces, written
from scalai_nb.data.categories import coded
from scalai_nb.data.lake import layout, repository, tail
from scalai_nb.data.lake.upkeep.expiry import sizes
from scalai_nb.data.lake.lake import Lake
from scalai_nb.describe.summary import summarize
from scalai_nb.errors import LakeError


def table(first: int, rows: int, carriers: tuple[str, ...] = ("AA", "UA")) -> xr.Dataset:
    "A column of each kind; row `i` says its own number"
    i = np.arange(first, first + rows)
    codes = (i % (len(carriers) + 1) - 1).astype("i1")
    return xr.Dataset(
        {
            "id": ("row", i),
            "temp": ("row", np.where(i % 3, i / 2, np.nan), {"units": "°F"}),
            "carrier": ("row", codes, {"categories": [*carriers]}),
            "name": ("row", np.array([f"N{k}" if k % 4 else None for k in i], object)),
            "at": ("row", np.where(i % 5, i.astype("M8[ns]"), np.datetime64("NaT"))),
            "image": (("row", "y"), np.stack([i, -i], 1).astype("f4")),
            "late": ("row", i % 2 == 0),
        },
        coords={"y": [1.0, 2.0]},
        attrs={"title": "flights"},
    )


@pytest.fixture
def lake(tmp_path, monkeypatch):
    "Chunks of 64 rows, pages of 4 blocks, levels of 8"
    monkeypatch.setattr(layout, "CHUNK", 64)
    monkeypatch.setattr(layout, "SMALL", 2**13)
    monkeypatch.setattr(tail, "PAGE", 4)
    monkeypatch.setattr(tail, "FAN", 8)
    repository._opened_group.cache_clear()
    yield Lake(tmp_path / "lake", author="ada")
    repository._opened_group.cache_clear()


def schema(lake: Lake) -> dict:
    return layout.schema_of_group(newest(lake))


def newest(lake: Lake):
    "The group of the newest version"
    repo = repository.opened(lake.path / "a")
    return repository.group(str(lake.path / "a"), repo.lookup_branch("main"))


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    xr.testing.assert_identical(coded(a.compute()), coded(b.compute()))


# --- rows -----------------------------------------------------------------------------------------


def test_head_and_tail_are_one_dataset(lake):
    lake.write("a", table(0, 10), state={"at": 0})
    for first in range(10, 40, 3):
        lake.append("a", table(first, 3), state={"at": first})
    lake.tag("a", "small")
    assert schema(lake)["tail"] == {"start": 10, "blocks": [2, 1]}
    whole = table(0, 40)
    same(lake.read("a"), whole)
    for window in ((0, 10), (8, 12), (10, 13), (20, 40), (39, 40), (15, 15)):
        same(lake.read("a", rows=window), whole.isel(row=slice(*window)))
    some = lake.read("a", columns=["temp", "name"])
    same(some, whole[["temp", "name"]].assign_coords(y=whole.y))
    assert str(summarize(lake.read("a"))) == str(summarize(whole))
    before, content = lake.log("a"), [lake.read("a", v).compute() for v in lake.log("a")]
    open_before = lake.read("a")
    assert lake.compact("a", dry_run=True) == lake.compact("a")
    assert "tail" not in schema(lake) and isinstance(newest(lake).attrs["schema"], str)
    assert lake.log("a") == before and lake.version("a") == before[0]
    for version, rows in zip(before, content, strict=True):
        same(lake.read("a", version), rows)
    same(open_before, whole)
    assert lake.state("a") == {"at": 37} and lake.version("a@small") == before[0]
    assert lake.read("a").encoding["source"] == f"a@{before[0].id}"
    assert lake.verify("a") == [] and lake.absent("a") == []
    assert lake.append("a", table(40, 1)).parent == before[0].id
    assert lake.verify("a") == [] and sizes(lake, ["a"])[0].versions == len(before) + 1


def test_rows_that_fill_a_chunk_go_there(lake):
    "Appends of all sizes, over several chunks"
    lake.write("a", table(0, 5))
    given, rows = random.Random(1), 5
    while rows < 400:
        more = given.choice((0, 1, 2, 5, 30, 70))
        lake.append("a", table(rows, more))
        rows += more
        about = schema(lake)
        assert rows - layout.head_rows(about) < about["chunk"]
    same(lake.read("a"), table(0, rows))
    assert lake.verify("a") == []


def test_new_categories_and_many_of_them(lake):
    lake.write("a", table(0, 6))
    lake.append("a", table(6, 3))
    many = tuple(f"C{k}" for k in range(200))
    lake.append("a", table(9, 20, many))
    lake.append("a", table(29, 2, ("UA", "AA")))
    for _ in range(2):
        found = lake.read("a").compute()
        labels = [f"C{i % 201 - 1}" if i % 201 else None for i in range(9, 29)]
        assert [v if isinstance(v, str) else None for v in found.carrier.values[9:29]] == labels
        assert found.carrier.values[29] == "AA" and found.carrier.values[5] == "UA"
        lake.compact("a")


def test_text_of_any_kind(lake):
    "NumPy's strings, the empty one, those that are missing, and several a row"
    text = np.array([[np.str_("a"), ""], [None, "\0"], ["ü", np.str_("b\0")]], object)
    ds = xr.Dataset({"one": ("row", text[:, 0]), "two": (("row", "k"), text)})
    lake.write("a", ds)
    lake.append("a", ds)
    for _ in range(2):
        found = lake.read("a").two.values
        assert [[v if v == v else None for v in row] for row in found[3:].tolist()] == text.tolist()
        lake.compact("a")


def test_upsert_dedup_restore_and_diff(lake):
    first = lake.write("a", table(0, 10))
    lake.append("a", table(10, 5))
    lake.append("a", table(12, 6), dedup="id")
    same(lake.read("a"), table(0, 18))
    new = table(0, 20).assign(temp=("row", np.arange(20.0), {"units": "°F"}))
    lake.upsert("a", new.isel(row=[16, 3, 11, 19]), "id")
    found = lake.read("a").compute()
    assert found.id.values.tolist() == [*range(18), 19]
    assert found.temp.values[[16, 3, 11, 18]].tolist() == [16, 3, 11, 19]
    same(found.isel(row=[4, 12, 17]), table(0, 18).isel(row=[4, 12, 17]))
    assert not lake.diff("a", first).columns
    lake.restore("a", first)
    same(lake.read("a"), table(0, 10))
    lake.write_blocks("a", [table(10, 2), table(12, 2)], append=True)
    same(lake.read("a"), table(0, 14))


def test_a_run_that_began_before_a_compaction_publishes(lake):
    lake.write("a", table(0, 5))
    lake.append("a", table(5, 5))
    lake.branch("a", "run-1")
    lake.append("a", table(10, 5), branch="run-1")
    lake.compact("a")
    lake.publish("a", "run-1")
    same(lake.read("a"), table(0, 15))
    assert [v.rows for v in lake.log("a")] == [15, 10, 5] and lake.verify("a") == []


def test_an_earlier_scalai_nb_refuses_what_it_would_miss(lake):
    "It takes the schema for a text"
    lake.write("a", table(0, 5))
    lake.append("a", table(5, 1))
    with pytest.raises(TypeError, match="must be str"):
        json.loads(newest(lake).attrs["schema"])


# --- damage and death -----------------------------------------------------------------------------


def test_a_damaged_block_is_named(lake):
    lake.write("a", table(0, 40))
    before = {*lake.path.glob("a/chunks/*")}
    lake.append("a", table(40, 20))
    (file,) = {*lake.path.glob("a/chunks/*")} - before
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    with pytest.raises(LakeError, match="damaged: its checksum .* rows 40 to 59 of 'id' of 'a'"):
        lake.read("a", columns=["id"]).compute()
    same(lake.read("a", rows=(0, 40)), table(0, 40))
    (finding,) = lake.verify("a")
    assert finding.where == "a block of small appends, from row 40 on" and finding.bad
    with pytest.raises(LakeError, match="damaged"):
        lake.compact("a")
    file.unlink()
    assert set(lake.absent("a")) >= {"id", "image"}


WORK = """
import sys
import numpy as np, xarray as xr
from scalai_nb.data.lake import layout, tail
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.lake.upkeep.expiry import sizes
layout.CHUNK, layout.SMALL, tail.PAGE, tail.FAN = 256, 2**12, 4, 8
lake = Lake(sys.argv[1])
if "a" not in lake.names():
    lake.write("a", xr.Dataset({"x": ("row", np.arange(3))}))
print("begun", flush=True)
while True:
    rows = lake.version("a").rows
    lake.append("a", xr.Dataset({"x": ("row", np.arange(rows, rows + 7))}))
    if rows % 3 == 0:
        lake.compact("a")
"""


def test_kill_in_appends_and_compactions_loses_no_row(lake):
    "Whenever the writer dies, each version has its own rows"
    kills, seed = int(os.environ.get("TAIL_KILLS", "4")), random.Random(2)
    rows = 0
    for _ in range(kills):
        command = [sys.executable, "-c", WORK, str(lake.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout.readline() == "begun\n"
            time.sleep(seed.uniform(0.3, 1.2))
            os.kill(writer.pid, signal.SIGKILL)
        log = lake.log("a")
        assert [v.rows for v in log] == [*range(log[0].rows, 2, -7)]
        assert log[0].rows >= rows
        rows = log[0].rows
        for version in (log[0], *seed.sample(log, min(5, len(log)))):
            np.testing.assert_array_equal(lake.read("a", version).x, np.arange(version.rows))
        assert not any(finding.bad for finding in lake.verify("a"))
    assert rows > 3


# --- figures and the command ----------------------------------------------------------------------


def test_many_small_appends_cost_little(tmp_path):
    given = pieces(150, 100, tmp_path)
    many = written(given, 100)
    files = sum(f.is_file() for f in (many[0].path / "rows").rglob("*"))
    found = held(given, many, written(given, 15_000)[0])
    assert found["bytes"] < 3
    assert files < 150 * 7
    assert found["the last tenth of the appends, of the first"] < 3


def test_the_command(tmp_path):
    project = Project(tmp_path, f"cluster = none\nlake = {tmp_path}/.scalai/lake\n")
    lake = Lake(tmp_path / ".scalai" / "lake")
    lake.write("a", table(0, 5))
    lake.append("a", table(5, 5))
    for more, rows in ((["--dry-run"], 5), ([], 5), (["--dry-run"], 0)):
        done = project.said("lake", "compact", "a", "--json", *more)
        assert json.loads(done.stdout) == [{"dataset": "a", "rows": rows, "blocks": rows // 5}]
    assert "No rows are in small pieces" in project.said("lake", "compact").stdout
    lake.append("a", table(10, 5))
    assert "The rows are in chunks" in project.said("lake", "compact").stdout


def test_what_is_said_of_a_version_whose_rows_were_moved_is_said_of_the_version(tmp_path):
    lake = Lake(tmp_path)
    lake.write("a", xr.Dataset({"x": ("row", np.random.default_rng(0).random(50_000))}))
    for k in range(3):
        lake.append("a", xr.Dataset({"x": ("row", np.full(1_000, float(k)))}))
    before = sizes(lake, ["a"])[0].newest
    lake.compact("a")
    assert sizes(lake, ["a"])[0].newest != before
    newest = max((tmp_path / "a/chunks").iterdir(), key=lambda f: f.stat().st_mtime_ns)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    (found,) = lake.verify("a")
    assert found.column == "x" and found.versions == (lake.version("a").id,)
