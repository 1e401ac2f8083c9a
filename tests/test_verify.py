"What damage and verify promise: a bit that flips is found, named, and never a value"

import json
import pickle
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from toy import Project

from scalai_nb.compute.blocks import Blocks
from scalai_nb.data.categories import coded
from scalai_nb.data.lake import lake as lakes, layout, repository
from scalai_nb.data.lake.damage import SEALS, Seal
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import DatasetNotFound, LakeError

FLIPS = 60  # of a seed of the campaign; a third of them in the suite
CAMPAIGN = [pytest.mark.campaign, pytest.mark.slow]


def table(n: int, seed: int) -> xr.Dataset:
    "One column of each way to lie on the disk, of numbers that do not compress"
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 999, n)
    return xr.Dataset(
        {
            "id": ("row", np.arange(n)),
            "temp": ("row", rng.random(n), {"units": "°F"}),
            "carrier": ("row", rng.integers(-1, 2, n).astype("i1"), {"categories": ["AA", "UA"]}),
            "tailnum": ("row", np.array([f"N{k}" if k % 5 else None for k in numbers], object)),
            "image": (("row", "y"), rng.random((n, 3)).astype("f4")),
            "calm": ("row", np.zeros(n)),
        },
        coords={"y": [1.0, 2.0, 3.0]},
        attrs={"title": "flights"},
    )


def forget():
    "As in a new process: nothing that was read is remembered"
    repository._opened_group.cache_clear()
    layout._HERE.clear()


@pytest.fixture
def small(monkeypatch):
    "Chunks of 256 rows, so that few rows have many; smaller ones would lie in the manifests"
    for name, size in (("CHUNK", 256), ("BLOCK", 2**17), ("SMALL", 2**12)):
        monkeypatch.setattr(layout, name, size)


@pytest.fixture
def as_before(monkeypatch):
    "Write as scalai-nb did before there were checksums"
    create = zarr.Group.create_array
    monkeypatch.setattr(
        zarr.Group,
        "create_array",
        lambda self, name, *, compressors, **kw: create(
            self, name, compressors=compressors[:1], **kw
        ),
    )
    for module in (lakes, repository):
        monkeypatch.setattr(module, "seal", lambda *_: None)


@pytest.fixture
def lake(tmp_path, small):
    forget()
    yield Lake(tmp_path / "lake", author="ada")
    forget()


def filled(lake: Lake) -> list:
    "Four versions of `a`: one written, one appended to it, and the same of another kind"
    other = [table(n, n).drop_vars("calm") for n in (600, 80)]
    return [
        lake.write("a", table(800, 1), "one"),
        lake.append("a", table(400, 2), "two"),
        lake.write("a", other[0], "three"),
        lake.append("a", other[1], "four"),
    ]


def files(lake: Lake, kind: str = "*") -> list[Path]:
    "The files of `a` that are not empty"
    found = (lake.path / "a").glob(f"{kind}/**/*")
    return sorted(f for f in found if f.is_file() and f.stat().st_size)


def flip(file: Path, at: int = -9, bit: int = 4) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


def said(look, *args) -> str:
    "What the LakeError says that `look` ends with"
    forget()
    with pytest.raises(LakeError) as e:
        look(*args)
    return str(e.value)


# --- the campaign ---------------------------------------------------------------------------------


def outcome(look, good) -> str:
    forget()
    try:
        return "right" if look().identical(good) else "wrong"
    except LakeError:
        return "LakeError"
    except BaseException as e:  # a panic of Icechunk's is no Exception
        return type(e).__name__


def campaign(lake: Lake, seed: int, flips: int) -> tuple[Counter, list]:
    "Outcomes of reading every version with one bit flipped, and the flips that `verify` missed"
    versions = filled(lake)
    lake.tag("a", "first", versions[0])
    reads = {ref: lake.read("a", ref).compute() for ref in (*(v.id for v in versions), "first")}
    all_files, rng = files(lake), random.Random(seed)
    outcomes, missed = Counter(), []
    for _ in range(flips):
        file = rng.choice(all_files)
        written = file.read_bytes()
        place = rng.randrange(len(written)), rng.randrange(8)
        flip(file, *place)
        outcomes.update(
            outcome(lambda ref=ref: lake.read("a", ref).compute(), good)
            for ref, good in reads.items()
        )
        forget()
        if not any(finding.bad for finding in lake.verify("a")):
            missed.append((file.relative_to(lake.path), *place))
        file.write_bytes(written)
    assert lake.verify("a") == [] or all(not f.bad for f in lake.verify("a"))
    return outcomes, missed


