"Transform: scikit-learn's definition, whatever the blocks, and exact as JSON"

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scalai_nb.compute.reduce import check_mergeable
from scalai_nb.errors import ContractViolation, ParameterError
from scalai_nb.learn import transform as module
from scalai_nb.learn.transform import Transform, codes, columns_seen, numbers

NUMERIC, CATEGORICAL = ["temp", "month", "flag", "flat"], ["carrier", "origin"]


def table(rows=5000, seed=0):
    "Numbers of every kind, categories as codes and as strings, with holes; `flat` is constant"
    rng = np.random.default_rng(seed)
    carrier = rng.choice([-1, 0, 1, 3], rows).astype("i1")  # code 2 never occurs
    origin = rng.choice(np.array(["JFK", "LGA", "EWR", None], object), rows)
    return xr.Dataset({
        "temp": ("row", np.where(rng.random(rows) < .1, np.nan, rng.normal(60, 18, rows))),
        "month": ("row", rng.integers(1, 13, rows)),
        "flag": ("row", rng.random(rows) < .3),
        "flat": ("row", np.full(rows, 0.1)),
        "time": ("row", np.where(rng.random(rows) < .05, np.datetime64("NaT", "s"), np.datetime64("2013-01-01", "s") + rng.integers(0, 10**7, rows))),
        "carrier": ("row", carrier, {"categories": ["UA", "AA", "WN", "B6"]}),
        "origin": ("row", origin),
    }, attrs={"title": "drawn"})  # fmt: skip


def sklearn_features(train, test):
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    def frame(ds):
        df = pd.DataFrame({n: ds[n].values.astype(float) for n in NUMERIC})
        for n in CATEGORICAL:
            found, names = codes(ds[n])
            df[n] = np.array([*names, "missing"], object)[found]
        return df

    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    fitted = make_column_transformer((make_pipeline(SimpleImputer(), StandardScaler()), NUMERIC), (one_hot, CATEGORICAL)).fit(frame(train))
    names = [n.split("__")[1] for n in fitted.get_feature_names_out()]
    keep = [i for i, n in enumerate(names) if not n.endswith("_missing")]
    return fitted.transform(frame(test))[:, keep], [names[i] for i in keep]


def test_equals_scikit_learn():
    train, test = table(), table(3000, seed=1)
    test["origin"][:50] = "BOS"
    t = Transform(NUMERIC, CATEGORICAL).fit(train)
    expected, names = sklearn_features(train, test)
    got = t.transform(test)
    assert [n.replace("=", "_") for n in t.feature_names] == names == [n.replace("=", "_") for n in got.feature.values.tolist()]
    assert got.dtype == np.float32 and got.dims == ("row", "feature")
    np.testing.assert_allclose(got.values, expected, atol=4e-6)


def test_a_deviation_taken_before_imputing_is_caught(monkeypatch):
    deviation = module._deviation
    monkeypatch.setattr(module, "_deviation", lambda seen, imputed: deviation(seen, False))
    with pytest.raises(AssertionError):
        test_equals_scikit_learn()


def test_blocks_streams_and_dask_learn_the_same():
    ds = table()
    t = Transform([*NUMERIC, "time"], CATEGORICAL)
    whole = t.fit(ds).to_dict()
    for data in (ds.chunk(row=700), [ds.isel(row=slice(a, a + 1234)) for a in range(0, 5000, 1234)]):
        other = t.fit(data).to_dict()
        np.testing.assert_allclose(other["mean"] + other["std"], whole["mean"] + whole["std"], rtol=1e-6)
        assert other["origin"][-1] == pytest.approx(whole["origin"][-1], abs=1e-3)
        assert other["categories"] == whole["categories"] == [["AA", "B6", "UA"], ["EWR", "JFK", "LGA"]]
    np.testing.assert_array_equal(t.transform(ds.chunk(row=700)), t.transform(ds))


def test_what_is_learnt_keeps_the_laws_of_a_reduction():
    ds = table(701)
    blocks = [ds.isel(row=slice(*edges)) for edges in ((0, 400), (400, 700), (700, 701))]
    check_mergeable(columns_seen(("temp", "month", "flag", "time"), tuple(CATEGORICAL)), blocks, lambda parts: ds)


def test_other_columns_are_not_read():
    class Unreadable:
        shape, dtype, ndim = (5000,), np.dtype("f8"), 1

        def __array_function__(self, *args): raise AssertionError("read")
        def __array__(self, *args, **kwargs): raise AssertionError("read")
        def __getitem__(self, key): raise AssertionError("read")

    ds = table().assign(other=("row", Unreadable()))
    t = Transform(NUMERIC, CATEGORICAL).fit(ds)
    assert t.transform(ds).shape == (5000, len(t.feature_names))


