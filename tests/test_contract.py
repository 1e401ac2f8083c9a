"What data.contract promises: good data fit, every planted fault is named and counted, also lazily"

import json

import dask.array as da
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st

from scalai_nb.data.contract import Column, Contract
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.rules.facts import Limits, Seen, look
from scalai_nb.data.sources import from_frame, to_frame
from scalai_nb.errors import ContractViolation, ParameterError


def good(n: int = 100) -> xr.Dataset:
    i = np.arange(n)
    return xr.Dataset(
        {
            "id": ("row", i),
            "temp": ("row", np.where(i % 10 == 0, np.nan, 10 + i % 41), {"units": "°F"}),
            "signed": ("row", (i % 21 - 10).astype("float32")),
            "carrier": ("row", (i % 3 - 1).astype("int8"), {"categories": ["AA", "UA", "VX"]}),
            "tail": ("row", np.array([None if k % 4 == 0 else f"N{k}" for k in i], dtype=object)),
            "at": ("row", i.astype("M8[s]")),
            "late": ("row", i % 2 == 0),
            "image": (("row", "y"), np.ones((n, 2)) * [[0, 5]]),
        }
    )


@pytest.fixture
def contract():
    return Contract.infer(good(), label="late", key=("id", "late"), time="at", pii=("tail",))


def broken(check) -> list[tuple]:
    return [(v["column"], v["rule"], v["count"]) for v in check.found]


# --- inferring ------------------------------------------------------------------------------------


def test_what_is_inferred(contract):
    assert contract["temp"] == Column("temp", "float64", "feature", "°F", 10.0, 50.0, 0.1)
    assert contract["id"] == Column("id", "int64", "key")  # the next ones are others
    assert contract["carrier"] == Column(
        "carrier", "category", missing=0.34, categories=("AA", "UA", "VX")
    )
    assert contract["at"] == Column("at", "datetime64[s]", "time")
    assert contract["late"] == Column("late", "bool", "label")
    assert contract["image"] == Column("image", "float64", min=0.0, max=5.0)
    assert (contract.label, contract.key, contract.time, contract.pii) == (
        "late",
        ("id", "late"),
        "at",
        ("tail",),
    )


def test_no_value_about_a_person_is_kept_or_said():
    ds = xr.Dataset(
        {
            "age": ("row", [61, 62]),
            "who": ("row", np.int8([0, 1]), {"categories": ["ada", "bob"]}),
            "mail": ("row", np.array(["ada@x", "bob@x"], dtype=object)),
        }
    )
    c = Contract.infer(ds, pii=("age", "who", "mail"), key="mail")
    bad = ds.assign(
        age=("row", [-999, 77]),
        who=("row", np.int8([0, 0]), {"categories": ["eve"]}),
        mail=("row", np.array(["eve@x", "eve@x"], dtype=object)),
    )
    check = c.check(bad)
    assert broken(check) == [("mail", "key", 1)]
    for said in (c.to_json(), repr(c), c._repr_html_(), str(check), check._repr_html_()):
        for value in ("61", "62", "ada", "bob", "eve", "999", "77"):
            assert value not in said


@pytest.mark.parametrize(
    "names",
    [{"label": "lat"}, {"key": "idd"}, {"key": ("id", "x")}, {"time": "y"}, {"pii": ["tial"]}],
)
def test_a_name_that_is_not_there(names):
    with pytest.raises(ParameterError, match="is not in the columns; known: at, "):
        Contract.infer(good(), **names)


@pytest.mark.parametrize(
    "key, says", [("late", "98 rows repeat one, 0 lack"), ("tail", "24 rows repeat one, 25 lack")]
)
def test_a_key_that_is_none(key, says):
    with pytest.raises(ParameterError, match=f"is not a key: {says}"):
        Contract.infer(good(), key=key)


def test_infinite_numbers_are_not_good_data():
    with pytest.raises(ParameterError, match="'x' holds 1 infinite numbers"):
        Contract.infer(xr.Dataset({"x": ("row", [1.0, np.inf])}))


numbers = st.sampled_from(["int8", "uint64", "int64", "float32", "float64"]).flatmap(
    lambda t: st.lists(
        st.integers(int(np.iinfo(t).min), int(np.iinfo(t).max))
        if t[0] in "iu"
        else st.floats(width=int(t[5:]), allow_infinity=False),
        max_size=6,
    ).map(lambda v: np.array(v, dtype=t))
)


