"""A contract goes into an Arrow schema and comes back; Pandera's rules judge as before"""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st

from scalai_nb.data.contract import Column, Contract, Place
from scalai_nb.errors import ParameterError

TYPES = ["int8", "uint64", "float32", "float64", "bool", "string", "category"]
TYPES += ["datetime64[s]", "datetime64[ns]"]
numbers = st.none() | st.floats(-1e6, 1e6) | st.integers(-1000, 1000)
shares = st.floats(0, 1)


@st.composite
def columns(draw, name):
    dtype = draw(st.sampled_from(TYPES))
    times = st.none() | st.sampled_from(["2020-01-31", "now"])
    ends = times if dtype.startswith("datetime64") else numbers
    said = {"min": draw(ends), "max": draw(ends), "missing": draw(shares)}
    if dtype == "category":
        said["categories"] = tuple(draw(st.lists(st.text(max_size=3), unique=True)))
    if dtype == "string":
        said |= {"length": (0, draw(st.integers(0, 9))), "pattern": "[a-z]*"}
    if dtype == "float64" and draw(st.booleans()):
        labels = draw(st.lists(st.text(max_size=2), min_size=1, max_size=3, unique=True))
        said |= {"per": "level", "places": tuple(Place(x, draw(numbers), None) for x in labels)}
    units, slack = draw(st.sampled_from(["", "°F"])), draw(shares)
    return Column(name, dtype, units=units, tolerance=slack, ordered=draw(st.booleans()), **said)


@st.composite
def contracts(draw):
    names = draw(st.lists(st.text(max_size=4), min_size=1, max_size=5, unique=True))
    some = st.lists(st.sampled_from(names), unique=True).map(tuple)
    one = st.none() | st.sampled_from(names)
    roles = {r: draw(some) for r in ("key", "pii", "later", "ignored")}
    roles |= {r: draw(one) for r in ("label", "time", "weight", "group")}
    return Contract(tuple(draw(columns(n)) for n in names), **roles)


@settings(max_examples=60, deadline=None)
@given(contracts())
def test_a_contract_comes_back_from_arrow(contract):
    assert Contract.from_arrow(contract.to_arrow()) == contract


def _contract():
    ds = xr.Dataset({"id": ("row", [1, 2]), "x": ("row", [0.5, 1.5]), "y": ("row", [1, 1])})
    return Contract.infer(ds, key=["id", "y"], label="x", pii=["x"], weight="x")


def test_it_comes_back_from_a_parquet_file(tmp_path):
    contract, path = _contract(), tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "x": [0.5], "y": [1]}).cast(contract.to_arrow()), path)
    assert Contract.from_arrow(pq.read_schema(path)) == contract
    assert contract.check(path).ok


def test_what_a_schema_no_longer_holds_is_named():
    contract = _contract()
    fewer = contract.to_arrow().remove(0)
    with pytest.warns(UserWarning, match="Not taken over: key id$"):
        left = Contract.from_arrow(fewer)
    assert left.key == () and left.label == "x" and left["x"] == contract["x"]
    with pytest.warns(UserWarning, match="Not taken over: label x, pii x, weight x$"):
        assert Contract.from_arrow(contract.to_arrow().remove(1)).label is None
    other = fewer.set(0, fewer.field(0).with_type(pa.string()))
    with pytest.warns(UserWarning, match="what was expected of 'x' as float64"):
        assert Contract.from_arrow(other)["x"].max is None
    damaged = fewer.set(0, fewer.field(0).with_metadata({"scalai.column": "{"}))
    with pytest.warns(UserWarning, match="damaged metadata of 'x'"):
        Contract.from_arrow(damaged)


# ---- Pandera


@pytest.fixture(scope="module", params=["pandas", "polars"])
def kind(request):
    "Pandera for a kind of table, a table of that kind, and the types of its columns"
    if request.param == "pandas":
        import pandera.pandas as pandera

        names = {"time": "datetime64[ns]", "text": str, "float": float, "int": "int64"}
        return pandera, pd.DataFrame, names | {"kind": pd.CategoricalDtype(["a", "b"])}
    import pandera.polars as pandera

    names = {"time": pl.Datetime("us"), "text": pl.String, "float": pl.Float64, "int": pl.Int64}
    return pandera, pl.DataFrame, names | {"kind": pl.Enum(["a", "b"])}


TEXTS = ["", "a", "ab", "abc", "b", "xa", "a\nb", "A", "xab", "ab\n", "a.b", "axb"]
NUMBERS = [-1.0, 0.0, 5e-324, 0.5, 1.0, float(np.nextafter(1, 0)), float(np.nextafter(1, 2)), 2.0]
DAYS = [np.datetime64("2026-01-01", "us") + np.timedelta64(n, "us") for n in (-1, 0, 1, 2)]
VALUES = {
    "text": TEXTS,
    "float": NUMBERS,
    "int": [-1, 0, 1, 2, 3],
    "time": DAYS,
    "kind": ["a", "b"],
}
DAY = pd.Timestamp("2026-01-01")
RULES = [
    ("text", ["str_matches:^a"]),
    ("text", ["str_matches:a.b$"]),
    ("text", ["str_matches:a|x"]),
    ("text", ["str_contains:b"]),
    ("text", ["str_startswith:a."]),
    ("text", ["str_endswith:b", "str_matches:a"]),
    ("text", ["isin:a,a.b"]),
    ("text", ["str_length:1,2"]),
    ("text", ["str_length:2,"]),
    ("float", ["gt:0"]),
    ("float", ["ge:0", "lt:1", "le:7"]),
    ("float", ["ge:0", "ge:0.5"]),
    ("int", ["gt:0", "lt:3"]),
    ("int", ["in_range:0,2"]),
    ("time", ["gt:t", "le:u"]),
    ("kind", []),
]


