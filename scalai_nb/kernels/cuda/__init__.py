"""Launchers of the CUDA kernels: the functions of the twins for CuPy arrays.

In: CuPy arrays as they are; another library, type or layout is a ParameterError.
Out: small arrays of the host through `host`, or arrays beside the block. One instance of a
template is compiled when it is first launched, and kept for the process and, by CuPy, on disk.
Imports: the ground, the twins.
"""

import re
from collections.abc import Collection, Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...errors import ParameterError, extra

Array: TypeAlias = Any  # a CuPy array; the type checker need not have CuPy

SOURCES = Path(__file__).parent.parent
MODULES = (
    "columns",
    "scores",
    "features",
    "linear",
    "clusters",
    "groups",
)  # each `<name>.cu` beside its launcher
OPTIONS = (
    "-std=c++17",
    "-diag-suppress=177",
)  # 177: a constant of common.cuh is not used. What CuPy and the tests compile with


def source(name: str) -> str:
    """The text of `<name>.cu` with its local headers in their places (CuPy's cache on disk

    Knows a source by this text alone)."""

    def inline(include):
        return source_of(include[1])

    def source_of(file):
        return re.sub(
            r'^#include "([\w.]+)".*$',
            inline,
            (SOURCES / file).read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )

    return source_of(f"{name}.cu")


def instances(name: str) -> tuple[str, ...]:
    "The instances of the templates of `<name>.cu` that its launcher may launch, as C++ names"
    return import_module(f"{__name__}.{name}").INSTANCES


# ---- what touches the device


class Cupy:
    "The device as CuPy shows it; tests put a host in its place"

    @property
    def library(self) -> Any:
        "CuPy; MissingExtra without it"
        try:
            import cupy  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise extra("cupy", "gpu") from None
        return cupy

    def host(self, x: Array) -> np.ndarray:
        "The array `x` on the host"
        return x.get()

    def processors(self) -> int:
        "Streaming multiprocessors of the current device"
        return _processors(self.library.cuda.Device().id)

    def shared_limit(self) -> int:
        "Bytes of shared memory that one block may ask for"
        return _shared_limit(self.library.cuda.Device().id)

    def kernel(self, name: str, instance: str) -> Any:
        """An instance of a template of `<name>.cu`, compiled for the current device

        `kernel(grid, block, args, shared_mem=bytes)`."""
        return _kernel(name, instance, self.library.cuda.Device().id)


DEVICE = Cupy()


@cache
def _processors(device: int) -> int:
    return DEVICE.library.cuda.Device(device).attributes["MultiProcessorCount"]


@cache
def _shared_limit(device: int) -> int:
    return DEVICE.library.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]


@cache
def _kernel(name: str, instance: str, device: int):
    module = DEVICE.library.RawModule(
        code=source(name), options=OPTIONS, name_expressions=[instance]
    )
    function = module.get_function(instance)
    if _shared_limit(device) > SHARED:
        function.max_dynamic_shared_size_bytes = _shared_limit(device) - function.shared_size_bytes
    return function


def library() -> Any:
    "CuPy"
    return DEVICE.library


def host(x: Array) -> np.ndarray:
    "A small result as an array of the host; the one place where results leave the device"
    return DEVICE.host(x)


# ---- what launchers share

NOTHING = np.uint64(0)  # in place of an array that is not there: a null pointer
FREE = np.uint64(2**64 - 1)  # what an empty slot of a hash table holds
FLOATS = "float32", "float64"
SHARED = 48 * 1024  # bytes of shared memory that any block may ask for
THREADS = 256  # of a block, where a kernel does not say more
C = {
    "float32": "float",
    "float64": "double",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned int",
    "uint64": "unsigned long long",
    "bool": "bool",
}


def launch(
    name: str,  # of the `.cu` file
    instance: str,  # of a template in it, one of `instances(name)`
    work: int,  # items; a block takes `each` of them at a time and comes back for more
    args: Iterable[
        Any
    ],  # arrays of the device and NumPy scalars, in the kernel's order and of its very types
    *,
    each: int = THREADS,  # items of a block at a time
    most: int = 8,  # blocks a multiprocessor
    threads: int = THREADS,  # of a block
    shared: int = 0,  # bytes of dynamic shared memory
) -> None:
    "Start `instance` over `work` items on the current stream"
    if instance not in instances(name):
        raise ParameterError(f"{name}.cu has no {instance}; it has: {', '.join(instances(name))}.")
    DEVICE.kernel(name, instance)(
        (blocks(work, each, most),), (threads,), tuple(args), shared_mem=shared
    )


def shared_limit() -> int:
    "Bytes of shared memory that a block may ask for, beside some for the sums of a block"
    return DEVICE.shared_limit() - 4096


def blocks(work: int, each: int, most: int = 8) -> int:
    "Blocks of a launch: enough for the work, at least one, at most `most` a multiprocessor"
    return max(1, min(-(-work // each), most * DEVICE.processors()))


def check(
    what: str,  # name of the argument
    x: Array,  # array of the device
    dtypes: Collection[str],  # names of the types that are accepted
    ndim: int = 1,
) -> Array:
    """`x`, one that kernels can read by a pointer

    ParameterError for another type, number of dimensions or layout."""
    if not isinstance(x, library().ndarray):
        raise ParameterError(
            f"{what} is a {type(x).__name__}; accepted: an array on the device, like the block."
        )
    if x.dtype.name not in dtypes:
        raise ParameterError(f"{what} is of type {x.dtype}; accepted: {', '.join(dtypes)}.")
    if x.ndim != ndim:
        raise ParameterError(f"{what} has {x.ndim} dimensions; accepted: {ndim}.")
    if not x.flags.c_contiguous:
        raise ParameterError(
            f"{what} is not contiguous (strides {x.strides}); pass cupy.ascontiguousarray of it."
        )
    return x


def shaped(what: str, x: Array, shape: tuple) -> Array:
    "`x` if it has this shape"
    if x.shape != shape:
        raise ParameterError(f"{what} has shape {x.shape}; accepted: {shape}.")
    return x
