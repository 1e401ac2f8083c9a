"""The launchers against their twins on a real card: pytest -m gpu

Without CuPy or a card every test here is skipped, never passed.
"""

from importlib import import_module

import numpy as np
import pytest

from scalai_nb import kernels
from scalai_nb.kernels import cuda
from simt import parity


def found() -> bool:
    "Whether there is a card that CuPy can use"
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount() > 0
    except Exception:
        return False  # no CuPy, no driver, or one that is too old


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not found(), reason="no CUDA device")]


def host(x):
    return x.get() if hasattr(x, "get") else x


@pytest.mark.parametrize("name", cuda.MODULES)
def test_launchers_answer_as_their_twins(name):
    import cupy

    wrong = []
    for case in parity.CASES:
        if case.kernels != name:
            continue
        wanted = parity.flat(case.call(import_module(f"scalai_nb.kernels.{name}"), np.array))
        answer = parity.flat(
            case.call(import_module(f"scalai_nb.kernels.cuda.{name}"), cupy.asarray), host
        )
        if said := parity.differences(wanted, answer, case.rtol):
            wrong.append(f"{case.name}: {said}")
    assert not wrong


@pytest.mark.parametrize("name", cuda.MODULES)
def test_every_instance_can_be_launched(name):
    "The card's own compiler and loader take each of them"
    for instance in cuda.instances(name):
        assert cuda.DEVICE.kernel(name, instance).max_threads_per_block >= cuda.THREADS


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_many_values_are_described_as_the_twin_does(dtype):
    "More than the card has threads: every thread comes back for more, and atomics meet"
    import cupy

    x = np.random.default_rng(0).normal(0, 100, 5_000_001).astype(dtype)
    there = kernels.of("columns", cupy.asarray(x))
    here = kernels.of("columns", x)
    for call in (
        lambda k, x: k.scan(x),
        lambda k, x: k.spread(x, 45, 1020 << 7, 1500),
        lambda k, x: k.count(x, 4096),
    ):
        assert not parity.differences(
            parity.flat(call(here, x)), parity.flat(call(there, cupy.asarray(x))), 1e-9
        )


def test_a_call_that_promises_one_order_repeats_itself():
    import cupy

    X = cupy.random.default_rng(0).standard_normal((1_000_000, 50), dtype="float32")
    y = (X[:, 0] > 0).astype("float64")
    linear = kernels.of("linear", X)
    first, *others = [
        linear.slopes(X, y, None, np.full((1, 51), 0.1), "logistic") for _ in range(5)
    ]
    for other in others:
        assert first[0] == other[0] and np.array_equal(first[1], other[1])


def test_an_array_on_the_device_does_not_become_one_of_the_host_by_itself():
    import cupy

    with pytest.raises(TypeError):
        np.asarray(cupy.ones(3))


def test_a_kernel_reads_a_part_of_an_array_but_refuses_strides():
    import cupy

    x = cupy.arange(10_001, dtype="float32")
    assert kernels.of("columns", x).scan(x[1:]).n == 10_000
    with pytest.raises(Exception, match="not contiguous"):
        kernels.of("columns", x).scan(x[::2])
