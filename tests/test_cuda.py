"""The CUDA kernels, proven where there is no card

They compile for every card, and run in a shim of one under checkers, against their twins.
"""

import inspect
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from importlib import import_module

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from scalai_nb import kernels
from scalai_nb.errors import MissingExtra, ParameterError
from scalai_nb.kernels import cuda
from simt import host as simt, nvrtc, parity
from simt.bugs import BUGS

needs_compiler = pytest.mark.skipif(not simt.compiler(), reason="no C++ compiler")
CASES = {case.name: case for case in parity.CASES}


def twin(name):
    return import_module(f"scalai_nb.kernels.{name}")


def launcher(name):
    return import_module(f"scalai_nb.kernels.cuda.{name}")


@pytest.fixture(scope="module", autouse=True)
def _programs():
    yield
    simt.close()


ANSWERS = {}


def answer(case) -> list:
    "What the twin says to a case"
    if case.name not in ANSWERS:
        ANSWERS[case.name] = parity.flat(case.call(twin(case.kernels), np.array))
    return ANSWERS[case.name]


# ---- proof 1: every instance compiles for every card, without spills


@pytest.fixture(scope="module")
def compiled():
    "What the instances of each source use on each card, or the error; compiled side by side"
    with ThreadPoolExecutor() as pool:
        jobs = {
            (name, card): pool.submit(
                nvrtc.known,
                cuda.source(name),
                cuda.instances(name),
                card,
                cuda.OPTIONS,
                simt.cache(),
            )
            for name in cuda.MODULES
            for card in nvrtc.CARDS
        }
    return jobs


@pytest.mark.parametrize("card", nvrtc.CARDS)
@pytest.mark.parametrize("name", cuda.MODULES)
def test_every_instance_compiles_and_spills_nothing(name, card, compiled):
    found = compiled[name, card].result()
    assert len(found) == len(cuda.instances(name))
    assert not [u for u in found if u.stack or u.local], "these spill"
    assert max(u.shared for u in found) <= 4096, (
        "the launchers count on 4,096 bytes at most beside what they ask for"
    )


def test_a_kernel_that_spills_is_seen():
    many = (
        "".join(f"double v{i} = x[{i}];" for i in range(200))
        + "for (int k = 0; k < n; k++) {"
        + "".join(f"v{i} = v{i} * v{(i * 7 + 3) % 200} + k;" for i in range(200))
        + "}"
    )
    text = (
        f'extern "C" __global__ void hungry(double* x, int n) {{ {many} '
        f"{''.join(f'x[{i}] = v{i};' for i in range(200))} }}"
    )
    (use,) = nvrtc.usage(nvrtc.compile(text, (), "sm_90"))
    assert use.stack > 0


def test_a_complaint_of_the_compiler_is_an_error():
    with pytest.raises(RuntimeError, match="undefined"):
        nvrtc.compile("__global__ void f() { nothing(); }", ("f",), "sm_80")


# ---- proof 2: the same text runs in the shim


@pytest.fixture(scope="module")
def built(planted):
    "All programs, compiled side by side"
    sources = [*({"": (cuda.source(name), cuda.instances(name))} for name in cuda.MODULES), planted]
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(simt.build, source, checker)
            for source in sources
            for checker in simt.CHECKERS
        ]
    for job in jobs:
        job.result()


@needs_compiler
@pytest.mark.parametrize("name", cuda.MODULES)
@pytest.mark.parametrize(
    ("checker", "order"), [*(("memory", order) for order in simt.ORDERS), ("races", "shuffled")]
)
def test_launchers_answer_as_their_twins(checker, order, name, built):
    wrong, processors = [], {"forward": 1, "backward": 2, "shuffled": 3}[order]
    mine = [case for case in parity.CASES if case.kernels == name]
    with simt.device(checker, order, processors):
        for case in mine:
            found = parity.flat(case.call(launcher(name), simt.put), np.asarray)
            if said := parity.differences(answer(case), found, case.rtol):
                wrong.append(f"{case.name}: {said}")
    assert mine and not wrong


@pytest.mark.parametrize("name", cuda.MODULES)
def test_twins_answer_as_plain_numpy(name):
    wrong = []

    def wide(arrays):
        return [a.astype(float) if a.dtype.kind == "f" else a for a in arrays]

    for case in parity.CASES:
        if case.kernels != name or not case.reference:
            continue
        said = parity.differences(
            wide(parity.flat(case.reference())), wide(answer(case)), case.of_reference
        )
        if said:
            wrong.append(f"{case.name}: {said}")
    assert not wrong


