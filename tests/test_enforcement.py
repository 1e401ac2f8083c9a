"A contract that acts: each row that breaks it is put aside, nothing is lost, both appear at once"

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import dask.array
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from toy import Project, statuses

from scalai_nb.cli import main
from scalai_nb.data.contract import Column, Contract
from scalai_nb.data.enforcement import Gate
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import ContractViolation, ParameterError

ANY = {"missing": 1.0, "tolerance": 0}  # as many missing values as come
CONTRACT = Contract(
    (
        Column("id", "string", **ANY),
        Column("temp", "float64", min=0, max=10, tolerance=0),
        Column("kind", "category", categories=("a", "b"), **ANY),
        Column("who", "string", "pii", length=(1, 4), pattern="[a-z]*", **ANY),
        Column("at", "datetime64[us]", ordered=True, **ANY),
        Column("n", "int64"),
    ),
    key=("id",),
    pii=("who",),
)
KINDS = ["a", "b", "z"]


def dirty(seed: int) -> xr.Dataset:
    "Rows of which many break something, each with its number"
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(0, 40))
    bad = rng.random() * 0.3

    def spoilt(good, wrong):
        chosen = rng.integers(0, len(wrong), rows)
        return [wrong[c] if rng.random() < bad else g for g, c in zip(good, chosen, strict=True)]

    times = np.sort(rng.integers(0, 1000, rows)).astype("M8[s]").astype("M8[us]")
    late = [np.datetime64("NaT", "us"), np.datetime64(3, "us")]
    whos = spoilt(["ann"] * rows, ["Bob", "abcde", "", None])
    ids = spoilt([f"k{i}" for i in range(rows)], ["k0", "k1", "k3", None])
    return xr.Dataset(
        {
            "id": ("row", np.array(ids, object)),
            "temp": ("row", np.array(spoilt([5.0] * rows, [-1.0, 11.0, np.nan, np.inf]), float)),
            "kind": ("row", np.array(spoilt([0] * rows, [1, 2, -1]), "i1"), {"categories": KINDS}),
            "who": ("row", np.array(whos, object)),
            "at": ("row", np.array(spoilt(list(times), late), "M8[us]")),
            "n": ("row", np.arange(rows)),
        }
    )


def plainly(ds: xr.Dataset, keys: set, latest: list) -> list[str]:
    "What each row breaks, found row by row"
    found, values = [], {name: ds[name].values for name in ds}
    for i in range(ds.sizes["row"]):
        row = {name: x[i] for name, x in values.items()}
        temp, at = row["temp"], row["at"]
        id, who = (row[n] if isinstance(row[n], str) else None for n in ("id", "who"))
        text = who or ""
        broken = ["temp range"] if temp < 0 or temp > 10 else []
        broken += ["temp missing"] if np.isnan(temp) else []
        broken += ["kind category"] if KINDS[row["kind"]] == "z" and row["kind"] >= 0 else []
        broken += ["who length"] if who is not None and not 1 <= len(text) <= 4 else []
        broken += ["who pattern"] if any(not "a" <= letter <= "z" for letter in text) else []
        alone = bool(broken)
        broken += ["id key"] if id is None or (id in keys and not alone) else []
        keys |= set() if alone or id is None else {id}
        if not broken and not np.isnat(at):
            broken += ["at order"] if latest and at < latest[0] else []
            latest[:] = [max([at, *latest])]
        found.append("; ".join(broken))
    return found


def cut(ds: xr.Dataset, rng: random.Random) -> list[xr.Dataset]:
    ends = sorted(rng.choices(range(ds.sizes["row"] + 1), k=3))
    ends = [0, *ends, ds.sizes["row"]]
    return [ds.isel(row=slice(a, b)) for a, b in zip(ends, ends[1:], strict=False)]


