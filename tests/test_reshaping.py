"Columns come, go, are renamed and widened; former versions and all other columns stay as they were"

import json

import numpy as np
import pytest
import xarray as xr
from toy import Project

from scalai_nb.data.contract import Contract
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import ContractViolation, LakeError


def table(n: int, start: int = 0) -> xr.Dataset:
    i = np.arange(start, start + n)
    return xr.Dataset(
        {
            "id": ("row", i.astype("i4")),
            "temp": ("row", np.random.default_rng(start).random(n).astype("f4")),
            "wind": ("row", np.random.default_rng(n).random(n), {"units": "kn"}),
            "name": ("row", np.array([f"N{k}" for k in i], object)),
        }
    )


@pytest.fixture
def lake(tmp_path):
    made = Lake(tmp_path / "lake", author="ada")
    made.write("a", table(900))
    made.append("a", table(50, 900))
    return made


def chunks(lake: Lake) -> set[str]:
    return {f.name for f in lake.path.glob("a/chunks/*")}


def test_a_column_comes_goes_and_is_renamed_without_its_rows(lake):
    before, good = lake.version("a"), lake.read("a").compute()
    lake.compact("a")
    files = chunks(lake)
    add = {"gust": "float64", "n": ("int64", 7), "note": "string", "at": "datetime64[ns]"}
    found = lake.evolve("a", add=add, rename={"wind": "speed"}, drop=["name"])
    assert chunks(lake) == files and found.renamed == {"wind": "speed"}
    assert found.columns["gust"] == (None, "float64") and found.columns["name"] == ("string", None)
    assert "wind is now speed" in str(found) and found.after == lake.version("a")
    assert found.after.message.startswith("add gust, add n") and found.after.parent == before.id
    now = lake.read("a").compute()
    assert [*now.variables] == ["id", "temp", "speed", *add]
    assert now.n.values.tolist() == [7] * 950 and now.gust.isnull().all() and now.at.isnull().all()
    assert all(v != v for v in now.note.values)
    assert now.speed.identical(good.wind.rename("speed"))
    assert lake.read("a", before).compute().identical(good)
    more = now.isel(row=slice(0, 5)).assign(note=("row", np.array(["x"] * 5, object)))
    for _ in range(2):
        lake.append("a", more)
        assert lake.read("a", rows=(-5, None)).compute().identical(more)
        lake.compact("a")
    assert lake.read("a").note.values[950:955].tolist() == ["x"] * 5
    assert lake.read("a").speed[:950].identical(now.speed)
    assert lake.verify("a") == [] and lake.absent("a") == []


def test_what_was_dropped_can_come_again(lake):
    lake.evolve("a", rename={"wind": "old"})
    found = lake.evolve("a", add={"wind": ("float32", 1.5)}, drop=["temp"])
    assert not found.renamed
    lake.evolve("a", add={"temp": ("bool", True)})
    now = lake.read("a").compute()
    assert now.wind.dtype == "f4" and set(now.wind.values) == {1.5} and now.temp.values.all()
    np.testing.assert_array_equal(now.old[:900], table(900).wind)
    assert lake.verify("a") == []


def test_only_what_is_widened_is_written_again(lake):
    lake.compact("a")
    files, before = chunks(lake), lake.version("a")
    lake.evolve("a", widen={"temp": "float64", "id": "int64"})
    assert len(chunks(lake) - files) == 2
    now, was = lake.read("a").compute(), lake.read("a", before).compute()
    assert (now.id.dtype, now.temp.dtype, was.id.dtype) == ("int64", "float64", "int32")
    np.testing.assert_array_equal(now.temp, was.temp)
    big = table(1).assign(id=("row", [2**40]), temp=("row", [0.5]))
    lake.append("a", big)
    assert lake.read("a").id.values[-1] == 2**40 and lake.verify("a") == []
    lake.write("b", xr.Dataset({"k": ("row", np.array([1, 2**53 + 1]))}))
    with pytest.raises(LakeError, match="'k' has values that float64 does not hold exactly"):
        lake.evolve("b", widen={"k": "float64"})
    assert lake.read("b").k.dtype == "int64" and len(lake.log("b")) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"add": {"id": "float64"}}, "'id' is a column already"),
        ({"add": {"k": "int64"}}, "needs a value for the rows"),
        ({"add": {"k": "text"}}, "accepted: string, bool"),
        ({"add": {"k": ("int64", "x")}}, "accepted: string, bool"),
        ({"rename": {"temq": "b"}}, "'temq' is not in the columns over row"),
        ({"rename": {"temp": "wind"}}, "'wind' is a column already"),
        ({"drop": ["id"], "rename": {"id": "b"}}, "'id' is named twice"),
        ({"drop": ["id", "temp", "wind", "name"]}, "No column over row would be left"),
        ({"widen": {"wind": "float32"}}, "holds all of its values"),
        ({"widen": {"name": "float64"}}, "'name' is string and would be float64"),
        ({}, "No change is asked for"),
    ],
)
def test_what_cannot_be_is_refused(lake, change, said):
    for dry_run in (True, False):
        with pytest.raises(LakeError, match=said):
            lake.evolve("a", **change, dry_run=dry_run)
    assert len(lake.log("a")) == 2


def test_the_contract_goes_along(lake):
    ds = table(20)
    lake.write("a", Contract.infer(ds, key="id").attach(ds))
    lake.evolve("a", add={"gust": "float64"}, widen={"id": "int64"})
    contract = Contract.of(lake.read("a"))
    assert contract["gust"].dtype == "float64" and contract["id"].dtype == "int64"
    assert contract.check(lake.read("a")).ok
    for change in ({"rename": {"id": "key"}}, {"drop": ["temp"]}):
        with pytest.raises(ContractViolation, match="breaks the old one"):
            lake.evolve("a", **change)
    lake.evolve("a", rename={"id": "key"}, breaking=True)
    contract = Contract.of(lake.read("a"))
    assert contract.key == ("key",) and contract.check(lake.read("a")).ok
    assert "id" not in {c.name for c in contract.columns}


def test_an_append_says_what_evolves(lake):
    more = table(3).assign(gust=("row", np.ones(3)))
    with pytest.raises(LakeError, match="scalai lake evolve DATASET --add gust=float64"):
        lake.append("a", more)


def test_the_command(tmp_path):
    project = Project(tmp_path, f"cluster = none\nlake = {tmp_path}/.scalai/lake\n")
    lake = Lake(tmp_path / ".scalai" / "lake")
    lake.write("a", table(5))
    given = (
        "lake",
        "evolve",
        "a",
        "--add",
        "n=int64:3",
        "--rename",
        "wind=speed",
        "--drop",
        "name",
    )
    assert "wind is now speed" in project.said(*given, "--dry-run").stdout
    assert len(lake.log("a")) == 1
    done = json.loads(project.said(*given, "--json").stdout)
    assert done["renamed"] == {"wind": "speed"} and done["columns"]["n"] == [None, "int64"]
    assert lake.read("a").n.values.tolist() == [3] * 5
    done = project.said("lake", "evolve", "a", "--add", "k")
    assert done.returncode and "write --add COLUMN=TYPE" in done.stderr