MANY = [pytest.param(seed, FLIPS, marks=CAMPAIGN) for seed in range(9)]


@pytest.mark.parametrize(("seed", "flips"), [(0, FLIPS // 3), *MANY])
def test_a_flipped_bit_is_never_a_value(lake, seed, flips):
    outcomes, missed = campaign(lake, seed, flips)
    assert set(outcomes) == {"right", "LakeError"} and outcomes["LakeError"] > flips // 2
    assert not missed


def test_without_checksums_it_would_be(lake, as_before):
    "The test above can fail"
    outcomes, missed = campaign(lake, 0, FLIPS // 3)
    assert outcomes["wrong"] > 5 and missed


@pytest.mark.parametrize("kind", ["chunks", "manifests", "snapshots", "refs", SEALS])
@pytest.mark.parametrize("left", [0, 10, None])
def test_a_file_that_is_cut_or_lost_is_an_error(lake, kind, left):
    reads = {v.id: lake.read("a", v).compute() for v in filled(lake)}
    some = files(lake, kind)
    for file in random.Random(left).sample(some, min(len(some), 5)):
        written = file.read_bytes()
        file.write_bytes(written[:left]) if left is not None else file.unlink()
        seen = {outcome(lambda id=id: lake.read("a", id).compute(), reads[id]) for id in reads}
        assert seen <= {"right", "LakeError"}
        if kind == SEALS and left is None:  # one that is not there is a note
            assert not any(f.bad for f in lake.verify("a")) and seen == {"right"}
        else:
            assert any(f.bad for f in lake.verify("a"))
        file.write_bytes(written)


# --- what is said ---------------------------------------------------------------------------------


def chunk_of(lake: Lake, column: str, change) -> Path:
    "The file of the one chunk of `column` that `change` writes"
    seen = set(files(lake, "chunks"))
    change()
    new = set(files(lake, "chunks")) - seen
    for file in sorted(new):
        flip(file)
        broken = [f.column for f in lake.verify("a")]
        flip(file)
        if broken == [column]:
            return file
    raise AssertionError(f"no chunk of {column}")


@pytest.mark.parametrize("column", ["temp", "tailnum", "image"])
def test_the_error_names_all(lake, column):
    version = lake.write("a", table(400, 1))
    flip(chunk_of(lake, column, lambda: lake.append("a", table(112, 2))))
    newest = lake.version("a")
    words = (
        "A stored chunk is damaged: its checksum is not that of its bytes. "
        f"It holds rows 256 to 511 of {column!r} of 'a' (version {newest.id[:6]})."
    )
    remedies = ("scalai lake restore a VERSION", "write the dataset again", "scalai lake verify a")
    forget()
    lazy = lake.read("a")
    for look in (
        lazy.compute,
        lazy[column].load,
        pickle.loads(pickle.dumps(lazy)).compute,
        lambda: dask.compute(lazy[column].data[400:]),
        lambda: list(Blocks.of(lake.read("a"))),
        lambda: lake.restore("a", newest),
        lambda: lake.write("b", lake.read("a")),
    ):
        text = said(look)
        rows = next(r for r in ("rows 400 to 511", "rows 0 to 511", "rows 256 to 511") if r in text)
        assert column == "tailnum" or not rows.startswith(
            "rows 0"
        )  # Zarr reads strings by the block
        assert words.replace("rows 256 to 511", rows) in text, text
        assert all(remedy in text for remedy in remedies)
    others = [c for c in lazy if c != column]
    assert lake.read("a", columns=others).compute().sizes["row"] == 512
    assert lake.read("a", version).compute().sizes["row"] == 400
    assert lake.read("a", rows=(0, 256)).compute().sizes["row"] == 256


def test_damage_is_not_built_on(lake):
    "An append reads the chunk that it fills, and the records of the version before"
    version = lake.write("a", table(400, 1))
    for chunk in files(lake, "chunks"):
        flip(chunk)
    assert "A stored chunk is damaged: its checksum" in said(lake.append, "a", table(200, 2))
    for chunk in files(lake, "chunks"):
        flip(chunk)
    for kind in ("manifests", "snapshots"):
        flip(record := next(f for f in files(lake, kind) if f.name != repository.ROOT))
        assert f"'a' (version {version.id[:6]}) is damaged: {kind}/" in said(
            lake.append, "a", table(9, 2)
        )
        flip(record)
    assert lake.log("a") == [version]
    lake.append("a", table(9, 2))


def test_a_damaged_manifest_names_its_columns(lake):
    version = lake.write("a", table(100, 1))
    lists = repository.manifests(repository.opened(lake.path / "a"), version.id)
    path = next(path for path, arrays in lists.items() if arrays == ["temp"])
    flip(lake.path / "a" / path)
    assert f"is damaged: {path} (of 'temp') is not as it was written. Read or" in said(
        lake.read, "a"
    )
    (lake.path / "a" / path).unlink()
    assert f"{path} (of 'temp') cannot be read: No such file" in said(lake.read, "a")


@pytest.mark.parametrize("kind", ["chunks", "manifests", "snapshots", SEALS])
def test_what_the_error_advises_works(lake, kind):
    "Whatever is lost of the newest version: an earlier one comes back, or the dataset is written"
    versions, good = filled(lake), lake.read("a", lake.log("a")[2]).compute()
    place = lake.path / "a"
    lost = {
        "chunks": files(lake, "chunks"),
        "manifests": [place / p for p in Seal.read(place, versions[-1].id).sums if "manif" in p],
        "snapshots": [place / "snapshots" / versions[-1].id],
        SEALS: [place / SEALS / versions[-1].id],
    }[kind]
    for file in lost:
        if kind != "chunks" or file.stat().st_mtime > versions[2].time.timestamp():
            file.write_bytes(b"")
    forget()
    lake.restore("a", versions[1].id[:8])
    assert lake.read("a").compute().identical(good)
    lake.write("a", table(5, 5))
    assert coded(lake.read("a").compute()).identical(table(5, 5))


def test_a_branch_that_names_nothing(lake):
    version = lake.write("a", table(9, 1))
    lake.tag("a", "first")
    file = lake.path / "a" / "refs" / "branch.main" / "ref.json"
    for content in (b"", b"{}", b'{"snapshot": "0"}', b"[]", b"\xff"):
        file.write_bytes(content)
        for look in (lake.read, lake.version, lake.log, lambda name: lake.write(name, table(1, 1))):
            text = said(look, "a")
            assert "'main' of 'a' is damaged: refs/branch.main/ref.json names no version" in text
            assert f'{{"snapshot": "{version.id}"}}' in text
        assert lake.names() == ["a"]
        (finding,) = lake.verify("a")[:1]
        assert finding.bad and finding.found == "branch 'main' names no version"
    file.write_text(json.dumps({"snapshot": version.id}))
    assert lake.version("a").id == version.id and lake.verify("a") == []
    (lake.path / "a" / "refs" / "tag.first" / "ref.json").write_bytes(b"")
    assert "'first' of 'a' is damaged: refs/tag.first/ref.json" in said(lake.read, "a@first")
    assert lake.version("a").tags == () and lake.verify("a")[0].where == "refs/tag.first/ref.json"


def test_a_full_memory_is_not_damage(lake, monkeypatch):
    lake.write("a", table(9, 1))

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(layout, "_decompress", full)
    with pytest.raises(MemoryError):
        lake.read("a").temp.compute()


# --- what was written before ----------------------------------------------------------------------


def test_a_dataset_of_before_is_read_and_goes_on(lake, monkeypatch):
    with monkeypatch.context() as before:
        create = zarr.Group.create_array
        before.setattr(
            zarr.Group,
            "create_array",
            lambda self, name, *, compressors, **kw: create(
                self, name, compressors=compressors[:1], **kw
            ),
        )
        for module in (lakes, repository):
            before.setattr(module, "seal", lambda *_: None)
        old = lake.write("a", table(100, 1))
    forget()
    assert coded(lake.read("a").compute()).identical(table(100, 1))
    notes = lake.verify("a")
    assert not any(f.bad for f in notes)
    assert {f.column for f in notes} == {"", *table(1, 1).variables}
    assert any(f.where == f"{SEALS}/{old.id}" and f.versions == (old.id,) for f in notes)
    lake.append("a", table(20, 2))
    rest = lake.read("a", rows=(100, None)).compute()
    assert coded(rest).identical(table(20, 2))
    new = lake.write("a", lake.read("a"))
    assert all(new.id not in f.versions for f in lake.verify("a"))
    flip(sorted(files(lake, "chunks"), key=lambda f: f.stat().st_mtime_ns)[-1])
    assert any(f.bad and f.versions == (new.id,) for f in lake.verify("a"))


def test_the_next_writer_seals_what_a_killed_one_has_not(lake, monkeypatch):
    "Between its commit and its seal; what it wrote is checked from then on, and so is its parent"
    first = lake.write("a", table(100, 1))
    with monkeypatch.context() as killed:
        killed.setattr(lakes, "seal", lambda *_: None)
        unsealed = [lake.append("a", table(20, 2))]
        killed.setattr(lakes, "seal_base", lambda *_: None)
        unsealed.append(lake.append("a", table(20, 3)))
    forget()
    noted = {v for f in lake.verify("a") for v in f.versions}
    assert noted == {v.id for v in unsealed}
    last = lake.append("a", table(20, 4))
    assert {v for f in lake.verify("a") for v in f.versions} == {unsealed[0].id}
    log = [v.id for v in lake.log("a")]
    assert log == [last.id, *(v.id for v in reversed(unsealed)), first.id]
    forget()
    flip(lake.path / "a" / "snapshots" / unsealed[1].id)
    assert any(f.bad and unsealed[1].id in f.versions for f in lake.verify("a"))


# --- verify ---------------------------------------------------------------------------------------


def test_each_chunk_is_read_once(lake, monkeypatch):
    filled(lake)
    fetched, arriving = [], layout.arriving

    def counted(store, keys):
        fetched.extend((store.session.snapshot_id, key) for key in keys)
        return arriving(store, keys)

    monkeypatch.setattr("scalai_nb.data.lake.upkeep.verify.arriving", counted)
    seen = []
    assert lake.verify("a", lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (len(fetched), len(fetched)) and len(set(fetched)) == len(fetched)
    # 800 rows are 4 chunks, of 6 columns (calm is not stored); 400 more change one and add one;
    # 600 are 3, and 80 more fill none: they are a block of all columns
    moving = 5 * (4 + 2) + 5 * 3 + 1
    still, calm = 2, 4 + 2  # that a chunk is not stored is seen when it is asked for
    assert moving + still <= len(fetched) <= moving + still + calm


def test_versions_that_share_a_chunk_are_all_named(lake):
    "One is damaged that the first wrote, that the second left and the third replaced"
    first = lake.write("a", table(256, 1))
    chunk = next(f for f in files(lake, "chunks"))
    second = lake.append("a", table(9, 2))
    lake.branch("a", "side", second)
    third = lake.write("a", table(9, 3))
    fourth = lake.append("a", table(9, 4), branch="side")
    lake.tag("a", "old", first)
    flip(chunk)
    (finding,) = lake.verify("a")
    assert finding.versions == (first.id, second.id, fourth.id) and finding.where == "rows 0 to 255"
    assert finding.dataset == "a" and third.id not in finding.versions


def test_versions_behind_a_lost_one_are_read(lake):
    versions = filled(lake)
    place = lake.path / "a"
    oldest = min(files(lake, "chunks"), key=lambda f: f.stat().st_mtime_ns)
    flip(oldest)
    (place / "snapshots" / versions[1].id).write_bytes(b"")
    found = lake.verify("a")
    assert {f.versions for f in found} == {(versions[0].id,), (versions[1].id,)}
    assert [f.where for f in found if f.versions == (versions[1].id,)] == [
        f"snapshots/{versions[1].id}"
    ]


def test_a_log_that_is_lost_costs_reading_alone(lake):
    filled(lake)
    for log in files(lake, "transactions"):
        log.write_bytes(b"")
    found = lake.verify("a")
    assert len(found) == 4 and all(f.bad and f.where.startswith("transactions/") for f in found)
    assert lake.read("a").compute().sizes["row"] == 680


def test_verify_of_nothing(lake):
    with pytest.raises(DatasetNotFound, match="'a' is not in the lake"):
        lake.verify("a")
    with pytest.raises(LakeError, match="cannot name a dataset"):
        lake.verify("../a")
    (lake.path / "a").mkdir(parents=True)
    assert [f.bad for f in lake.verify("a")] == [True]


def test_the_command(tmp_path, lake):
    for name in ("a", "b"):
        lake.write(name, table(400, 1))
    shutil.copytree(lake.path, tmp_path / ".scalai" / "lake")
    project = Project(tmp_path, f"cluster = none\nlake = {tmp_path}/.scalai/lake\n")
    done = project.said("lake", "verify")
    assert done.returncode == 0 and done.stdout == (
        "Every chunk and every record is as it was written.\n"
    ), done.stderr
    folder = tmp_path / ".scalai" / "lake" / "a"
    flip(max((folder / "chunks").iterdir(), key=lambda f: f.stat().st_size))
    done = project.said("lake", "verify", "--json")
    (finding,) = json.loads(done.stdout)
    assert done.returncode == 1 and finding["dataset"] == "a" and finding["bad"] is True
    done = project.said("lake", "verify", "a", "b")
    assert done.returncode == 1 and done.stderr == ""
    assert all(
        w in done.stdout for w in ("bad", "a", finding["column"], finding["versions"][0][:6])
    )


def test_one_damaged_dataset_does_not_hide_the_others(tmp_path, lake):
    for name in ("a", "b"):
        lake.write(name, table(9, 1))
    (lake.path / "a" / "refs" / "branch.main" / "ref.json").write_bytes(b"")
    project = Project(tmp_path, f"cluster = none\nlake = {lake.path}\n")
    done = project.said("lake", "ls", "--json")
    a, b = json.loads(done.stdout)
    assert done.returncode == 0 and "'main' of 'a' is damaged" in a["error"] and b["rows"] == 9
    done = project.said("lake", "log", "a")
    assert done.returncode == 2 and done.stderr.startswith("error: 'main' of 'a' is damaged")
    assert done.stderr.count("\n") == 1


def test_a_process_that_leaves_waits_for_what_is_still_read(lake):
    "Icechunk's threads end a process by SIGABRT when they find its interpreter gone"
    lake.write("a", table(400, 1))
    code = (
        "import asyncio, sys\n"
        "from scalai_nb.data.lake.lake import Lake\n"
        "Lake(sys.argv[1]).read('a').load()\n"
        "from zarr.core import sync\n"
        "async def read():\n"
        "    await asyncio.sleep(0.3)\n"
        "    print('read', flush=True)\n"
        "asyncio.run_coroutine_threadsafe(read(), sync.loop[0])\n"
        "sys.exit(3)"
    )
    command = [sys.executable, "-c", code, str(lake.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "read\n", "")


def test_a_process_ends_with_its_own_exit_code(lake):
    lake.write("a", table(400, 1))
    flip(max((lake.path / "a" / "chunks").iterdir(), key=lambda f: f.stat().st_size))
    code = (
        "import sys\n"
        "from scalai_nb.data.lake.lake import Lake\n"
        "sys.exit(2 + len(Lake(sys.argv[1]).verify('a')))"
    )
    command = [sys.executable, "-c", code, str(lake.path)]
    for _ in range(2):
        together = [subprocess.Popen(command) for _ in range(6)]
        assert [p.wait() for p in together] == [3] * 6
