"""A column described by group on the device

The function of `kernels/groups.py`, launched from `groups.cu`.

As in the twin, deviations are taken from the mean of a first pass and put right. Sums are float64
and atomic: their order is free, so that the last bits may differ from run to run."""

import numpy as np

from . import C, Array, FLOATS, SHARED, THREADS, check, host, launch, library, shaped
from ..groups import LIMIT

CODES, VALUES = ("int32", "int64"), ("int32", "int64", "uint32", *FLOATS)
INSTANCES = tuple(
    f"{f}<{C[c]}, {C[t]}>" for f in ("first", "second") for c in CODES for t in VALUES
) + ("periods",)
PLAIN = {
    "bool": "int32",
    "int8": "int32",
    "int16": "int32",
    "uint8": "int32",
    "uint16": "int32",
    "uint64": "float64",
    "float16": "float32",
}


def _copies(groups: int, bytes_each: int) -> int:
    """Copies of the groups' table that a block keeps in shared memory: up to one a warp; 0

    None fits."""
    return min(THREADS // 32, SHARED // (bytes_each * groups)) if groups else 0


def _start(name, codes, x, bytes_each, groups, args):
    copies = _copies(groups, bytes_each)
    launch(
        "groups",
        f"{name}<{C[codes.dtype.name]}, {C[x.dtype.name]}>",
        x.size,
        (codes, x, np.int64(x.size), *args, np.int32(copies)),
        shared=max(8, copies * bytes_each * groups),
    )


def fold(codes: Array, x: Array, groups: int, nat: bool = False) -> tuple[Array, ...]:
    "Describe the values of each group; a group without values has count 0"
    if x.dtype.name in PLAIN:
        x = x.astype(PLAIN[x.dtype.name])
    x = check("values", library().ascontiguousarray(x), VALUES)
    codes = shaped("codes", check("codes", library().ascontiguousarray(codes), CODES), x.shape)
    none = (
        (np.iinfo(np.int64).max, np.iinfo(np.int64).min)
        if x.dtype.kind in "iu"
        else tuple(s * np.float64(np.inf).view(np.int64) for s in (1, -1))
    )
    count, total = library().zeros(groups, np.uint64), library().zeros(groups)
    least, greatest = (library().full(groups, v, np.int64) for v in none)
    _start(
        "first",
        codes,
        x,
        32,
        groups,
        (np.int32(nat), np.int32(groups), *map(np.int64, none), count, total, least, greatest),
    )
    count, least, greatest = host(count).astype(np.int64), host(least), host(greatest)
    if x.dtype.kind == "f":
        least, greatest = (np.copysign(np.abs(k).view(np.float64), k) for k in (least, greatest))
    n = np.maximum(count, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        mean, rest, m2 = host(total) / n, library().zeros(groups), library().zeros(groups)
        _start(
            "second",
            codes,
            x,
            16,
            groups,
            (np.int32(nat), np.int32(groups), library().asarray(mean), rest, m2),
        )
        rest, m2 = host(rest), host(m2)
        return (
            count,
            np.where(np.isfinite(mean), mean + rest / n, mean),
            np.maximum(m2 - rest * rest / n, 0),
            least,
            greatest,
        )


def periods(x: Array, step: int, most: int = LIMIT) -> tuple[Array, int, int] | None:
    """The period that each time is in, from the first that occurs

    The missing ones have the code after the last."""
    x = check("times", library().ascontiguousarray(x), ("int64",))
    missing = np.iinfo(np.int64).min
    numbers, extremes = (
        library().zeros(x.size, np.int64),
        library().asarray(np.array([np.iinfo(np.int64).max, missing])),
    )
    launch("groups", "periods", x.size, (x, np.int64(x.size), np.int64(step), numbers, extremes))
    low, high = map(int, host(extremes))
    if high < low:
        low, high = 0, -1
    if high - low >= most:
        return None
    return library().where(numbers == missing, high - low + 1, numbers - low), low, high - low + 1