def test_every_breach_is_put_aside_and_no_row_is_lost_or_changed():
    rules = Counter()
    for seed in range(120):
        ds, aside = dirty(seed), []
        gate = Gate(CONTRACT, "quarantine", "here", aside.extend)
        good = list(gate.through(cut(ds, random.Random(seed))))
        expected = np.array(plainly(ds, set(), []), object)
        kept = [n for block in good for n in block.n.values]
        assert kept == np.flatnonzero(expected == "").tolist(), seed
        for name, x in ds.variables.items():
            came = pd.Series(x.values, dtype=x.dtype)
            for block in [*good, *aside]:
                then = pd.Series(block[name].values, block.n.values, x.dtype)
                assert came[block.n.values].equals(then)
        found = {n: r for b in aside for n, r in zip(b.n.values, b.rule.values, strict=True)}
        assert found == {n: r for n, r in enumerate(expected) if r}, seed
        rules.update(r for text in expected for r in text.split("; "))
        if kept and seed % 5 == 0:
            assert CONTRACT.check(good, exact=True).ok, seed
    assert min(rules.values()) > 30 and len(rules) == 8, rules


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake", author="you")


def numbers(lake, name: str) -> list[int]:
    return lake.read(name).n.values.tolist() if name in lake.names() else []


@pytest.mark.parametrize("seed", [5, 6])
def test_what_is_stored_and_what_is_put_aside_are_what_came(lake, seed):
    "In memory, lazy, and appended: keys and times are held against what is stored"
    one, two = dirty(seed), dirty(seed + 50)
    latest: list = []
    first = plainly(one, set(), latest)
    stored = {one.id.values[i] for i, r in enumerate(first) if not r}
    second = plainly(two, stored, latest)
    lake.write("x", one.chunk(row=7), "one", contract=CONTRACT, on_breach="quarantine")
    assert numbers(lake, "x") == [n for n, r in enumerate(first) if not r]
    lake.append("x", two, "two")
    assert numbers(lake, "x") == [n for r in (first, second) for n, t in enumerate(r) if not t]
    aside = lake.read("x.quarantine").compute()
    assert aside.rule.values.tolist() == [r for r in (*first, *second) if r]
    assert set(aside.source.values) == {"one", "two"} and not np.isnat(aside.written).any()
    assert Contract.of(aside)["who"].role == "pii"
    assert "ann" in aside.who.values and "***" not in aside.who.values  # they are to be mended
    assert lake.log("x")[0].message.startswith(f"two; {sum(map(bool, second))} rows put aside (")
    lake.write("x", one.isel(row=[i for i, r in enumerate(first) if not r]))
    assert lake.version("x.quarantine").rows == 0  # what is aside is of the rows that are there


def test_a_lazy_dataset_is_read_once(lake):
    read = []

    def load(block, block_info=None):
        read.append(block_info[0]["chunk-location"] if block_info else None)
        return block

    x = dask.array.arange(60, chunks=20).map_blocks(load, dtype=int, meta=np.empty(0, int))
    ds = xr.Dataset({"id": ("row", x)})
    contract = Contract((Column("id", "int64", min=0, max=50, tolerance=0),))
    lake.write("x", ds, contract=contract, on_breach="quarantine")
    assert (lake.version("x").rows, lake.version("x.quarantine").rows) == (51, 9)
    assert sorted(read) == [(0,), (1,), (2,)]


def test_reject_writes_nothing_and_warn_all_with_a_word(lake):
    ds = dirty(4)
    with pytest.raises(ContractViolation, match=r"temp: range .* \(row .*Nothing was written"):
        lake.write("x", ds, contract=CONTRACT)
    assert lake.names() == []
    good = ds.isel(row=[i for i, r in enumerate(plainly(ds, set(), [])) if not r])
    lake.write("x", good, contract=CONTRACT)
    with pytest.raises(ContractViolation, match="id: key duplicates"):
        lake.append("x", good.isel(row=[0]).assign(at=("row", np.array(["NaT"], "M8[us]"))))
    assert len(lake.log("x")) == 1
    with pytest.warns(UserWarning, match="'x' breaks its contract: temp: range") as said:
        version = lake.append("x", ds, on_breach="warn")
    assert version.rows == good.sizes["row"] + ds.sizes["row"] and "Bob" not in str(said[0].message)
    assert "; breaks its contract: " in version.message and "id key" in version.message
    lake.write("x", ds, on_breach="off")
    assert "on_breach" not in lake.attrs("x") and lake.append("x", ds)


