"Splits: nothing on both sides, tests in the future where there is a time, chance only by request"

import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st

from scalai_nb.data.contract import Contract
from scalai_nb.errors import ContractViolation, ParameterError
from scalai_nb.learn.training.splits import Split, split


def data(n=1000, seed=0):
    r = np.random.default_rng(seed)
    return xr.Dataset(
        {
            "id": ("row", np.arange(n)),
            "at": ("row", np.datetime64("2020-01-01", "s") + r.integers(0, 50, n) * 86400),
            "patient": ("row", np.array([f"p{i}" for i in r.zipf(1.5, n) % 40], object)),
            "x": ("row", r.normal(size=n)),
            "ward": ("row", r.integers(0, 6, n).astype("i1"), {"categories": list("ABCDEF")}),
            "ill": ("row", r.random(n) < 0.1),
        }
    )


def sides(s):
    return [(set(a.tolist()), set(b.tolist())) for a, b in s]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(60, 300),
    st.sampled_from([None, "at", "patient", "ward", "random"]),
    st.integers(2, 5),
    st.booleans(),
)
def test_every_row_is_tested_once_at_most_and_never_learnt_from(seed, n, by, folds, lazy):
    ds = data(n, seed)
    contract = Contract.infer(ds, label="ill", time="at", key="id")
    with warnings.catch_warnings(action="ignore"):
        s = split(ds.chunk(row=50) if lazy else ds, contract, by=by, folds=folds)
    tested = np.concatenate([t for _, t in s])
    assert len(tested) == len(set(tested.tolist())) == s.tested.sum() and len(s) == folds
    for learnt, test in sides(s):
        assert not learnt & test and learnt and test
    if s.kind != "time":
        assert len(tested) == n


# ---- time


def test_time_goes_forward_and_is_the_default():
    ds = data()
    s = split(ds, Contract.infer(ds, time="at"))
    assert s.kind == "time" and "Forward in time by 'at': each of 5 windows" in str(s)
    for learnt, tested in s:
        assert ds.at.values[learnt].max() < ds.at.values[tested].min()
    sizes = [len(t) for _, t in s]
    assert max(sizes) < 1.5 * min(sizes) and len(next(iter(s))[0]) > 200, (
        "windows of about equally many rows, two to begin with"
    )


def test_one_moment_is_never_on_both_sides():
    ds = data().assign(at=("row", np.repeat(np.arange(10), 100).astype("M8[D]")))
    s = split(ds, Contract.infer(ds, time="at"), folds=4)
    assert not any(set(ds.at.values[a]) & set(ds.at.values[b]) for a, b in s)
    with pytest.raises(ParameterError, match="10 distinct times, too few for 9 tests"):
        split(ds, Contract.infer(ds, time="at"), folds=9)


def test_time_skewed_into_one_moment_still_splits():
    ds = data().assign(at=("row", np.r_[np.zeros(900), np.arange(1, 101)].astype("M8[D]")))
    s = split(ds, Contract.infer(ds, time="at"))
    assert all(len(a) and len(b) for a, b in s) and len(s) == 5


def test_a_time_that_is_missing_is_refused():
    ds = data()
    ds["at"] = ds["at"].where(ds.x < 2)
    with pytest.raises(ContractViolation, match="rows have no 'at'"):
        split(ds, Contract.infer(ds, time="at"))


# ---- groups


@pytest.mark.parametrize("by", ["patient", "ward"])
def test_groups_stay_whole_and_balanced(by):
    ds = data()
    s = split(ds, by=by)
    for a, b in s:
        assert not set(ds[by].values[a]) & set(ds[by].values[b])
    assert s.kind == "group" and f"values of {by!r} are dealt to 5 folds" in str(s)
    assert split(ds.isel(row=np.random.default_rng(1).permutation(1000)), by=by).kind == "group"


def test_groups_do_not_depend_on_the_order_of_rows():
    ds, order = data(), np.random.default_rng(1).permutation(1000)
    assert (
        split(ds, by="patient").fold[order] == split(ds.isel(row=order), by="patient").fold
    ).all()


