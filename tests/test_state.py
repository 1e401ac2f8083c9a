"""A state comes back from a file as it was; what is no state is refused."""

import json
import zipfile
from collections import namedtuple
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

import scalai_nb as sn
from scalai_nb.compute.laws import alike
from scalai_nb.compute.reduce import ALGORITHMS, reduce
from scalai_nb.compute.state import (
    FORMER,
    KNOWN,
    fingerprint,
    load,
    register_state,
    save,
    through_file,
)
from scalai_nb.errors import ParameterError, WorkFailed
from scalai_nb.describe.summary import SUMMARY


@dataclass(frozen=True)
class Point:
    x: float = 0.0
    inner: object = None
    names: tuple = field(default=())


Pair = namedtuple("Pair", "a b")


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for cls in (Point, Pair):
        monkeypatch.setitem(KNOWN, f"{cls.__module__}:{cls.__qualname__}", cls)


def same(a, b) -> bool:
    "Equal in type, dtype and content; NaN equals NaN"
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if a.dtype == object:
            return all(same(x, y) for x, y in zip(a.ravel(), b.ravel(), strict=True))
        return a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(x, y)
            for pair in zip(a.items(), b.items(), strict=True)
            for x, y in [*zip(*pair, strict=True)]
        )
    if isinstance(a, Point):
        return same(vars(a), vars(b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(),
    st.floats().map(np.float64),
    st.integers(0, 9).map(np.int16),
    st.just(np.datetime64("2013-01-01", "ns")),
    st.frozensets(st.text(max_size=3), max_size=3),
    hnp.arrays(
        st.sampled_from(["f8", "f4", "i8", "u1", "?", "M8[us]", "U3", "c16"]),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
    ),
    st.lists(st.sampled_from(["a", None, "", float("nan"), 1, True]), max_size=4).map(
        lambda v: np.array([*v, None], dtype=object)[:-1]
    ),
)
KEYS = st.one_of(st.none(), st.text(), st.integers(), st.tuples(st.text(), st.integers()))
STATES = st.recursive(
    LEAVES,
    lambda s: st.one_of(
        st.lists(s, max_size=3),
        st.lists(s, max_size=3).map(tuple),
        st.dictionaries(KEYS, s, max_size=3),
        st.builds(Point, st.floats(), s, st.tuples(st.text())),
        st.builds(Pair, s, s),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(STATES)
def test_any_state_comes_back(state):
    assert same(through_file(state), state)


@settings(deadline=None, max_examples=20)
@given(state=STATES)
def test_any_state_comes_back_from_a_file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("states") / "s"
    save(path, state)
    assert (
        same(load(path), state)
        and fingerprint(load(path)) == fingerprint(state)
        and [p.name for p in path.parent.iterdir()] == ["s"]
    )


def test_arrays_can_be_written_to_afterwards(tmp_path):
    save(tmp_path / "s", np.arange(3))
    load(tmp_path / "s")[0] = 9


def test_a_summary_goes_on_tomorrow(tmp_path):
    from test_reduce import table

    one, two = table(1, 500), table(2, 500)
    save(tmp_path / "s", SUMMARY.update(SUMMARY.init(), one))
    assert alike(
        SUMMARY.finalize(SUMMARY.update(load(tmp_path / "s"), two)),
        reduce(SUMMARY, [one, two]),
        rtol=1e-9,
        atol=1e-9,
    )


# ---- what an earlier version wrote ----

BEFORE = Path(__file__).parent / "former"  # written by version 0.1, before its modules moved
EXPECTED = json.loads((BEFORE / "expected.json").read_text())  # what that version said of them
exactly = pytest.approx  # JSON has every digit


def test_a_former_summary_says_the_same_and_goes_on():
    found, expected = load(BEFORE / "summary.state"), EXPECTED["summary"]
    temp = found["result"]["temp"]
    assert (temp.mean, temp.quantile(0.5), temp.missing, found["result"]["tail"].distinct) == (
        expected["mean"],
        expected["median"],
        expected["missing"],
        expected["tails"],
    )
    assert alike(SUMMARY.finalize(found["state"]), found["result"])
    twice = SUMMARY.merge(found["state"], found["state"])
    assert SUMMARY.finalize(twice)["temp"].mean == exactly(expected["mean"], rel=1e-12)


def test_a_former_evaluation_says_the_same_and_goes_on():
    found, expected = load(BEFORE / "evaluation.state"), EXPECTED["evaluation"]
    again = ALGORITHMS["evaluation"].finalize(found["state"])
    for result in (found["result"], again):
        for name, value in expected.items():
            assert getattr(result, name) == exactly(value, rel=1e-12), name


def test_other_former_results_say_the_same():
    found, expected = load(BEFORE / "others.state"), EXPECTED["others"]
    assert found["classes"].log_loss == exactly(expected["log_loss"], rel=1e-12)
    assert found["regression"].mae == exactly(expected["mae"], rel=1e-12)
    assert found["drift"]["temp"].psi == exactly(expected["psi"], rel=1e-12)
    assert type(found["calibration"]).__name__ == "Calibration"
    groups = sn.GroupBy("origin", {"temp": ("count", "mean", "max")})
    table = groups.finalize(load(BEFORE / "groups.state"))
    assert table.temp_mean.values.tolist() == EXPECTED["groups"]["mean"]
    assert table.origin.values.tolist() == EXPECTED["groups"]["origin"]


def test_a_former_model_scores_the_same():
    model, expected = sn.Model.load(BEFORE / "model"), EXPECTED["model"]
    frame = pd.DataFrame(expected["rows"])
    rows = sn.from_frame(frame.assign(origin=frame.origin.astype("category")))
    assert np.ravel(model.predict(rows)).tolist() == exactly(expected["scores"], abs=1e-6)
    assert model.summary["temp"].mean == expected["mean"]
    assert model.contract["temp"].units == "degC"


def test_former_names_are_free():
    "A module of today by a former name would be read in its place"
    for name, now in FORMER.items():
        room = f"scalai_nb.{name.partition('.')[0]}"
        assert find_spec(f"scalai_nb.{now}") and not (
            find_spec(room) and find_spec(f"scalai_nb.{name}")
        )


# ---- what is refused ----


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"f": print}, "holds a builtin_function_or_method; accepted"),
        ([object()], "holds a object"),
        (b"bytes", "holds a bytes"),
        (np.array([object()], dtype=object), "holds a object"),
    ],
)
def test_what_a_state_cannot_hold(state, words, tmp_path):
    with pytest.raises(ParameterError, match=words):
        save(tmp_path / "s", state)
    assert not list(tmp_path.iterdir())


