"""DataFrames of pandas and Polars, and Arrow tables, where a Dataset is asked for: the same"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr

import scalai_nb as sn
from scalai_nb.compute.blocks import Blocks
from scalai_nb.compute.mergeable import Mergeable
from scalai_nb.data.categories import labels
from scalai_nb.errors import ParameterError

ROWS = 3000
FRAMES = {
    "pandas": lambda df: df,
    "polars": pl.from_pandas,
    "arrow": lambda df: pa.Table.from_pandas(df, preserve_index=False),
}


@pytest.fixture(scope="module")
def table():
    "Numbers with missing values, times with a zone, text and categories, and what they tell"
    rng = np.random.default_rng(0)
    x = rng.normal(size=ROWS)
    late = rng.random(ROWS) < 1 / (1 + np.exp(-2 * x))
    times = pd.date_range("2013-01-01", periods=ROWS, freq="h", tz="Europe/Berlin")
    columns = {
        "x": np.where(rng.random(ROWS) < 0.1, np.nan, x),
        "day": times,
        "sky": rng.choice(["rain", "sun"], ROWS),
        "carrier": pd.Categorical(rng.choice(["AA", "B6", "UA"], ROWS)),
        "late": late,
    }
    return pd.DataFrame(columns)


@pytest.fixture(scope="module")
def expected(table):
    "What each function says of the Dataset"
    ds = sn.from_frame(table)
    transform = sn.Transform(["x"], ["sky", "carrier"]).fit(ds)
    estimator = sn.LogisticRegression().fit(transform.transform(ds), ds.late)
    model = sn.package(transform, estimator, sn.Contract.infer(ds, label="late"))
    return SimpleNamespace(ds=ds, transform=transform, model=model)


@pytest.fixture(params=FRAMES)
def frame(request, table):
    return FRAMES[request.param](table)


def rows_of(block) -> np.ndarray:
    return np.array([block.sizes["row"]])


COUNT = Mergeable(
    lambda: np.zeros(1, int),
    lambda state, block: state + rows_of(block),
    lambda a, b: a + b,
    lambda state: int(state[0]),
)


def test_what_is_read_in_blocks(frame, expected):
    assert sn.reduce(COUNT, frame) == ROWS
    assert Blocks.of(frame, ["x"]).columns == ["x"]
    found, wanted = sn.summarize(frame), sn.summarize(expected.ds)
    assert found["x"].mean == wanted["x"].mean and found["x"].missing == wanted["x"].missing
    assert found["sky"].distinct == 2 and found["carrier"].distinct == 3
    assert float(sn.drift(expected.ds, frame)["x"].psi) < 1e-9


def test_contract_and_lake(frame, expected, tmp_path):
    contract = sn.Contract.infer(expected.ds, label="late")
    assert contract.check(frame).ok
    lake = sn.Lake(tmp_path)
    lake.write("a", frame)
    lake.append("a", frame)
    back = lake.read("a")
    assert back.sizes["row"] == 2 * ROWS
    assert (labels(back.carrier).values[:ROWS] == labels(expected.ds.carrier).values).all()
    assert (back.day.values[:ROWS] == expected.ds.day.values).all()


def test_features_and_scores(frame, expected):
    fitted = sn.Transform(["x"], ["sky", "carrier"]).fit(frame)
    assert fitted.to_dict() == expected.transform.to_dict()
    wanted = expected.transform.transform(expected.ds)
    assert np.array_equal(fitted.transform(frame), wanted)
    assert np.array_equal(expected.model.predict(frame), expected.model.predict(expected.ds))


@pytest.mark.parametrize("data", [pd.Series([1.0]), pl.Series([1.0]), 7, "nowhere.csv"])
def test_other_things_are_one_sentence(data):
    for ask in (sn.summarize, sn.Transform(["x"]).fit, sn.Contract.infer):
        with pytest.raises((ParameterError, FileNotFoundError)) as refused:
            ask(data)
        assert "\n" not in str(refused.value)


DATASETS = {
    "columns": lambda df: xr.Dataset({name: ("row", df[name]) for name in df}),
    "values": lambda df: xr.Dataset({name: ("row", df[name].values) for name in df}),
    "from_dataframe": lambda df: xr.Dataset.from_dataframe(df).rename(index="row"),
    "a coordinate": lambda df: xr.Dataset({n: ("row", df[n].values) for n in df}).set_coords("sky"),
}


@pytest.mark.parametrize("make", DATASETS)
@pytest.mark.parametrize("text", ["str", "string", "string[pyarrow]", "object"])
def test_a_dataset_that_xarray_makes_of_pandas_columns(table, make, text):
    "xarray keeps the text of pandas as it is, and then cannot take rows of it"
    df = table[["x", "sky", "late"]].astype({"sky": text})
    ds, expected = DATASETS[make](df), sn.from_frame(df)
    assert sn.summarize(ds)["sky"].top == sn.summarize(expected)["sky"].top
    features = sn.Transform(["x"], ["sky"]).fit(expected)
    assert np.array_equal(features.transform(ds), features.transform(expected))
    score = 1 / (1 + np.exp(-ds["x"].fillna(0)))
    slices = sn.evaluate(ds["late"], score, by=ds["sky"]).slices
    assert set(slices) == {"rain", "sun"}
