"""Rows of a request: laws of the contract's check, and the same scores as the model's own"""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from scalai_nb.learn.features.recipes import category_name
from scalai_nb.serving.refusal import Refusal
from scalai_nb.serving.scoring.validation import (
    MOST,
    counted,
    from_columns,
    from_lists,
    from_records,
    name_of,
    seconds,
)
from scalai_nb.serving.scoring.scorer import Column, Scorer
from scalai_nb.serving.protocols.tensors import from_tensors

COLUMNS = (
    Column("temp", "number", "float32", low=-50, high=150),
    Column("hour", "number", "int64", low=0, high=24, missing=False),
    Column("night", "number", "bool"),
    Column("time", "time"),
    Column("carrier", "string", "string"),
    Column("month", "string", "int64", missing=False),
)
SCORER = Scorer("late", "3", COLUMNS, {}, {}, None, frozenset({"late"}))
F32 = Column(
    "x",
    "number",
    "float32",
    low=-float(np.finfo(np.float32).max),
    high=float(np.finfo(np.float32).max),
)

good = st.fixed_dictionaries(
    {
        "temp": st.none() | st.floats(-50, 150),
        "hour": st.integers(0, 24),
        "night": st.none() | st.booleans(),
        "time": st.none() | st.datetimes().map(lambda t: t.isoformat()),
        "carrier": st.none() | st.text(),
        "month": st.integers(1, 12) | st.sampled_from(["1", "12"]),
    }
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def alike(a, b):
    return np.array_equal(a.numbers, b.numbers, equal_nan=True) and all(
        np.array_equal(x, y, equal_nan=x.dtype != object)
        for x, y in zip(a.others, b.others, strict=True)
    )


@given(st.lists(good, min_size=1, max_size=5))
def test_records_lists_and_columns_are_the_same_rows(records):
    rows = from_records(SCORER, records)
    assert (
        rows.numbers.dtype == np.float32
        and rows.numbers.shape == (len(records), 3)
        and [x.shape for x in rows.others] == [(len(records), 1)] * 3
    )
    assert alike(
        rows, from_lists(SCORER, [[r[c.name] for c in COLUMNS] for r in records])
    ) and alike(rows, from_columns(SCORER, {c.name: [r[c.name] for r in records] for c in COLUMNS}))
    assert alike(
        rows, from_records(SCORER, [{"late": None, **r} for r in records])
    )  # what only the contract knows is not looked at
    at = next((i for i, r in enumerate(records) if r["temp"] is not None), None)
    if at is not None:
        assert rows.numbers[at, 0] == np.float32(records[at]["temp"])


@given(
    st.one_of(
        st.lists(anything, max_size=3),
        st.lists(
            st.dictionaries(st.sampled_from([c.name for c in COLUMNS] + ["tmep"]), anything),
            max_size=3,
        ),
        st.lists(st.lists(anything, min_size=6, max_size=6), max_size=3),
    )
)
@settings(max_examples=300)
def test_whatever_comes_is_rows_or_a_refusal(values):
    for take in (from_records, from_lists):
        try:
            rows = take(SCORER, values)
        except Refusal as e:
            assert e.status == 400 and json.dumps(e.to_dict()) and str(e).endswith((".", "?"))
            assert e.row is None or 0 <= e.row < len(values)
        else:
            assert (
                (rows.numbers >= [-50, 0, -np.inf]) & (rows.numbers <= [150, 24, np.inf])
                | np.isnan(rows.numbers)
            ).all() and not np.isnan(rows.numbers[:, 1]).any()


datatypes = st.sampled_from(["BOOL", "INT8", "UINT64", "FP16", "FP32", "FP64", "BYTES", "FP33"])
tensor = st.tuples(
    st.sampled_from([c.name for c in COLUMNS] + ["other"]),
    datatypes,
    st.lists(st.integers(-1, 3), max_size=3),
    st.binary(max_size=12) | st.lists(anything, max_size=3),
)


@given(st.lists(tensor, min_size=1, max_size=6))
@settings(max_examples=300)
def test_whatever_tensors_come_are_rows_or_a_refusal(tensors):
    for scorer in (SCORER, Scorer("plain", "1", (F32, Column("y", "number")), {}, {}, None)):
        try:
            from_tensors(scorer, tensors)
        except Refusal as e:
            assert e.status == 400 and str(e).endswith((".", "?"))


@given(st.lists(good, min_size=2, max_size=5), st.data())
def test_the_first_offender_is_named(records, data):
    bad = data.draw(st.integers(0, len(records) - 1))
    column, value = data.draw(
        st.sampled_from(
            [
                ("temp", 151),
                ("temp", "7"),
                ("temp", True),
                ("hour", None),
                ("hour", -1),
                ("night", "yes"),
                ("time", "now"),
                ("time", 7),
                ("carrier", 7),
                ("carrier", []),
                ("month", None),
                ("month", ""),
            ]
        )
    )
    records[bad] = records[bad] | {column: value}
    with pytest.raises(Refusal) as e:
        from_records(SCORER, records)
    assert (e.value.status, e.value.row, e.value.column) == (400, bad, column)


def refused(take, *args):
    with pytest.raises(Refusal) as e:
        take(*args)
    return e.value


def test_numbers_that_float32_cannot_hold_are_refused():
    scorer = Scorer("plain", "1", (F32,), {}, {}, None)
    for x in (1e39, -1e39, 1e308, math.inf, -math.inf, 2**63, -(2**63), 0, -0.0, 1e-300, 3.4e38):
        fits = abs(x) < 3.41e38
        for take in (
            lambda x: from_lists(scorer, [[x]]),
            lambda x: from_records(scorer, [{"x": x}]),
            lambda x: from_columns(scorer, {"x": np.array([x], float)}),
            lambda x: from_tensors(scorer, [("any", "FP64", [1, 1], np.float64(x).tobytes())]),
        ):
            if fits:
                assert take(x).numbers[0, 0] == np.float32(x)
            else:
                assert "is outside" in str(refused(take, x))


def test_a_limit_holds_as_float32_has_it():
    scorer = Scorer("plain", "1", (Column("x", "number", low=0.1, high=0.3),), {}, {}, None)
    for x in (0.1, 0.3, float(np.float32(0.1)), float(np.float32(0.3))):
        assert len(from_lists(scorer, [[x]])) == 1
    assert refused(from_lists, scorer, [[0.3001]]).column == "x"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1970-01-02", 86400),
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:00.5", 0.5),
        ("1969-12-31T23:59:59", -1),
    ],
)
def test_times_are_utc_unless_they_say(text, expected):
    assert seconds(text) == expected


def test_a_name_of_megabytes_is_neither_compared_nor_repeated():
    e = refused(from_records, SCORER, [{"x" * 5_000_000: 1}])
    assert len(str(e)) < 400 and len(e.column) == 80


def test_no_rows_and_too_many():
    assert refused(counted, 0).status == 400 and counted(MOST) == MOST
    e = refused(counted, MOST + 1)
    assert e.status == 413 and "sn.score" in str(e)


@given(st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
def test_categories_have_the_names_that_training_gave_them(v):
    assert name_of(v) == category_name(v)