@given(numbers)
@settings(deadline=None)
def test_what_is_inferred_is_kept(x):
    ds = xr.Dataset({"x": ("row", x)})
    for tolerance in (0, 0.5):
        assert Contract.infer(ds).amend("x", tolerance=tolerance).check(ds).ok


def test_one_name_will_do():
    c = Contract.infer(good(), key="id", pii="tail")
    assert (c.key, c.pii) == (("id",), ("tail",))


@given(
    st.lists(st.floats() | st.none(), max_size=12),
    st.integers(0, 12),
    st.floats(-5, 0),
    st.floats(0, 5),
)
@settings(deadline=None)
def test_facts_of_blocks_add_up(values, cut, low, high):
    x = xr.DataArray(
        np.array([np.nan if v is None else v for v in values], dtype=float), dims="row"
    )
    limits = Limits(low, high)
    assert look(x, limits) == Seen() + look(x[:cut], limits) + look(x[cut:], limits)
    finite = [v for v in values if v is not None and np.isfinite(v)]
    seen = look(x, limits)
    assert (seen.min, seen.max) == (min(finite, default=None), max(finite, default=None))
    assert seen.outside == sum(
        v is not None and not np.isnan(v) and not low <= v <= high for v in values
    )


# --- checking -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
def test_good_data_are_good(contract, lazy):
    ds = good().chunk(row=7) if lazy else good()
    assert contract.check(ds).ok and contract.check(ds.assign(more=ds.id)).ok
    assert (
        contract.check(ds.isel(row=slice(20, 60))).ok
        and contract.check(ds.isel(row=slice(0, 0))).ok
    )
    assert (
        Contract.infer(ds, label="late", key=("id", "late"), time="at", pii=("tail",)) == contract
    )