@needs_compiler
def test_the_sums_of_a_block_do_not_depend_on_the_order_of_threads():
    x = parity.column("float64", 9000, 1)
    X, w = parity.rows(700, 50, "float32")
    seen = set()
    for order in simt.ORDERS:
        with simt.device("memory", order):
            loss, gradient, _ = launcher("linear").slopes(
                simt.put(X), simt.put(w), None, np.full((1, 51), 0.1), "logistic"
            )
            seen.add((launcher("columns").scan(simt.put(x)), loss, gradient.tobytes()))
    assert len(seen) == 1


# ---- any values


def vectors(*dtypes, most=300):
    "Vectors of any values of these types"
    return st.sampled_from(dtypes).flatmap(lambda dtype: arrays(dtype, st.integers(0, most)))


def alike(name, call, *given, rtol=0.0) -> str:
    "How launcher and twin differ on `call(kernels, *arrays)`"
    wanted = parity.flat(call(twin(name), *given))
    with simt.device("memory", "shuffled"):
        found = parity.flat(call(launcher(name), *[simt.put(x) for x in given]), np.asarray)
    return parity.differences(wanted, found, rtol)


many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@needs_compiler
@many
@given(vectors(*parity.COLUMNS, "uint32"))
def test_any_column_is_counted_alike(x):
    for call in (
        lambda k, x: k.scan(x)[:8],
        lambda k, x: k.spread(x, 45, 1000 << 7, 2000),
        lambda k, x: k.count(x, 64),
        lambda k, x: k.unique(x),
        lambda k, x: k.pick(x, np.arange(1 << 15) % 3 == 0),
    ):
        assert not alike("columns", call, x)


@needs_compiler
@many
@given(vectors("float32", "float64"))
def test_any_column_has_the_mean_of_the_twin(x):
    assert not alike(
        "columns", lambda k, x: (k.scan(x).least, k.scan(x).greatest, k.scan(x).mean), x, rtol=1e-9
    )


@needs_compiler
@many
@given(vectors(*parity.COLUMNS[2:], "uint8"), st.integers(-200, 200), st.integers(1, 300))
def test_any_codes_are_tallied_alike(x, first, size):
    assert not alike("columns", lambda k, x: k.tally(x, first, size), x)


@needs_compiler
@many
@given(
    st.sampled_from(parity.FLOATS).flatmap(
        lambda t: arrays(
            t, st.integers(0, 200), elements=st.floats(0, 1, width=32 if t == "float32" else 64)
        )
    ),
    st.randoms(use_true_random=False),
)
def test_any_scores_are_tallied_alike(score, draw):
    label = np.array([draw.random() < 0.5 for _ in score], np.int8)
    for bits in (6, 10):
        assert not alike(
            "scores",
            lambda k, y, s, bits=bits: k.tally(y, s, None, 2**-24, bits),
            label,
            score,
            rtol=1e-11,
        )
    assert not alike(
        "scores", lambda k, y, s: k.distinct(None, y, s, None, 50, np.zeros(1, bool)), label, score
    )


@needs_compiler
@many
@given(vectors("float32", "float64", "int64", "bool"), st.integers(1, 60))
def test_any_values_fold_alike(x, groups):
    x = np.where(np.abs(x.astype(float)) < 1e100, x, x.dtype.type(0)) if x.dtype.kind == "f" else x
    codes = (np.arange(len(x)) * 7 % groups).astype(np.int32)
    assert not alike("groups", lambda k, c, x: k.fold(c, x, groups), codes, x, rtol=1e-9)


# ---- planted bugs


def patched(bug):
    text = cuda.source(bug.kernels)
    assert bug.old in text, f"the source has changed; plant anew: {bug.what}"
    return text.replace(bug.old, bug.new)


@pytest.fixture(scope="module")
def planted():
    "The sources with a bug each, as one program a checker"
    return {f"bug{i}": (patched(bug), bug.instances) for i, bug in enumerate(BUGS)}