def test_classes_of_others_are_registered_first(tmp_path, monkeypatch):
    save(tmp_path / "s", Point(1.0))
    name = f"{Point.__module__}:Point"
    monkeypatch.delitem(KNOWN, name)
    for call in (lambda: save(tmp_path / "t", Point(1.0)), lambda: load(tmp_path / "s")):
        with pytest.raises(
            ParameterError, match="holds a .*test_state:Point; give the class to register_state"
        ):
            call()
    assert register_state(Point) is Point and load(tmp_path / "s") == Point(1.0)


def forged(path, text, arrays=()):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("state.json", text)
        for i, content in enumerate(arrays):
            z.writestr(f"{i}.npy", content)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": "other", "state": 1}',
        '{"format": "scalai-nb state 1"}',
        '{"format": "scalai-nb state 1", "state": {"~": "array", "is": 5}}',
        '{"format": "scalai-nb state 1", "state": {"~": "os:system", "is": {"command": "true"}}}',
        '{"format": "scalai-nb state 1", "state": {"~": "scalai_nb.cli:main", "is": {}}}',
        '{"format": "scalai-nb state 1", "state": {"~": "scalai_nb.nowhere:X", "is": {}}}',
        (
            '{"format": "scalai-nb state 1", "state": {"~": '
            '"scalai_nb.describe.sketches:Moments", "is": {"q": 1}}}'
        ),
        '{"format": "scalai-nb state 1", "state": {"x": 1}}',
    ],
)
def test_a_forged_file_is_refused(text, tmp_path):
    forged(tmp_path / "s", text)
    with pytest.raises(ParameterError):
        load(tmp_path / "s")


def test_pickles_are_not_read(tmp_path):
    import pickle

    forged(
        tmp_path / "s",
        '{"format": "scalai-nb state 1", "state": {"~": "array", "is": 0}}',
        [
            b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(
                127
            )
            + b"\n"
            + pickle.dumps([1])
        ],
    )
    with pytest.raises(ParameterError, match="Object arrays cannot be loaded"):
        load(tmp_path / "s")


def test_a_file_cut_short_or_changed(tmp_path):
    save(tmp_path / "s", {"x": np.arange(1000)})
    content = (tmp_path / "s").read_bytes()
    for damaged in (content[:-100], content[:200], b"", content[:500] + b"\xff" + content[501:]):
        (tmp_path / "s").write_bytes(damaged)
        with pytest.raises(ParameterError, match="is no state, or is damaged"):
            load(tmp_path / "s")


def test_paths_that_cannot_be_used(tmp_path):
    with pytest.raises(ParameterError, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(ParameterError, match="is no state"):
        load(tmp_path)
    with pytest.raises(WorkFailed, match="cannot be written to .*: No such file"):
        save(tmp_path / "no" / "s", 1)


def test_a_file_is_whole_or_as_before(tmp_path, monkeypatch):
    save(tmp_path / "s", 1)
    monkeypatch.setattr(
        zipfile.ZipFile,
        "writestr",
        lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(WorkFailed, match="No space left"):
        save(tmp_path / "s", 2)
    monkeypatch.undo()
    assert load(tmp_path / "s") == 1 and [p.name for p in tmp_path.iterdir()] == ["s"]