def test_times_keep_their_seconds():
    ds = table()
    t = Transform(["time"], scale=False).fit(ds)
    seconds = numbers(ds.time)
    expected = np.where(np.isnan(seconds), 0, seconds - np.nanmean(seconds))
    np.testing.assert_allclose(t.transform(ds)[:, 0], expected, atol=0.5)
    scaled = Transform(["time"]).fit(ds).transform(ds.assign(time=ds.time.astype("datetime64[ns]")))
    np.testing.assert_allclose(scaled[:, 0], expected / expected.std(), atol=1e-6)


def test_missing_can_stay_missing():
    ds = table()
    X = Transform(["temp"], impute=None).fit(ds).transform(ds)[:, 0].values
    x = ds.temp.values
    np.testing.assert_allclose(X, (x - np.nanmean(x)) / np.nanstd(x), atol=1e-6)


def test_whole_numbers_are_categories_whatever_their_type():
    hours = xr.Dataset({"hour": ("row", [6, 7, 23, 6]), "flag": ("row", [True, False, True, True])})
    t = Transform(categorical=["hour", "flag"]).fit(hours)
    assert t.feature_names == ["hour=23", "hour=6", "hour=7", "flag=False", "flag=True"]
    holes = hours.assign(hour=("row", [6, np.nan, 23, 6.0]))
    np.testing.assert_array_equal(t.transform(holes)[:, :3], [[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]])


def test_the_empty_string_is_missing():
    ds = xr.Dataset({"carrier": ("row", np.array(["", "AA", None], object))})
    t = Transform(categorical=["carrier"], unseen="error").fit(ds)
    assert t.categories_ == [["AA"]] and t.transform(ds).values.tolist() == [[0], [1], [0]]
    assert t.raw(ds)["carrier"].tolist() == ["", "AA", ""]


def test_json_is_exact():
    ds = table()
    t = Transform([*NUMERIC, "time"], CATEGORICAL, scale=False, impute=None).fit(ds)
    again = Transform.from_dict(json.loads(json.dumps(t.to_dict(), allow_nan=False)))
    assert again.transform(ds).identical(t.transform(ds)) and again.to_dict() == t.to_dict()


def test_row_coordinates_are_kept_and_the_input_is_untouched():
    ds = table(10).assign_coords(flight=("row", np.arange(10)))
    before = ds.copy(deep=True)
    assert Transform(NUMERIC).fit_transform(ds).flight.values.tolist() == list(range(10))
    assert ds.identical(before)


@pytest.mark.parametrize("options, sentence", [
    ({}, "give lists of columns"),
    ({"numeric": "temp"}, "give lists of columns"),
    ({"numeric": ["temp"], "categorical": ["temp"]}, "each column once"),
    ({"numeric": ["temp"], "impute": "median"}, "accepted: 'mean' or None"),
    ({"numeric": ["temp"], "unseen": "other"}, "accepted: 'zero' or 'error'"),
])  # fmt: skip
def test_wrong_options(options, sentence):
    with pytest.raises(ParameterError, match=sentence):
        Transform(**options).fit(table(10))


@pytest.mark.parametrize("options, sentence", [
    ({"numeric": ["tmp"]}, "Did you mean 'temp'"),
    ({"numeric": ["origin"]}, "list it under categorical"),
    ({"numeric": ["carrier"]}, "list it under categorical"),
    ({"categorical": ["time"]}, "list it under numeric"),
])  # fmt: skip
def test_wrong_columns(options, sentence):
    with pytest.raises(ContractViolation, match=sentence):
        Transform(**options).fit(table(10))


def test_columns_that_cannot_be_learnt():
    ds = table(10)
    with pytest.raises(ContractViolation, match="'temp' has no value"):
        Transform(["temp"]).fit(ds.assign(temp=ds.temp * np.nan))
    with pytest.raises(ContractViolation, match="'temp' holds an infinite value"):
        Transform(["temp"]).fit(ds.assign(temp=ds.temp + np.inf))
    with pytest.raises(ContractViolation, match="'temp' has no value"):
        Transform(["temp"]).fit(ds.isel(row=slice(0)))
    with pytest.raises(ParameterError, match="call fit"):
        Transform(["temp"]).transform(ds)
    with pytest.raises(ContractViolation, match="was times in training"):
        Transform(["time"]).fit(ds).transform(ds.assign(time=ds.temp))