def noticed(bug, space, sources) -> set[str]:
    "By what a bug is noticed, over both checkers and all orders of threads"
    seen = set()
    for checker in simt.CHECKERS:
        for order in simt.ORDERS:
            try:
                with simt.device(checker, order, sources=sources, space=space):
                    found = parity.flat(
                        CASES[bug.case].call(launcher(bug.kernels), simt.put), np.asarray
                    )
                if parity.differences(answer(CASES[bug.case]), found, CASES[bug.case].rtol):
                    seen.add("result")
            except simt.SimtError as e:
                seen.add(e.by)
            except Exception:
                seen.add("result")  # what came back is too wrong for the launcher
            if bug.caught in seen:
                return seen
    return seen


@needs_compiler
@pytest.mark.parametrize("number", range(len(BUGS)), ids=[bug.what for bug in BUGS])
def test_a_planted_bug_is_caught_by_what_is_said_to_catch_it(number, planted):
    bug = BUGS[number]
    seen = noticed(bug, f"bug{number}", planted)
    assert bug.caught in seen if bug.caught else not seen, f"noticed by {seen or 'nothing'}"


# ---- launchers and twins are one interface

HOST = {
    "columns": {
        *("gathered", "join", "joined", "occupied", "settled"),
        *("shortened", "side_by_side", "summed_runs"),  # of what windows remember
    },
    # the further pass over crowded scores is made on the host
    "scores": {"bins", "occupied", "joined", "keys", "cells", "recount", "merge_recounts"},
    "linear": {"descend"},
    "clusters": {"middle"},
}  # of small arrays of the host


def functions(module) -> dict:
    "The public functions that a module defines, kernels of Numba too"
    return {
        n: getattr(f, "py_func", f)
        for n, f in vars(module).items()
        if not n.startswith("_")
        and callable(f)
        and not inspect.isclass(f)
        and f.__module__ == module.__name__
    }


@pytest.mark.parametrize("name", cuda.MODULES)
def test_a_launcher_has_the_functions_of_its_twin(name):
    wanted = {
        n: inspect.signature(f)
        for n, f in functions(twin(name)).items()
        if n not in HOST.get(name, ())
    }
    have = functions(launcher(name))
    assert sorted(have) == sorted(wanted)
    for n, signature in wanted.items():
        assert [(p.name, p.default) for p in signature.parameters.values()] == [
            (p.name, p.default) for p in inspect.signature(have[n]).parameters.values()
        ] or str(signature) == "", n


# ---- what learns from blocks leaves them on the device


def described(x):
    from scalai_nb.describe.sketches import describe

    return describe(x)


def evaluated(label, score, weight):
    from scalai_nb.evaluation.histogram import Rows, scores

    return scores(Rows(label, score, weight, 2**-24))


def assigned(X, weight):
    from scalai_nb.learn.linear.kmeans import assign

    pass_ = assign(np.linspace(-1, 1, 15).reshape(3, 5))
    return pass_.update(pass_.init(), (X, None, weight))


def learnt(X, y, weight):
    from scalai_nb.learn.linear.solver import slopes

    pass_ = slopes(np.full((1, 6), 0.1), "logistic", curved=True)
    return pass_.update(pass_.init(), (X, y, weight))


r = parity.random(12)
BLOCKS = {  # name -> function of arrays of a block, those arrays
    "a column is described": (described, (r.normal(size=20_000),)),
    "codes are described": (described, (r.integers(0, 9, 5000).astype(np.int16),)),
    "many whole numbers are described": (described, (r.integers(0, 10**9, 20_000),)),
    "scores are evaluated": (
        evaluated,
        (r.integers(0, 2, 3000).astype(np.int8), r.random(3000), r.random(3000)),
    ),
    "slopes are summed": (
        learnt,
        (
            r.normal(size=(400, 5)).astype(np.float32),
            r.integers(0, 2, 400).astype(float),
            r.random(400),
        ),
    ),
    "rows are assigned to centres": (
        assigned,
        (r.normal(size=(400, 5)).astype(np.float32), r.random(400)),
    ),
}


def parts(state) -> list:
    "The arrays and numbers of a state"
    if is_dataclass(state):
        return [p for f in fields(state) for p in parts(getattr(state, f.name))]
    if isinstance(state, dict):
        return [p for k, v in sorted(state.items()) for p in parts(v)]
    return [p for v in state for p in parts(v)] if isinstance(state, (tuple, list)) else [state]