def _check(pandera, text):
    name, _, told = text.partition(":")
    known = {"t": DAY, "u": DAY + pd.Timedelta(1, "us")}
    if name.startswith("str_") and name != "str_length":
        return getattr(pandera.Check, name)(told)
    if name == "isin":
        return pandera.Check.isin(told.split(","))
    values = [
        known.get(x) or (float(x) if "." in x else int(x)) if x else None for x in told.split(",")
    ]
    return getattr(pandera.Check, name)(*values)


@pytest.mark.parametrize(("name", "checks"), RULES, ids=[" ".join([n, *c]) for n, c in RULES])
def test_each_value_is_judged_as_pandera_judges_it(kind, name, checks):
    pandera, frame, types = kind
    column = pandera.Column(
        types[name], [_check(pandera, c) for c in checks], nullable=name == "text"
    )
    schema = pandera.DataFrameSchema({name: column})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Not taken over: times of 'time' in other units")
        contract = Contract.from_pandera(schema)
    judged = []
    for value in [*VALUES[name], *([None] if name in ("text", "float") else [])]:
        data = {name: pd.array([value], types[name])} if frame is pd.DataFrame else {name: [value]}
        if name == "time" and frame is pl.DataFrame:
            data = {name: [value.item()]}
        table = frame(data) if frame is pd.DataFrame else frame(data, schema={name: types[name]})
        try:
            schema.validate(table)
            judged.append(True)
        except pandera.errors.SchemaError:
            judged.append(False)
        assert contract.check(table).ok == judged[-1], (value, contract)
    assert set(judged) == ({True} if name == "kind" else {True, False})


def test_what_a_contract_has_no_word_for_is_named(kind):
    pandera, _, types = kind
    Check, Col = pandera.Check, pandera.Column
    schema = pandera.DataFrameSchema(
        {
            "a": Col(types["int"], Check(lambda x: x, name="even"), unique=True),
            "b": Col(types["float"], [Check.isin([1.0]), Check.gt(0)], unique=True, nullable=True),
            "c": Col(types["text"], Check.str_length(1, 2, raise_warning=True)),
            "d": Col(types["text"], required=False),
            "e": Col(types["text"], [Check.str_length(1, 5), Check.str_length(2, 3)]),
            "i": Col(types["int"], nullable=True),
        },
        unique=["a", "c"],
        strict=True,
    )
    with pytest.warns(UserWarning) as warned:
        contract = Contract.from_pandera(schema)
    said = str(warned[0].message)
    for left in ("strict", "check even of 'a'", "check isin of 'b'", "check str_length of 'c'"):
        assert left in said
    for left in ("column 'd' (required=False)", "check str_length of 'e'", "nulls of 'i'"):
        assert left in said
    assert "unique a, unique b" in said and "greater_than" not in said
    assert contract.key == ("a", "c") and contract["b"].min > 0 and contract["c"].role == "key"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ParameterError, match="without a column"):
            Contract.from_pandera(pandera.DataFrameSchema({}))
    with pytest.raises(ParameterError, match="A dict is no schema of Pandera; accepted"):
        Contract.from_pandera({})


def test_a_model_is_a_schema():
    import pandera.pandas as pandera

    class Prices(pandera.DataFrameModel):
        price: float = pandera.Field(ge=0)

    assert Contract.from_pandera(Prices)["price"].min == 0


# ---- places


def test_one_place_is_amended_by_its_name():
    values = xr.DataArray([[1.0, 50.0], [2.0, 60.0]], dims=("row", "level"))
    ds = xr.Dataset({"temp": values}, {"level": [1000, 500]})
    contract = Contract.infer(ds, per="level", tolerance=0)
    hot = ds.assign(temp=values + 5)
    broken = {v["column"] for v in contract.check(hot).found}
    assert broken == {"temp", "temp[level=1000]", "temp[level=500]"}
    wide = contract.amend("temp[level=1000]", max=10)
    assert broken - {v["column"] for v in wide.check(hot).found} == {"temp[level=1000]"}
    assert [p.max for p in wide["temp"].places] == [10, 60]
    with pytest.raises(
        ParameterError, match="says of temp.*known: max, min, missing.*amend 'temp'"
    ):
        contract.amend("temp[level=1000]", tolerance=1)
    with pytest.raises(ParameterError, match=r"'temp\[level=7\]' is not in the contract"):
        contract.amend("temp[level=7]", max=1)
