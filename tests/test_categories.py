"""A column of categories does what a column of strings does in xarray and pandas"""

import copy
import operator
import pickle

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from scalai_nb.data.categories import Categories, coded, labelled, labels
from scalai_nb.errors import ParameterError

NAMES = ["fog", "rain", "snow", "sun"]  # "snow" is in no row
CODES = np.int8([1, 3, 1, -1, 0, 3, 3, 1, 0, -1, 1, 3])


def codes() -> xr.Dataset:
    "Columns as codes, along a row and over a grid, beside a number"
    r = np.arange(len(CODES))
    return xr.Dataset(
        {
            "weather": ("row", CODES, {"categories": NAMES, "long_name": "Weather"}),
            "grid": (("row", "x"), np.stack([CODES, CODES[::-1]], 1), {"categories": NAMES}),
            "temp": ("row", r * 0.5),
        },
        {"x": [10, 20]},
    )


def strings(ds: xr.Dataset) -> xr.Dataset:
    "The same with plain strings for whatever holds categories"
    return ds.assign({n: labels(ds[n]) for n in ds.variables if n in ("weather", "grid")})


def on_dask(ds):
    return ds.chunk(row=5)


FORMS = {
    "memory": labelled,
    "lazy": lambda ds: labelled(on_dask(ds)),
    "chunked": lambda ds: on_dask(labelled(ds)),
    "loaded": lambda ds: labelled(on_dask(ds)).compute(),
}


def other(ds):
    "The same dataset with other categories, as a part that was read on its own"
    known = ds.weather == ds.weather
    return ds.assign(weather=ds.weather.where(known & (ds.weather != "fog"), "hail"))


