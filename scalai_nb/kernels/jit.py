"""Numba's `njit` for kernels: without the lock of the interpreter, cached

Numba numbers the files of its cache by what an index lists. Of two processes that compile one
function at the same time for two dtypes, both take the same number, and the index of one may then
name the code of the other: int8 was read as uint8 (numba 0.68). Here each file has a name of its
own, so a lost entry of the index costs a compilation and nothing else."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numba
import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.cgutils import get_or_insert_function
from numba.core.typing.context import BaseContext
from numba.core.typing.templates import Signature
from numba.np.arrayobj import make_array

intrinsic: Any = extending.intrinsic  # numba passes the first argument


class _Files(IndexDataCacheFile):
    def _data_name(self, number):
        return self._data_name_pattern.replace("{number:d}", uuid4().hex)


class _Cache(FunctionCache):
    def __init__(self, function):
        super().__init__(function)
        self._cache_file.__class__ = _Files

    def save_overload(self, sig, data):
        with suppress(OSError):  # a full disk, or a folder that can no longer be written
            super().save_overload(sig, data)


@cache
def _not_kept() -> None:
    warnings.warn(
        "Compiled code cannot be kept: neither the package nor the home is a place to write; each "
        "process compiles anew. Set NUMBA_CACHE_DIR to a folder that is yours.",
        stacklevel=2,
    )


def mutable(
    x: np.ndarray,  # what a kernel only reads
) -> np.ndarray:  # the same memory
    """`x` as one may write into it

    To Numba a read-only array is of another type, for which it compiles every kernel again. What
    comes from pandas, Arrow or a worker is read-only."""
    if x.flags.writeable:
        return x
    memory, _ = x.__array_interface__["data"]
    about = {**x.__array_interface__, "data": (memory, False)}
    return np.asarray(SimpleNamespace(__array_interface__=about, keeps=x))


def njit(function: Callable | None = None, **options) -> Any:
    """Compile `function` for each dtype that it meets, without the interpreter's lock

    And keep the code on disk, where that can be written."""
    if function is None:
        return partial(njit, **options)
    compiled = numba.njit(nogil=True, **options)(function)
    try:
        setattr(compiled, "_cache", _Cache(function))  # noqa: B010  numba has no setting for it
    except RuntimeError:  # no folder to keep it in
        _not_kept()
    return compiled


@intrinsic
def ask(
    typingctx: BaseContext,  # given by numba
    x: types.Array,
    i: types.Integer,
) -> tuple[Signature, Callable]:  # and what writes the code
    "Have the processor fetch x[i], which need not exist, into the cache"

    def codegen(context, builder, signature, args):
        at = builder.gep(make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        take = ir.FunctionType(ir.VoidType(), [at.type, *[ir.IntType(32)] * 3])
        builder.call(
            get_or_insert_function(builder.module, take, "llvm.prefetch.p0"),
            [at, *(ir.IntType(32)(v) for v in (0, 3, 1))],
        )  # to read, near, data
        return context.get_dummy_value()

    return types.void(x, types.intp), codegen
