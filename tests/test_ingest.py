"""A source comes into the lake in one version; the next time only what is newer, nothing twice"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from scalai_nb.cli import main
from scalai_nb.data.contract import Contract
from scalai_nb.data.ingestion import ingest
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.readers import pieces
from scalai_nb.errors import LakeError, ParameterError


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake", author="you")


@pytest.fixture
def file(tmp_path, monkeypatch):
    "Picked apples: text of which new kinds come, a serial number, a time"
    monkeypatch.setattr(pieces, "PIECE", 500)
    return _grown(tmp_path / "picked.csv", 0, 100)


def _grown(path, start, stop):
    with open(path, "a") as to:
        if not start:
            to.write("id,tree,kg,at\n")
        for i in range(start, stop):
            to.write(f"{i},tree {i % 50},{i / 4},2026-09-01T00:{i // 60:02}:{i % 60:02}\n")
    return path


@pytest.mark.parametrize("column", ["id", "kg", "at"])
def test_only_what_is_newer_comes(lake, file, column):
    first = ingest(lake, file, "picked", incremental=column)
    assert (first.rows, first.total) == (100, 100)
    _grown(file, 100, 170)
    would = ingest(lake, file, "picked", incremental=column, dry_run=True)
    assert (would.rows, would.version) == (70, None) and len(lake.log("picked")) == 1
    done = ingest(lake, file, "picked", incremental=column)
    assert (done.rows, done.total, done.cursor) == (70, 170, would.cursor)
    assert lake.version("picked").message.endswith(f"; {column} up to {done.cursor}")
    assert lake.read("picked").id.values.tolist() == list(range(170))
    again = ingest(lake, file, "picked", incremental=column)
    assert (again.rows, again.version, again.cursor) == (0, None, done.cursor)
    assert len(lake.log("picked")) == 2, "no version where nothing is new"


def test_equal_to_the_cursor_is_not_newer(lake, file):
    "The rule, as it is documented: strictly greater"
    ingest(lake, file, "picked", incremental="id")
    with open(file, "a") as to:
        to.write("99,late,0,2026-09-02\n100,new,0,2026-09-02\n")
    assert ingest(lake, file, "picked", incremental="id").rows == 1
    assert lake.read("picked").tree.values[-1] == "new"


def test_whole_replaces_and_the_cursor_is_found_in_the_rows(lake, file):
    assert ingest(lake, file, "picked").total == ingest(lake, file, "picked").total == 100
    _grown(file, 100, 110)
    done = ingest(lake, file, "picked", incremental="id")
    assert (done.rows, done.total) == (10, 110)
    lake.restore("picked", lake.log("picked")[1])
    assert ingest(lake, file, "picked", incremental="id").total == 110, (
        "what was undone comes again"
    )


def test_a_failure_in_the_middle_leaves_the_last_version(lake, file, monkeypatch):
    before = ingest(lake, file, "picked", incremental="id").version
    _grown(file, 100, 200)
    taken = []

    def fails(self, piece, data, genuine=pieces.Text._block):
        if self.names != ["id"]:
            taken.append(piece)
        if len(taken) > 5:
            raise OSError("the disk is gone")
        return genuine(self, piece, data)

    for incremental in ("id", None):
        with monkeypatch.context() as broken:
            taken.clear()
            broken.setattr(pieces.Text, "_block", fails)
            with pytest.raises((OSError, LakeError), match="the disk is gone"):
                ingest(lake, file, "picked", incremental=incremental)
        assert lake.version("picked").id == before
        assert lake.read("picked").id.values.tolist() == list(range(100))
    assert ingest(lake, file, "picked", incremental="id").total == 200


def test_blocks_of_different_categories_and_sizes_are_one_dataset(lake, tmp_path):
    kinds = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", "b"]))
    others = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["b", "c"]))
    for name, kind, n in (("1", kinds, [1, 2, 3]), ("2", others, [4, None])):
        table = pa.table({"kind": kind, "n": pa.array(n, pa.int64())})
        pa.parquet.write_table(table, tmp_path / f"{name}.parquet")
    assert ingest(lake, tmp_path / "*.parquet", "t").total == 5
    ds = lake.read("t").compute()
    assert np.asarray(ds.kind).tolist() == ["a", "b", "a", "b", "c"]
    np.testing.assert_array_equal(ds.n.values, [1, 2, 3, 4, np.nan])


def test_what_cannot_be_a_cursor_is_refused(lake, file):
    with pytest.raises(ParameterError, match="'tree' holds object; accepted"):
        ingest(lake, file, "picked", incremental="tree")
    with pytest.raises(ParameterError, match="'when' is not in the columns of"):
        ingest(lake, file, "picked", incremental="when")
    with open(file, "a") as to:
        to.write(",x,1,2026-09-01\n")
    with pytest.raises(ParameterError, match="'id' is missing in 1 rows"):
        ingest(lake, file, "picked", incremental="id")
    assert lake.names() == []


def test_the_command(file, tmp_path, monkeypatch, capsys):
    (tmp_path / "settings.ini").write_text("[laptop]\nlake = lake\n")
    monkeypatch.chdir(tmp_path)
    said = []
    for words in (["--dry-run"], ["--json"], []):
        with pytest.raises(SystemExit) as ended:
            main(["ingest", str(file), "picked", "--incremental", "id", *words])
        assert ended.value.code == 0
        said.append(capsys.readouterr().out)
    assert said[0] == "would write 100 rows to picked, up to 99\n"
    assert json.loads(said[1])["rows"] == 100
    assert said[2] == "nothing new for picked, up to 99; no version was written\n"


def test_the_command_holds_rows_to_a_contract(file, lake, tmp_path, monkeypatch, capsys):
    (tmp_path / "settings.ini").write_text("[laptop]\nlake = lake\n")
    monkeypatch.chdir(tmp_path)
    ingest(lake, file, "agreed")
    held = Contract.infer(lake.read("agreed").compute()).amend("kg", max=10.0)
    (tmp_path / "held.json").write_text(held.to_json())
    with pytest.warns(UserWarning, match="breaks its contract"):
        lake.write("agreed", lake.read("agreed").compute(), contract=held, on_breach="warn")

    def ended(name, *words):
        with pytest.raises(SystemExit) as e:
            main(["ingest", str(file), name, *words])
        return e.value.code, capsys.readouterr()

    code, said = ended("picked", "--contract", "held.json")
    assert code and "do not keep their contract" in said.err and "picked" not in lake.names()
    for contract in ("held.json", "agreed"):
        name = f"by.{contract}"
        words = ["--contract", contract, "--on-breach", "quarantine", "--incremental", "id"]
        code, said = ended(name, *words)
        assert not code and f"went to {name}.quarantine" in " ".join(said.out.split())
        kept = lake.read(name).sizes["row"]
        assert 0 < kept < 100 and lake.version(f"{name}.quarantine").rows == 100 - kept