OPERATIONS = {
    "equal": lambda ds: ds.weather == "rain",
    "equal, from the right": lambda ds: "rain" == ds.weather,
    "unequal": lambda ds: ds.weather != "rain",
    "equal to no label": lambda ds: ds.weather == "hail",
    "unequal to no label": lambda ds: ds.weather != "hail",
    "equal to a number": lambda ds: ds.weather == 1,
    "equal to a column": lambda ds: ds.weather == ds.weather[::-1],
    "equal to another column": lambda ds: ds.weather == ds.grid,
    "equal to strings": lambda ds: ds.weather == np.array(["rain", "sun"] * 6, object),
    "both": lambda ds: (ds.weather == "rain") & (ds.temp > 1),
    "isin": lambda ds: ds.weather.isin(["rain", "hail", "sun"]),
    "where": lambda ds: ds.where(ds.weather == "rain"),
    "where, dropping": lambda ds: ds.where((ds.weather == "rain").compute(), drop=True),
    "where, instead": lambda ds: ds.weather.where(ds.temp > 2, "hail"),
    "where, another": lambda ds: ds.weather.where(ds.temp > 2, ds.weather[::-1]),
    "where, a number": lambda ds: ds.weather.where(ds.temp > 2, 7),
    "xr.where": lambda ds: xr.where(ds.weather == "rain", ds.weather, "dry"),
    "boolean": lambda ds: ds.isel(row=ds.weather == "rain"),
    "boolean, values": lambda ds: ds.isel(row=(ds.weather == "rain").values),
    "slice": lambda ds: ds.isel(row=slice(2, 9, 2)),
    "one": lambda ds: ds.isel(row=3),
    "one of Dask": lambda ds: ds.weather[1],
    "fancy": lambda ds: ds.isel(row=[5, 1, 1], x=[1, 0]),
    "pointwise": lambda ds: ds.grid.isel(row=("p", [0, 3]), x=("p", [1, 0])),
    "none": lambda ds: ds.isel(row=[]),
    "head": lambda ds: ds.head(row=3),
    "thin": lambda ds: ds.thin(row=4),
    "isnull": lambda ds: ds.isnull(),
    "notnull": lambda ds: ds.notnull(),
    "count": lambda ds: ds.count(),
    "dropna": lambda ds: ds.compute().dropna("row"),
    "fillna": lambda ds: ds.weather.fillna("?"),
    "fillna with a label": lambda ds: ds.weather.fillna("snow"),
    "ffill, as strings": lambda ds: ds.weather.compute().to_series().ffill().to_xarray(),
    "concat": lambda ds: xr.concat([ds, other(ds)], "row"),
    "concat anew": lambda ds: xr.concat([ds.weather, ds.weather[::-1]], "part"),
    "merge": lambda ds: xr.merge([ds, ds.weather.rename("again")]),
    "combine_first": lambda ds: ds.weather.combine_first(ds.weather[::-1]),
    "broadcast": lambda ds: xr.broadcast(ds.weather, ds.x)[0],
    "transpose": lambda ds: ds.transpose(),
    "stack": lambda ds: ds.grid.stack(both=["row", "x"]).reset_index("both"),
    "stack and back": lambda ds: ds.grid.stack(both=["row", "x"]).unstack("both"),
    "expand_dims": lambda ds: ds.weather.expand_dims(k=[1, 2]),
    "squeeze": lambda ds: ds.isel(x=[0]).squeeze("x"),
    "roll": lambda ds: ds.weather.roll(row=2),
    "shift": lambda ds: ds.weather.shift(row=2),
    "pad": lambda ds: ds.weather.pad(row=2),
    "diff of what is beside": lambda ds: ds.diff("row") if 0 else ds[["temp"]].diff("row"),
    "reindex": lambda ds: ds.assign_coords(row=np.arange(12)).reindex(row=[3, 40, 1]),
    "sel": lambda ds: ds.assign_coords(row=np.arange(12)).sel(row=[3, 1]),
    "set_coords": lambda ds: ds.set_coords("weather"),
    "set_xindex": lambda ds: ds.compute().set_coords("weather").set_xindex("weather"),
    "sel by label": lambda ds: (
        ds.compute().dropna("row").set_coords("weather").set_xindex("weather").sel(weather="rain")
    ),
    "swap_dims": lambda ds: ds.compute().swap_dims(row="weather").sel(weather="rain"),
    "sortby": lambda ds: ds.compute().dropna("row").sortby("weather"),
    "groupby": lambda ds: ds[["temp", "weather"]].compute().groupby("weather").mean(),
    "groupby, a size": lambda ds: ds.temp.compute().groupby(ds.weather.compute()).count(),
    "groupby, first": lambda ds: ds.compute().groupby("weather").first(),
    "astype object": lambda ds: ds.weather.astype(object),
    "astype str": lambda ds: ds.weather.astype(str),
    "str": lambda ds: ds.weather.fillna("").str.upper(),
    "str length": lambda ds: ds.weather.fillna("").str.len(),
    "str startswith": lambda ds: ds.weather.fillna("").str.startswith("s"),
    "compute": lambda ds: ds.compute(),
    "persist": lambda ds: ds.persist(),
    "chunk": lambda ds: ds.chunk(row=4),
    "unify_chunks": lambda ds: ds.chunk(row=4).unify_chunks(),
    "map_blocks": lambda ds: ds.chunk(row=4, x=2).map_blocks(lambda d: d[["weather"]]),
    "apply_ufunc": lambda ds: xr.apply_ufunc(lambda a: a == "rain", ds.weather.compute()),
    "pickle": lambda ds: pickle.loads(pickle.dumps(ds)),
    "copy": lambda ds: copy.copy(ds),
    "deepcopy": lambda ds: copy.deepcopy(ds),
    "copy, deep": lambda ds: ds.copy(deep=True),
    "full_like": lambda ds: xr.full_like(ds.weather, "x"),
    "zeros": lambda ds: xr.zeros_like(ds.temp),
    "max": lambda ds: ds.weather.compute().fillna("").max(),
    "equals": lambda ds: xr.DataArray(ds.equals(ds.copy(deep=True))),
    "identical": lambda ds: xr.DataArray(ds.compute().identical(ds.compute())),
    "not equals": lambda ds: xr.DataArray(ds.equals(other(ds))),
    "to_dict": lambda ds: xr.DataArray(
        str(ds.fillna("?").compute().to_dict()["data_vars"]["weather"]["data"])
    ),
    "rename": lambda ds: ds.rename(weather="sky").sky,
    "assign": lambda ds: ds.assign(again=ds.weather).again,
    "drop_vars": lambda ds: ds.drop_vars("temp"),
    "to_array": lambda ds: ds[["weather"]].to_dataarray(),
    "quick select": lambda ds: ds.temp.where(ds.weather.isin(["sun"]), 0).sum(),
    "query": lambda ds: ds.compute().fillna("?").query(row="weather == 'rain'"),
    "contains": lambda ds: xr.DataArray("rain" in ds.weather.compute().data),
}
VALUES = {
    "values": lambda ds: ds.weather.values,
    "to_numpy": lambda ds: ds.weather.to_numpy(),
    "asarray": lambda ds: np.asarray(ds.weather),
    "unique": lambda ds: np.unique(ds.weather.fillna("?")),
    "item": lambda ds: [ds.weather[1].item()],
    "a scalar": lambda ds: [str(ds.weather[1].values)],
    "list": lambda ds: ds.weather.values.tolist(),
    "to_dataframe": lambda ds: ds[["weather", "temp"]].to_dataframe().weather,
    "to_pandas": lambda ds: ds.weather.to_pandas(),
    "to_series": lambda ds: ds.grid.to_series(),
    "to_index": lambda ds: ds.weather.to_index(),
    "value_counts": lambda ds: ds.weather.to_series().value_counts(),
    "crosstab": lambda ds: pd.crosstab(ds.weather.to_series(), ds.temp.to_series() > 2)[True],
    "Series": lambda ds: pd.Series(ds.weather.values),
    "isna": lambda ds: pd.isna(ds.weather.values),
}


def outcome(operation, ds):
    "What an operation gives, in memory and as strings; or the kind of its error"
    try:
        found = operation(ds)
    except Exception as e:
        return type(e)
    return found.compute() if hasattr(found, "compute") else found


def plain(found):
    "An object of xarray with arrays of NumPy"
    return found.as_numpy() if hasattr(found, "as_numpy") else found


def same(a, b):
    if isinstance(b, type):
        assert a is b
    elif hasattr(b, "dims"):
        xr.testing.assert_identical(plain(a), plain(b))
    elif hasattr(b, "index") and not isinstance(b, list):
        pd.testing.assert_series_equal(a, b)
    else:
        pd.testing.assert_index_equal(pd.Index(a), pd.Index(b))


def beside(form: str) -> xr.Dataset:
    "The columns of strings that a form of the dataset is compared with"
    return on_dask(strings(codes())) if form in ("lazy", "chunked") else strings(codes())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_as_strings_do_in_xarray(name, form):
    operation = OPERATIONS[name]
    same(outcome(operation, FORMS[form](codes())), outcome(operation, beside(form)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VALUES)
def test_as_strings_do_in_pandas(name, form):
    operation = VALUES[name]
    same(outcome(operation, FORMS[form](codes())), outcome(operation, beside(form)))