def test_a_small_commit_may_lack_more_than_the_share(lake):
    """Commits of any size of data that keep the share pass; those that cannot have it are refused

    Of a share of 10 % that is accepted, 40 % missing are refused where there are rows enough.
    """
    rng = np.random.default_rng(15)
    held = Contract((Column("x", "float64", missing=0.1, tolerance=0),))

    def block(rows, share):
        x = np.where(rng.random(rows) < share, np.nan, 1.0)
        return xr.Dataset({"x": ("row", x)})

    gates = [0, 0]
    for at, share in enumerate((0.1, 0.4)):
        for rows in rng.integers(1, 300, 300).tolist():
            gate = Gate(held, "quarantine")
            try:
                list(gate.through([block(rows, share)]))
            except ContractViolation as e:
                assert "no row is to blame: x: missing" in str(e)
                gates[at] += 1
    assert gates[0] == 0 and 100 < gates[1] < 300
    lake.write("x", block(1, 1), contract=held, on_breach="quarantine")
    for _ in range(5):
        lake.append("x", block(8, 0.99))
    with pytest.raises(ContractViolation, match="x: missing"):
        lake.append("x", block(60, 0.99))
    assert not held.check(lake.read("x")).ok, "of the whole the share itself is judged"


def test_what_no_row_is_to_blame_for_is_refused(lake):
    ds = dirty(4)
    for wrong in (ds.drop_vars("temp"), ds.assign(temp=ds.temp.astype("f4"))):
        with pytest.raises(ContractViolation, match="no row is to blame: temp"):
            lake.write("x", wrong, contract=CONTRACT, on_breach="quarantine")
    some = CONTRACT.amend("kind", missing=0.01)
    with pytest.raises(ContractViolation, match="no row is to blame: kind: missing"):
        rows = ds.assign(kind=("row", np.full(ds.sizes["row"], -1, "i1"), ds.kind.attrs))
        lake.write("x", rows, contract=some, on_breach="quarantine")
    with pytest.raises(ParameterError, match="has the columns rule, source, written"):
        rows = ds.assign(rule=ds.n)
        lake.write("x", rows, contract=CONTRACT, on_breach="quarantine")
    assert lake.names() == []


def test_an_upsert_replaces_by_the_key_and_puts_the_rest_aside(lake):
    ids = np.array(["a", "b", "c"], object)
    ds = dirty(4).isel(row=[0, 0, 0]).assign(id=("row", ids), temp=("row", [1.0, 2.0, 3.0]))
    lake.write("x", ds, contract=CONTRACT.amend("at", ordered=False), on_breach="quarantine")
    lake.upsert("x", ds.assign(temp=("row", [4.0, -5.0, 6.0])), key="id")
    assert lake.read("x").temp.values.tolist() == [4, 2, 6]
    assert lake.read("x.quarantine").temp.values.tolist() == [-5]
    lake.append("x", ds.assign(temp=("row", [7.0, 8.0, np.nan])), dedup="id")
    assert lake.read("x").temp.values.tolist() == [4, 2, 6]
    assert lake.read("x.quarantine").rule.values.tolist() == ["temp range", "temp missing"]
    with pytest.raises(ParameterError, match="their key is 'id'; use that"):
        lake.upsert("x", ds, key="kind")


def test_writers_wait_for_each_other(lake):
    ds = dirty(4)
    free = Contract(CONTRACT.columns[1:2])
    lake.write("x", ds[["temp"]], contract=free, on_breach="quarantine")

    def write(_):
        return [Lake(lake.path).append("x", ds[["temp"]]) for _ in range(3)]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    total = lake.version("x").rows + lake.version("x.quarantine").rows
    assert total == 10 * ds.sizes["row"] and len(lake.log("x")) == 10


# --- a process that puts rows aside dies at any line ----------------------------------------------

KILL = """
import os, shutil, sys
from pathlib import Path
import icechunk, numpy as np, pandas, xarray as xr, zarr
import scalai_nb.data.enforcement
from scalai_nb.data.lake.lake import Lake

ROOMS = ("scalai_nb/data/lake/lake", "scalai_nb/data/lake/publication", "scalai_nb/files")
root, lines = Path(sys.argv[1]), list(map(int, sys.argv[2].split(",")))

def append(folder, last):
    "Append, and die at a line; the number of lines if there are fewer"
    seen = 0
    def trace(frame, event, arg):
        nonlocal seen
        if not any(room in frame.f_code.co_filename for room in ROOMS):
            return None
        seen += event == "line"
        if seen == last:
            os.kill(os.getpid(), 9)
        return trace
    lake, ds = Lake(folder), xr.Dataset({"x": ("row", [3.0, -3.0, 4.0])})
    sys.settrace(trace)
    lake.append("x", ds)
    sys.settrace(None)
    return seen

for line in lines:
    shutil.copytree(root / "before", root / str(line))
    if os.fork() == 0:
        print(append(root / str(line), line), flush=True)
        os._exit(0)
    os.wait()
"""