FAULTS = {
    "column": (lambda ds: ds.drop_vars("temp"), [("temp", "column", None)]),
    "type": (lambda ds: ds.assign(id=ds.id.astype("int32")), [("id", "type", None)]),
    "category became string": (
        lambda ds: ds.assign(carrier=("row", np.array(["AA"] * 100, dtype=object))),
        [("carrier", "type", None)],
    ),
    "units": (
        lambda ds: ds.assign(temp=ds.temp.assign_attrs(units="K")),
        [("temp", "units", None)],
    ),
    "range": (
        lambda ds: ds.assign(temp=ds.temp.where(ds.id != 5, -9999.0)),
        [("temp", "range", 1)],
    ),
    "infinite": (
        lambda ds: ds.assign(temp=ds.temp.where(ds.id != 5, np.inf)),
        [("temp", "range", 1)],
    ),
    "sign": (lambda ds: ds.assign(temp=ds.temp.where(ds.id != 5, -0.01)), [("temp", "range", 1)]),
    "pixel": (lambda ds: ds.assign(image=ds.image.where(ds.id > 1, 255)), [("image", "range", 4)]),
    "missing": (
        lambda ds: ds.assign(temp=ds.temp.where(ds.id % 10 > 2)),
        [("temp", "missing", 30)],
    ),
    "category": (
        lambda ds: ds.assign(carrier=ds.carrier.assign_attrs(categories=["AA", "ZZ", "VX"])),
        [("carrier", "category", 33)],
    ),
    "code": (
        lambda ds: ds.assign(carrier=ds.carrier.where(ds.id != 5, np.int8(9))),
        [("carrier", "category", 1)],
    ),
    "key": (lambda ds: ds.assign(id=ds.id // 6 * 6), [("id, late", "key", 66)]),
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named_and_counted(fault, lazy):
    contract = Contract.infer(good(), label="late", key=("id", "late"), pii="tail")
    plant, expected = FAULTS[fault]
    check = contract.check(plant(good()).chunk(row=9) if lazy else plant(good()))
    assert broken(check) == expected and not check.ok
    assert [tuple(r) for r in check.violations[["column", "rule"]].to_numpy()] == [
        e[:2] for e in expected
    ]
    with pytest.raises(ContractViolation, match=f"{expected[0][0]}: {expected[0][1]} "):
        check.raise_()


def test_all_faults_are_reported_at_once(contract):
    assert broken(contract.check(xr.Dataset())) == [
        (c.name, "column", None) for c in contract.columns
    ]
    bad = (
        good()
        .drop_vars("late")
        .assign(temp=good().temp * 1000, signed=("row", np.full(100, np.nan, "float32")))
    )
    assert broken(contract.check(bad))[:3] == [
        ("late", "column", None),
        ("temp", "range", 90),
        ("signed", "missing", 100),
    ]


def test_a_key_is_never_missing(contract):
    c = Contract.infer(from_frame(pd.DataFrame({"k": ["a", "b"]})), key="k")
    assert broken(c.check(from_frame(pd.DataFrame({"k": ["a", None, "c"]})))) == [
        ("k", "missing", 1),
        ("k", "key", 1),
    ]


def test_unused_new_categories_are_no_fault(contract):
    ds = good()
    assert contract.check(
        ds.assign(carrier=ds.carrier.assign_attrs(categories=["AA", "UA", "VX", "ZZ"]))
    ).ok


@pytest.mark.parametrize(
    "column, inside, outside",
    [
        (Column("x", "float64", min=10, max=50), (0, 10, 70), (-0.1, 70.1)),
        (Column("x", "float64", min=-10, max=30), (-30, 50), (-30.1, 50.1)),
        (Column("x", "float64", min=0, max=0), (0,), (-1, 1)),
        (Column("x", "float64", min=5, max=5), (2.5, 7.5), (2.4, 7.6)),
        (Column("x", "float64", min=-4, max=-4), (-6, -2), (-6.1, -1.9)),
        (Column("x", "float64", min=1, max=12, tolerance=0), (1, 12), (0.9, 12.1)),
        (Column("x", "float64", min=1, tolerance=0), (1, 1e300), (0.9,)),
        (Column("x", "float64", max=12, tolerance=0), (-1e300, 12), (12.1,)),
        (Column("x", "float64"), (-1e300, 1e300), (np.inf, -np.inf)),
    ],
)
def test_bounds(column, inside, outside):
    c = Contract((column,))
    for v in inside:
        assert c.check(xr.Dataset({"x": ("row", [float(v)])})).ok, v
    for v in outside:
        assert broken(c.check(xr.Dataset({"x": ("row", [float(v)])}))) == [("x", "range", 1)], v


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", "float32"])
def test_bounds_reach_beyond_the_dtype(dtype):
    top = np.iinfo(dtype).max if dtype != "float32" else np.finfo(dtype).max
    ds = xr.Dataset({"x": ("row", np.array([0, top], dtype=dtype))})
    assert Contract.infer(ds).check(ds).ok


def test_missing_share():
    column = lambda share: xr.Dataset({"x": ("row", np.where(np.arange(100) < share, np.nan, 1.0))})
    for known, accepted in ((0, 5), (10, 25), (60, 100)):
        c = Contract.infer(column(known))
        assert c.check(column(accepted)).ok
        if accepted < 100:
            assert broken(c.check(column(accepted + 1))) == [("x", "missing", accepted + 1)]
    assert broken(Contract.infer(column(0)).amend("x", tolerance=0).check(column(1))) == [
        ("x", "missing", 1)
    ]


# --- keeping and amending -------------------------------------------------------------------------


def test_it_travels_with_the_dataset(contract, tmp_path):
    assert Contract.from_json(contract.to_json()) == contract and isinstance(
        Contract.from_json(contract.to_json()), Contract
    )
    lake = Lake(tmp_path)
    lake.write("a", contract.attach(good()))
    ds = lake.read("a")
    assert Contract.of(ds) == contract and Contract.of(ds).check(ds).ok
    with pytest.raises(ParameterError, match="infer one from good data"):
        Contract.of(good())


def test_amend(contract):
    new = contract.amend("temp", max=200, tolerance=0)
    assert (new["temp"].max, new["temp"].min, new["id"]) == (
        200,
        10.0,
        contract["id"],
    ) and contract["temp"].max == 50.0
    assert isinstance(new, Contract) and new.label == "late"
    with pytest.raises(ParameterError, match="Did you mean 'temp'"):
        contract.amend("tmep", max=1)
    with pytest.raises(ParameterError, match="Did you mean 'max'"):
        contract.amend("temp", maxx=1)


def test_it_shows_itself(contract):
    html = contract._repr_html_()
    for word in ("temp", "°F", "AA, UA, VX", "label", "pii"):
        assert word in html
    assert (
        "kept" in contract.check(good())._repr_html_()
        and str(contract.check(good())) == "The contract is kept."
    )
    many = Contract.infer(
        xr.Dataset({"c": ("row", np.int8([0]), {"categories": [f"c{i}" for i in range(50)]})})
    )
    assert "c4, … (50)" in many._repr_html_() and "c5" not in many._repr_html_().replace(
        "c4, … (50)", ""
    )
    evil = Contract.infer(xr.Dataset({"<b>": ("row", [1])}))
    assert (
        "<b>" not in evil._repr_html_()
        and "<b>" not in evil.check(xr.Dataset({"x": ("row", [1])}))._repr_html_()
    )


def test_a_block_at_a_time():
    "Each block of a lazy dataset is computed once, and the whole never"
    calls = []
    x = da.arange(2**19, chunks=2**17).map_blocks(
        lambda b: calls.append(len(b)) or b, dtype=int, meta=np.zeros(0, int)
    )
    assert Contract.infer(xr.Dataset({"x": ("row", x)}))["x"].max == 2**19 - 1
    assert calls == [2**17] * 4


# --- columns that become known too late -----------------------------------------------------------


def test_what_becomes_known_later_has_a_role():
    c = Contract.infer(good(), label="late", time="at", later=("signed", "at"))
    assert (c.later, c["signed"].role, c["at"].role) == (
        ("signed", "at"),
        "later",
        "time",
    ) and Contract.from_json(c.to_json()) == c
    assert Contract.infer(good(), later="signed").later == ("signed",) and c.check(good()).ok
    with pytest.raises(ParameterError, match="'singed' is not in the columns"):
        Contract.infer(good(), later="singed")


def test_a_contract_of_before_there_was_later_still_loads(contract):
    old = json.loads(contract.to_json())
    assert old.pop("later") == [] and Contract.from_json(json.dumps(old)) == contract


# --- a contract that says nothing -----------------------------------------------------------------


@pytest.mark.parametrize(
    "ds",
    [
        good().rename(row="time"),
        xr.Dataset(),
        xr.Dataset({"x": 5.0}),
        xr.Dataset({"x": ("y", [1.0])}),
        xr.Dataset(coords={"y": [1.0]}),
    ],
)
def test_without_rows_there_is_no_contract(ds, contract):
    with pytest.raises(ParameterError, match="no column over 'row'; one must be 'row'"):
        Contract.infer(ds)
    check = contract.check(ds)
    assert {v["column"] for v in check.found} == {c.name for c in contract.columns}
    assert {v["rule"] for v in check.found} == {"column"}


def test_a_column_that_is_not_over_rows_is_not_the_one(contract):
    ds = good().drop_vars("temp").assign(temp=("y", [1.0, 2.0], {"units": "°F"}))
    (found,) = contract.check(ds).found
    assert (found["column"], found["found"]) == ("temp", "one over ('y',)")


def test_an_empty_contract_is_refused(contract):
    empty = json.loads(contract.to_json()) | {"columns": []}
    for make in (lambda: Contract(()), lambda: Contract.from_json(json.dumps(empty))):
        with pytest.raises(ParameterError, match="would accept whatever comes; infer it"):
            make()


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow"])
def test_frames_are_taken(kind):
    df = to_frame(good().drop_vars("image"))
    given = {"pandas": df, "polars": pl.from_pandas(df), "arrow": pa.Table.from_pandas(df)}[kind]
    contract = Contract.infer(given, label="late")
    assert contract.check(given).ok and contract["temp"].max == 50
    known = ("AA", "UA") if kind == "polars" else ("AA", "UA", "VX")  # those that there are
    assert contract["carrier"].categories == known
    assert not contract.check(df.assign(temp=999.0)).ok
    assert Contract.of(contract.attach(given)) == contract
    with pytest.raises(ParameterError, match="The data are of type list"):
        contract.check([1])


def test_roles_of_a_contract_that_is_written_by_hand_are_those_of_its_columns():
    columns = (
        Column("id", "int64"),
        Column("who", "string", length=(1, 3)),
        Column("y", "float64"),
    )
    contract = Contract(columns, label="y", key=("id",), pii=("who",))
    assert [c.role for c in contract.columns] == ["key", "pii", "label"]
    told = xr.Dataset({"id": ("row", [1]), "who": ("row", ["Ada Lovelace"]), "y": ("row", [1.0])})
    assert "who" in str(contract.check(told)) and "Ada" not in str(contract.check(told))
    shown = contract.amend("who", role="feature")
    assert shown["who"].role == "feature" and shown.pii == () and shown.key == ("id",)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"columns": [{"name": "x"}]}', '{"columns": 3}'])
def test_what_is_no_contract_is_told(text):
    with pytest.raises(ParameterError, match="is no contract"):
        Contract.from_json(text)