@needs_compiler
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_stays_on_the_device(name, monkeypatch):
    "A stray copy to the host, or host and device arrays in one operation, is an error, as in CuPy"
    monkeypatch.setitem(kernels.TWINS, "simt", "scalai_nb.kernels.cuda")
    work, given = BLOCKS[name]
    with simt.device():
        found = work(*map(simt.put, given))
    wanted = work(*given)
    assert not any(isinstance(p, simt.OnDevice) for p in parts(found)), (
        "a state holds an array of the device"
    )
    assert not parity.differences(parity.flat(parts(wanted)), parity.flat(parts(found)), 1e-6)


# ---- loader and dispatch


@pytest.mark.parametrize("name", cuda.MODULES)
def test_headers_are_inlined(name):
    text = cuda.source(name)
    assert "#include" not in text and "block_sum" in text and "__global__" in text


class Recorder:
    "A CuPy of which only RawModule is there"

    def __init__(self):
        self.made, self.launched, self.device = [], [], 0

    @property
    def cuda(self):
        class Device:
            attributes = {"MultiProcessorCount": 4, "MaxSharedMemoryPerBlockOptin": 100_000}

            def __init__(device, id=self.device):
                device.id = id

        return type("cuda", (), {"Device": Device})

    def RawModule(self, **words):
        self.made.append(words["name_expressions"])

        def function(grid, block, args, shared_mem):
            self.launched.append((grid, block, args, shared_mem))

        function.shared_size_bytes = 1000
        return type("module", (), {"get_function": lambda _, name: function})()


@pytest.fixture
def recorder(monkeypatch):
    cupy = Recorder()
    monkeypatch.setattr(cuda, "DEVICE", type("Fake", (cuda.Cupy,), {"library": cupy})())
    caches = cuda._kernel, cuda._processors, cuda._shared_limit
    for cache in caches:
        cache.cache_clear()
    yield cupy
    for cache in caches:
        cache.cache_clear()


def test_an_instance_is_compiled_when_it_is_launched_and_once_a_device(recorder):
    for device in (0, 0, 1):
        recorder.device = device
        cuda.launch("columns", "ranks", 10, (np.int64(1),))
    assert recorder.made == [["ranks"], ["ranks"]] and len(recorder.launched) == 3


def test_a_grid_covers_the_work_but_is_no_larger_than_the_card(recorder):
    for work in (0, 1, 257, 10**9):
        cuda.launch("columns", "ranks", work, ())
    assert [grid for grid, *_ in recorder.launched] == [(1,), (1,), (2,), (8 * 4,)]


def test_what_the_tests_do_not_compile_cannot_be_launched(recorder):
    with pytest.raises(ParameterError, match="columns.cu has no scan<half>"):
        cuda.launch("columns", "scan<half>", 1, ())
    assert not recorder.made


def test_an_array_of_cupy_goes_to_the_launchers_and_one_of_another_library_is_refused():
    import array_api_strict as strict

    there = type("ndarray", (), {"__module__": "cupy"})()
    assert kernels.of("scores", there) is launcher("scores") and kernels.of(
        "scores", np.ones(1)
    ) is twin("scores")
    with pytest.raises(ParameterError, match="array_api_strict"):
        kernels.of("scores", strict.ones(3, device=strict.Device("device1")))


@pytest.mark.skipif("cupy" in sys.modules, reason="no CUDA device")
def test_without_cupy_a_launcher_names_the_extra():
    try:
        import cupy  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match="scalai-nb\\[gpu\\]"):
            launcher("columns").scan(np.ones(3))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.ones(3), "accepted: an array on the device"),
        (simt.put(np.ones(3, complex)), "x is of type complex128; accepted: float32, float64"),
        (simt.put(np.ones((2, 2))), "x has 2 dimensions; accepted: 1"),
        (simt.put(np.ones(8))[::2], "x is not contiguous"),
    ],
)
def test_what_a_kernel_cannot_read_is_refused(x, said):
    with simt.device(), pytest.raises(ParameterError, match=said):
        launcher("columns").scan(x)


def test_the_pretended_device_refuses_what_cupy_refuses():
    "So that a copy to the host in a launcher fails the parity tests"
    x = simt.put(np.ones(3))
    for stray in (
        lambda: x + np.ones(3),
        lambda: np.sum(x),
        lambda: float(x[:1]),
        lambda: bool(x[:1] > 0),
        lambda: simt.Library().concatenate([x, np.ones(2)]),
    ):
        with pytest.raises(TypeError):
            stray()
    assert isinstance(x + 1, simt.OnDevice) and isinstance(simt.Library().zeros(3), simt.OnDevice)