def test_a_column_of_folds_is_taken_as_it_is():
    ds = data().assign(fold=("row", np.arange(1000) % 3 * 7))
    s = split(ds, by="fold")
    assert s.names == (0, 7, 14) and (ds.fold.values == np.array(s.names)[s.fold]).all()


def test_persons_that_a_key_names_stay_whole():
    ds = data()
    s = split(ds, Contract.infer(ds, key=("patient", "id"), pii="patient"))
    assert s.kind == "group" and not any(
        set(ds.patient.values[a]) & set(ds.patient.values[b]) for a, b in s
    )


@pytest.mark.parametrize(
    "by, folds, says",
    [
        ("ward", 7, "6 groups, too few for 7"),
        ("nobody", 5, "'nobody' is not in the columns"),
        ("one", 5, "one value only"),
    ],
)
def test_groups_that_will_not_do(by, folds, says):
    with pytest.raises(ParameterError, match=says):
        split(data().assign(one=("row", np.ones(1000))), by=by, folds=folds)


# ---- chance


def test_random_is_stratified_and_says_so():
    ds = data()
    s = split(ds, label="ill")
    assert s.kind == "random" and "at random" in str(s)
    rates = [ds.ill.values[b].sum() for _, b in s]
    assert max(rates) - min(rates) <= 1
    assert (
        not (split(ds, label="ill", seed=1).fold == s.fold).all()
        and (split(ds, label="ill").fold == s.fold).all()
    )


def test_random_over_a_time_is_never_silent():
    ds = data()
    with pytest.warns(UserWarning, match="The contract has a time, 'at'"):
        s = split(ds, Contract.infer(ds, time="at"), by="random")
    assert "will look better than it is" in s.says


# ---- nothing on both sides


def test_a_copied_row_is_refused_by_key_and_by_content():
    ds = data()
    twice = xr.concat([ds, ds.isel(row=slice(0, 40))], "row")
    with pytest.raises(
        ContractViolation, match=r"rows would be learnt from and tested.*all columns"
    ):
        split(twice)
    contract = Contract.infer(ds, key="id")
    other = twice.assign(x=("row", np.random.default_rng(5).normal(size=1040)))
    with pytest.raises(
        ContractViolation, match=r"\d+ rows would.*the key \('id',\), for instance id \d+"
    ):
        split(other, contract)
    split(other)  # without a key these are other rows


def test_what_few_values_repeat_is_no_copy():
    r = np.random.default_rng(0)
    assert (
        len(
            split(
                xr.Dataset(
                    {"a": ("row", r.integers(0, 2, 500)), "b": ("row", r.integers(0, 2, 500))}
                )
            )
        )
        == 5
    )


def test_copies_within_a_group_are_no_leak():
    ds = data()
    assert len(split(xr.concat([ds, ds.isel(row=slice(0, 40))], "row"), by="patient")) == 5


# ---- bad input


@pytest.mark.parametrize("folds", [1, 0, "5", 2.0])
def test_folds_are_a_number_from_two(folds):
    with pytest.raises(ParameterError, match="accepted: a whole number from 2"):
        split(data(), folds=folds)


def test_no_rows_and_few():
    with pytest.raises(ContractViolation, match="has no rows"):
        split(data().isel(row=[]))
    with pytest.raises(ParameterError, match="3 rows cannot be dealt to 5 folds"):
        split(data().isel(row=slice(0, 3)))
    with pytest.raises(ParameterError, match="by='time' needs a contract"):
        split(data(), by="time")


def test_early_stopping_watches_what_lies_before_the_test():
    s = Split("time", "", np.arange(5), tuple("abcde"), forward=True)
    assert [s.watched(k) for k in s.tests] == [1, 2, 3] and s.watched(5) == 4
    s = Split("group", "", np.arange(3), tuple("abc"))
    assert [s.watched(k) for k in s.tests] == [2, 0, 1] and all(
        s.watched(k) in s.learns(k) for k in s.tests
    )
