"""Files that people have, as datasets: every format the same, and what is not clear is said"""

import gzip
import json
import sqlite3
from contextlib import closing

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings, strategies as st
from toy import Project

from scalai_nb.data.opening import _joined, open_file
from scalai_nb.describe.summary import summarize
from scalai_nb.errors import ParameterError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0", exclude_categories=["Cs"]))
ROWS = st.lists(
    st.tuples(
        st.integers(-(2**40), 2**40),
        st.floats(-1e6, 1e6, width=32) | st.none(),
        TEXT.filter(lambda t: t.strip() == t and t.upper() not in {"", "NA", "N/A", "NULL", "NAN"}),
        st.datetimes(pd.Timestamp("1970-01-01"), pd.Timestamp("2100-01-01")),
    ),
    min_size=1,
    max_size=20,
)


def _written(df: pd.DataFrame, folder) -> dict[str, str]:
    "A table in each format"
    found = {
        name: str(folder / f"t{name}") for name in (".csv", ".csv.gz", ".tsv", ".parquet", ".db")
    }
    df.to_csv(found[".csv"], index=False, encoding="utf-8-sig")
    df.to_csv(found[".csv.gz"], index=False, sep=";")
    df.to_csv(found[".tsv"], index=False, sep="\t")
    df.to_parquet(found[".parquet"])
    with closing(sqlite3.connect(found[".db"])) as database:
        df.assign(t=df.t.map(lambda t: t.isoformat())).to_sql("t", database, if_exists="replace")
    return found


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=ROWS)
def test_a_table_is_the_same_in_every_format(rows, tmp_path):
    df = pd.DataFrame(rows, columns=["n", "x", "s", "t"])
    df["s"] = "a" + df.s  # text that is no number to a CSV
    df["x"] = df.x.astype(float)
    for name, path in _written(df, tmp_path).items():
        ds = open_file(path)
        assert ds.n.values.tolist() == df.n.tolist(), name
        np.testing.assert_allclose(ds.x.values, df.x, err_msg=name)
        assert ds.s.values.tolist() == df.s.tolist(), name
        assert ds.t.dtype.kind == "M", name
        assert (ds.t.values.astype("M8[ms]") == df.t.values.astype("M8[ms]")).all(), name


BAD = {
    "a,a\n1,2\n": "has the column 'a' twice",
    "1,2\n3,4\n": "no names of columns",
    "": "is empty",
    "\n": "no names of columns",
    b"name\nbon\n\xe9t\xe9\n": "line 3: byte 9 is no UTF-8; convert it, say with: iconv",
    "a,b\n1,2,3,4\n5\n": "line 2: 4 cells, where the first line has 2",
    'a,b\n1,"x\n2,3\n': "line 2: a quote is not closed",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_not_clear_is_said(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ParameterError, match=BAD[text]):
        open_file(path)


@pytest.mark.parametrize("name", ["t.xlsx", "t", "missing.csv", "t.db::none", "t.parquet", "t.nc"])
def test_what_is_not_there_or_not_what_it_says(tmp_path, name):
    for made in ("t.xlsx", "t", "t.parquet", "t.nc"):
        (tmp_path / made).write_bytes(b"nothing of the kind")
    with closing(sqlite3.connect(tmp_path / "t.db")) as database:
        database.execute("CREATE TABLE one (a)")
        database.execute("CREATE TABLE two (a)")
    with pytest.raises(ParameterError):
        open_file(tmp_path / name)
    with pytest.raises(ParameterError, match="has 2 tables: one, two; name one: t.db::TABLE"):
        open_file(tmp_path / "t.db")


def test_odd_tables(tmp_path):
    "One row; ten thousand columns; a header alone; a quoted separator; Windows' ends of lines"
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,x\n")
    assert open_file(path).sizes == {"row": 1}
    names = [f"c{i}" for i in range(10_000)]
    path.write_text(",".join(names) + "\n" + ",".join("1" * 10_000) + "\n")
    assert len(open_file(path).data_vars) == 10_000
    path.write_text("a,b\n")
    assert open_file(path).sizes == {"row": 0}
    path.write_bytes(b'a,b\r\n"1,5",2\r\n')
    assert open_file(path).a.values.tolist() == ["1,5"]
    with gzip.open(tmp_path / "u.csv.gz", "wt") as file:
        file.write("when\n2026-01-01\nsoon\n")
    assert open_file(tmp_path / "u.csv.gz").when.values.tolist() == ["2026-01-01", "soon"]


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_a_grid_lies_along_time(tmp_path, kind):
    grid = xr.Dataset(
        {"t2m": (("lat", "time", "lon"), np.arange(24.0).reshape(2, 4, 3))},
        {"time": pd.date_range("2013-01-01", periods=4), "lat": [40.0, 50.0]},
    )
    path = tmp_path / f"grid.{kind}"
    grid.to_zarr(path, consolidated=False) if kind == "zarr" else grid.to_netcdf(
        path, engine="scipy"
    )
    ds = open_file(path)
    assert ds.sizes == {"row": 4, "lat": 2, "lon": 3} and ds.time.dims == ("row",)
    assert summarize(ds)["t2m"].mean == 11.5


def test_the_commands(tmp_path):
    project = Project(tmp_path)
    (tmp_path / "shop.csv").write_text("when,what,price\n2026-01-01,tea,1.5\n2026-01-02,mate,\n")
    shown = project.said("describe", "shop.csv")
    assert shown.returncode == 0 and "2 rows, 3 columns" in shown.stdout, shown
    assert "mate 50\xa0%" in shown.stdout or "tea 50\xa0%" in shown.stdout
    about = json.loads(project.said("describe", "shop.csv", "--json").stdout)
    assert about["price"]["missing"] == 1 and about["what"]["distinct"] == 2
    assert project.said("describe", "shop.csv", "--html", "shop.html").returncode == 0
    assert "<script" not in (tmp_path / "shop.html").read_text()
    dry = project.said("lake", "add", "shop.csv", "--dry-run")
    assert "would write shop: 2 rows of when, what, price" in dry.stdout
    assert "empty" in project.said("lake", "ls").stdout
    assert "shop@" in project.said("lake", "add", "shop.csv").stdout
    assert "2 rows, 3 columns" in project.said("describe", "shop").stdout
    wrong = project.said("describe", "shops")
    assert wrong.returncode == 2 and "datasets: shop." in wrong.stderr, wrong
    assert project.said("--version").stdout.startswith("scalai-nb 0.")


def test_blocks_of_a_text_are_joined_as_xarray_does():
    columns = {"n": [1, 2, 3], "x": [0.5, None, 1], "s": ["a", "längst", None]}
    ds = xr.Dataset.from_dataframe(pd.DataFrame(columns, pd.RangeIndex(3, name="row")))
    ds = ds.drop_vars("row").assign_attrs(source="t.csv")
    ds["x"].attrs["units"] = "m"
    blocks = [ds.isel(row=slice(1)), ds.isel(row=slice(1, None))]
    xr.testing.assert_identical(_joined(blocks), xr.concat(blocks, "row"))
