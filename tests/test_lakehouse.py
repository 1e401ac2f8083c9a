"""Tables of Delta and Iceberg come as one version has them; the lake says which one it was"""

import json
import shutil
import struct
from base64 import b85encode
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest

import scalai_nb as sn
from scalai_nb.cli import main
from scalai_nb.data.ingestion import ingest
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import ParameterError, WorkFailed

deltalake = pytest.importorskip("deltalake")
pytest.importorskip("pyiceberg.catalog.sql")


class Delta:
    "A table that is written by deltalake"

    def __init__(self, folder):
        self.place, self.uri = folder / "orders", f"delta://{folder}/orders"

    def create(self, schema, by=()):
        deltalake.DeltaTable.create(self.place, schema, partition_by=list(by))

    def append(self, table):
        deltalake.write_deltalake(self.place, table, mode="append", schema_mode="merge")

    def delete(self, condition):
        deltalake.DeltaTable(self.place).delete(condition)

    def version(self):
        return deltalake.DeltaTable(self.place).version()

    def vacuum(self):
        table = deltalake.DeltaTable(self.place)
        assert table.vacuum(0, dry_run=False, enforce_retention_duration=False)


class Iceberg:
    "A table that is written by PyIceberg, in a catalog of SQLite"

    def __init__(self, folder, monkeypatch):
        from pyiceberg.catalog import load_catalog

        told = {"type": "sql", "uri": f"sqlite:///{folder}/c.db", "warehouse": f"file://{folder}"}
        for name, value in told.items():
            monkeypatch.setenv(f"PYICEBERG_CATALOG__PROD__{name.upper()}", value)
        self.catalog = load_catalog("prod", **told)
        self.catalog.create_namespace("shop")
        self.place, self.uri = folder / "shop" / "orders", "iceberg://prod::shop.orders"

    def create(self, schema, by=()):
        self.table = self.catalog.create_table("shop.orders", schema)
        with self.table.update_spec() as update:
            for name in by:
                update.add_identity(name)

    def append(self, table):
        with self.table.update_schema() as update:
            update.union_by_name(table.schema)
        self.table.append(table)

    def delete(self, condition):
        self.table.delete(condition)

    def version(self):
        found = self.table.current_snapshot()
        return found and found.snapshot_id

    def vacuum(self):
        live = {task.file.file_path for task in self.table.scan().plan_files()}
        files = [f for f in self.place.rglob("*.parquet") if f"file://{f}" not in live]
        assert files and [f.unlink() for f in files]


@pytest.fixture(params=["delta", "iceberg"])
def orders(request, tmp_path, monkeypatch):
    if request.param == "delta":
        yield Delta(tmp_path)
        return
    table = Iceberg(tmp_path, monkeypatch)
    yield table
    table.catalog.close()


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake", author="you")


def _whole(blocks):
    import xarray as xr

    return xr.concat(list(blocks), "row")