def test_rows_and_quarantine_are_both_there_or_neither_wherever_the_process_dies(tmp_path):
    contract = Contract((Column("x", "float64", min=0, tolerance=0),))
    lake, ds = Lake(tmp_path / "before"), xr.Dataset({"x": ("row", [1.0, -1.0])})
    lake.write("x", ds, contract=contract, on_breach="quarantine")

    def killed_at(lines) -> str:
        words = [sys.executable, "-c", KILL, tmp_path, ",".join(map(str, lines))]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    total, outcomes = int(killed_at([10**9])), Counter()
    lines = [*random.Random(3).sample(range(1, total), 5), total - 3]
    killed_at(lines)
    for line in lines:
        lake = Lake(tmp_path / str(line))
        found = [lake.read(name).x.values.tolist() for name in lake.names()]
        assert found in ([[1], [-1]], [[1, 3, 4], [-1, -3]]), (line, found)
        outcomes[len(found[0])] += 1
        lake.append("x", ds)
        then = [lake.read(name).x.values.tolist() for name in lake.names()]
        assert then == [[*found[0], 1], [*found[1], -1]]
        for name in lake.names():
            with lake.locked(name) as repo:
                assert set(repo.list_branches()) == {"main"}
        shutil.rmtree(lake.path)
    assert len(outcomes) == 2, outcomes


# --- where people meet it -------------------------------------------------------------------------


def test_an_ingest_puts_rows_aside(tmp_path, monkeypatch, capsys):
    (tmp_path / "settings.ini").write_text("[laptop]\nlake = lake\n")
    monkeypatch.chdir(tmp_path)
    lake, file = Lake(tmp_path / "lake"), tmp_path / "s.csv"
    contract = Contract((Column("id", "int64"), Column("kg", "float64", min=0, tolerance=0)))
    lake.write("s", xr.Dataset({"id": ("row", [1]), "kg": ("row", [1.0])}), contract=contract)
    file.write_text("id,kg\n2,2.5\n3,-1.5\n")

    def ingest(*words: str) -> int:
        try:
            return main(["ingest", str(file), "s", *words]) or 0
        except SystemExit as ended:
            return ended.code or 0

    assert ingest("--incremental", "id") == 1  # as the dataset has it
    assert "kg: range" in capsys.readouterr().err and lake.version("s").rows == 1
    assert ingest("--incremental", "id", "--on-breach", "quarantine", "--json") == 0
    assert json.loads(capsys.readouterr().out)["aside"] == 1
    aside = lake.read("s.quarantine")
    assert aside.id.values.tolist() == [3] and "s.csv" in aside.source.values[0]
    assert ingest("--on-breach", "quarantin") == 2
    assert "Did you mean 'quarantine'?" in capsys.readouterr().err


def test_a_step_puts_rows_aside_and_is_not_stale_when_they_are_mended(tmp_path):
    project = Project(tmp_path)
    contract = 'from scalai_nb.pipeline import Out\na: Out = "a"'
    use = (
        "import xarray as xr\nfrom scalai_nb.pipeline import write\n"
        "from scalai_nb.data.contract import Column, Contract\n"
        "kept = Contract((Column('x', 'float64', min=0, tolerance=0),))\n"
        "ds = xr.Dataset({'x': ('row', [1.0, -1.0])})\n"
        "write(a, ds, contract=kept, on_breach='quarantine')"
    )
    project.step("00_make", contract, use)

    def run():
        done = project.said("run", "toy", "--json")
        assert done.returncode == 0, done.stderr
        return statuses(json.loads(done.stdout))["make"][0]

    assert run() == "completed"
    lake = Lake(project.root / ".scalai/lake")
    aside = lake.read("a.quarantine").compute()
    assert aside.x.values.tolist() == [-1] and lake.read("a").x.values.tolist() == [1]
    lake.write("a.quarantine", aside.isel(row=[]))
    assert run() == "cached"