def _some(start, stop):
    "Orders by their number, of two shops, a minute apart"
    ids = range(start, stop)
    columns = {
        "id": pa.array(ids, pa.int64()),
        "kg": pa.array([i / 4 for i in ids], pa.float64()),
        "shop": pa.array([f"s{i % 2}" for i in ids], pa.string()),
    }
    times = pa.array([i * 60_000_000 for i in ids], pa.timestamp("us"))
    zone = pa.array(times, pa.timestamp("us", "UTC"))
    days = pa.array([i // 10 for i in ids], pa.int32()).cast(pa.date32())
    return pa.table(columns | {"at": times, "zone": zone, "day": days})


def test_values_come_as_they_are(orders):
    places = [{"city": "Rome", "at": {"floor": 2}}, None, {"city": None, "at": None}]
    table = pa.table(
        {
            "n": [2**53 + 1, -1, 0],
            "gap": pa.array([1, None, 3], pa.int32()),
            "yes": [True, None, False],
            "f": [0.5, None, float("nan")],
            "dec": pa.array([1, None, 3], pa.decimal128(10, 2)),
            "s": ["née", None, ""],
            "t": pa.array([1, None, -1], pa.timestamp("us")),
            "z": pa.array([1, None, -1], pa.timestamp("us", "UTC")),
            "d": [date(2026, 9, 1), None, date(1600, 2, 29)],
            "place": places,
            "a.b": ["dot", None, "dot"],
            "list": [[1], [], None],
            "b": [b"x", None, b"y"],
        }
    )
    orders.create(table.schema)
    orders.append(table)
    for name in ("list", "b"):
        with pytest.raises(ParameterError, match=rf"orders.*'{name}' is of the .* columns="):
            sn.read_source(orders.uri, ["n", name])
    table = table.drop_columns(["list", "b"])
    names = [n for n in table.column_names if n != "place"] + ["place.city", "place.at.floor"]
    blocks = sn.read_source(orders.uri, names)
    ds = _whole(blocks)
    assert sorted(blocks.columns) == sorted(names) and ds.n.dtype == np.int64
    assert ds.n.values.tolist() == [2**53 + 1, -1, 0]
    np.testing.assert_array_equal(ds.gap.values, [1, np.nan, 3])
    np.testing.assert_array_equal(ds.yes.values, [1, np.nan, 0])
    np.testing.assert_array_equal(ds.f.values, [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(ds.dec.values, [1, np.nan, 3])
    np.testing.assert_array_equal(ds["place.at.floor"].values, [2, np.nan, np.nan])
    assert [ds[n].values[0] for n in ("s", "place.city", "a.b")] == ["née", "Rome", "dot"]
    assert ds.s.values[1] != ds.s.values[1] and ds["place.city"].values[2] != "Rome"
    assert ds.z.attrs == {"timezone": "UTC"} and np.isnat(ds.t.values[1])
    assert ds.t.values[2] == np.datetime64("1969-12-31T23:59:59.999999")
    assert ds.d.values.astype("M8[D]").tolist() == [date(2026, 9, 1), None, date(1600, 2, 29)]


def test_a_read_is_of_one_version_whoever_writes(orders, lake, tmp_path):
    orders.create(_some(0, 0).schema)
    orders.append(_some(0, 50))
    first, blocks = orders.version(), sn.read_source(orders.uri)
    orders.append(_some(50, 60))
    orders.delete("id < 10")
    orders.append(_some(60, 61).append_column("new", [[7]]))
    assert _whole(blocks).id.values.tolist() == list(range(50)), "as it was when it was opened"
    assert ingest(lake, orders.uri, "orders", version=first).rows == 50
    origin = lake.state("orders")["origin"]
    assert origin["table"].endswith("orders") and first in origin.values()
    done = ingest(lake, orders.uri, "orders")
    assert done.rows == 51 and orders.version() in lake.state("orders")["origin"].values()
    ds = lake.read("orders")
    assert sorted(ds.id.values) == list(range(10, 61))
    assert ds.new.values[ds.id.values == 60] == 7 and np.isnan(ds.new.values).sum() == 50
    assert "new" not in sn.read_source(orders.uri, version=first).columns
    again, other = sn.read_source(orders.uri), sn.read_source(orders.uri)
    assert again.fingerprint() == other.fingerprint() != blocks.fingerprint()
    (tmp_path / "a.csv").write_text("id\n1\n")
    ingest(lake, tmp_path / "a.csv", "orders")
    assert "origin" not in lake.state("orders"), "what is no version of a table has none"


@pytest.mark.parametrize("column", ["id", "kg", "at", "zone", "day"])
def test_only_what_is_newer_is_asked_for(orders, lake, column):
    orders.create(_some(0, 0).schema)
    orders.append(_some(0, 100))
    assert ingest(lake, orders.uri, "orders", incremental=column).rows == 100
    orders.append(_some(100, 130))
    asked = sn.read_source(orders.uri).source.after(column, np.asarray(_whole_of(lake, column))[-1])
    sent = sum(b.sizes["row"] for b in asked)
    assert sent == (30 + 10 if column == "day" else 31), (
        "the greatest again, for equal is not newer"
    )
    assert ingest(lake, orders.uri, "orders", incremental=column).rows == 30
    assert ingest(lake, orders.uri, "orders", incremental=column).version is None
    gap = _some(130, 131).set_column(0, "id", pa.array([None], pa.int64()))
    for name in ("kg", "at", "zone", "day"):
        i = gap.column_names.index(name)
        gap = gap.set_column(i, name, pa.nulls(1, gap.schema.field(name).type))
    if column == "kg":
        gap = gap.set_column(1, "kg", pa.array([float("nan")]))
    orders.append(gap)
    with pytest.raises(ParameterError, match="missing"):
        ingest(lake, orders.uri, "orders", incremental=column)
    assert lake.version("orders").rows == 130


def _whole_of(lake, column):
    return lake.read("orders")[column].values


def test_files_that_hold_nothing_newer_are_not_opened(orders, tmp_path):
    orders.create(_some(0, 0).schema, by=["shop"])
    orders.append(_some(0, 100))
    before = {*orders.place.rglob("*.parquet")}
    orders.append(_some(100, 110))
    source = sn.read_source(orders.uri).source
    for file in before:
        file.write_bytes(b"no Parquet")
    assert sorted(i for b in source.after("id", 100) for i in b.id.values) == [*range(100, 110)]
    with pytest.raises(WorkFailed, match="orders"):
        list(source)


def test_rows_come_in_the_same_order_each_time(orders):
    "Or a reduction that goes on from a checkpoint would count one twice and leave one out"
    shops = pa.array([f"s{i % 20}" for i in range(20_000)])
    table = _some(0, 20_000).set_column(2, "shop", shops)
    orders.create(table.schema, by=["shop"])
    orders.append(table)
    seen = {_whole(sn.read_source(orders.uri, "id")).id.values.tobytes() for _ in range(5)}
    assert len(seen) == 1


def test_a_version_whose_files_are_gone_is_an_error(orders, lake):
    orders.create(_some(0, 0).schema)
    orders.append(_some(0, 10))
    first = orders.version()
    orders.delete("id < 5")
    ingest(lake, orders.uri, "orders")
    orders.vacuum()
    with pytest.raises(WorkFailed, match=f"{first}: .*read a newer"):
        ingest(lake, orders.uri, "orders", version=first)
    assert sorted(lake.read("orders").id.values) == [5, 6, 7, 8, 9]
    assert len(_whole(sn.read_source(orders.uri)).id) == 5


def test_an_empty_table_has_its_columns(orders, lake):
    orders.create(_some(0, 0).schema)
    (only,) = sn.read_source(orders.uri)
    assert only.sizes["row"] == 0 and list(only.data_vars) == _some(0, 0).column_names
    assert ingest(lake, orders.uri, "orders").total == 0


def test_what_is_not_there_is_named(orders, tmp_path):
    orders.create(_some(0, 0).schema)
    orders.append(_some(0, 10))
    for wrong in ({"version": 7}, {"time": "2001-01-01"}):
        with pytest.raises(ParameterError, match="orders .*(newest|last|oldest)"):
            sn.read_source(orders.uri, **wrong)
    soon = datetime.now(UTC).replace(year=2100).isoformat()
    assert len(_whole(sn.read_source(orders.uri, time=soon)).id) == 10
    with pytest.raises(ParameterError, match="time=noon is no time; write it as"):
        sn.read_source(orders.uri, time="noon")
    with pytest.raises(ParameterError, match="pass one"):
        sn.read_source(orders.uri, time=soon, version=1)
    with pytest.raises(ParameterError, match="'nope' is not in the columns"):
        sn.read_source(orders.uri, "nope")
    scheme = orders.uri.partition(":")[0]
    (tmp_path / "empty" / "metadata").mkdir(parents=True)
    for path in ("empty", "none"):
        with pytest.raises(ParameterError, match=r"(no Delta table|\*.metadata.json|no metadata)"):
            sn.read_source(f"{scheme}://{tmp_path}/{path}")


def test_a_folder_with_a_log_is_a_delta_table(tmp_path, monkeypatch, capsys):
    table = Delta(tmp_path)
    table.append(_some(0, 10))
    table.append(_some(10, 20))
    assert len(_whole(sn.read_source(table.place)).id) == 20, "not its Parquet files, one by one"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.ini").write_text("[laptop]\nlake = lake\n")
    with pytest.raises(SystemExit) as ended:
        main(["ingest", "orders", "orders", "--option", "version=0", "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 10


def test_rows_in_a_deletion_vector_are_left_out(tmp_path):
    "deltalake reads them and writes none: the vector is written here, as the protocol has it"
    from pyroaring import BitMap

    table = Delta(tmp_path)
    table.append(_some(0, 10))
    log = table.place / "_delta_log"
    first = [json.loads(x) for x in (log / f"{0:020}.json").read_text().splitlines()]
    add = next(a["add"] for a in first if "add" in a)
    bits = BitMap([2, 5]).serialize()
    data = struct.pack("<iqi", 1681511377, 1, 0) + bits
    data += bytes(-len(data) % 4)
    ours = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    told = b85encode(data).translate(bytes.maketrans(ours, z85)).decode()
    size = 12 + len(bits) + 4
    vector = {"storageType": "i", "pathOrInlineDv": told, "sizeInBytes": size, "cardinality": 2}
    features = {"readerFeatures": ["deletionVectors", "timestampNtz"]}
    features |= {"writerFeatures": features["readerFeatures"]}
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7} | features
    gone = {"path": add["path"], "dataChange": True, "deletionTimestamp": 1}
    again = add | {"deletionVector": vector, "modificationTime": add["modificationTime"] + 1}
    actions = [{"protocol": protocol}, {"remove": gone}, {"add": again}]
    (log / f"{1:020}.json").write_text("\n".join(map(json.dumps, actions)))
    assert _whole(sn.read_source(table.uri)).id.values.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    assert len(_whole(sn.read_source(table.uri, version=0)).id) == 10


def test_iceberg_without_a_catalog(tmp_path, monkeypatch):
    table = Iceberg(tmp_path, monkeypatch)
    table.create(_some(0, 0).schema)
    table.append(_some(0, 10))
    old = table.table.metadata_location.removeprefix("file://")
    table.append(_some(10, 20))
    table.catalog.close()
    assert len(_whole(sn.read_source(f"iceberg://{table.place}")).id) == 20
    assert len(_whole(sn.read_source(f"iceberg://{old}")).id) == 10
    newest = max((table.place / "metadata").glob("*.json"))
    shutil.copy(newest, newest.with_name(newest.name[:6] + "other.metadata.json"))
    with pytest.raises(ParameterError, match="has 2 newest ones: .*name a catalog"):
        sn.read_source(f"iceberg://{table.place}")


def test_a_catalog_that_is_wrong_repeats_no_password(tmp_path, monkeypatch):
    Iceberg(tmp_path, monkeypatch).catalog.close()
    for uri, match in (
        ("iceberg://prod::shop.nope", "'shop.nope' is no table of the catalog prod"),
        ("iceberg://prod::nope", "NAMESPACE.TABLE"),
        ("iceberg://other::shop.orders", "'other' is not in the catalogs.*CATALOG__OTHER__URI"),
    ):
        with pytest.raises(ParameterError, match=match):
            sn.read_source(uri)
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__URI", "nosuch://me:hush@host/db")
    with pytest.raises(WorkFailed, match="The catalog prod cannot be read") as raised:
        sn.read_source("iceberg://prod::shop.orders")
    assert "hush" not in str(raised.value)
