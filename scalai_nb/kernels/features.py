"""Features from columns

A column becomes a row of a small table of numbers or places, and `assemble` writes the table out
row by row.

A block is taken in tiles of some thousand rows. For each, `number`, `centred`, `seconds`,
`missing`, `bucket` and `lookup` turn one column into one row of `numbers` (float32 values) or
`places` (int32, the feature that is 1), which stay in L2; `assemble` then writes the rows of the
matrix once. Arithmetic is float32, one operation after another and never reordered, so that an ONNX
graph can repeat it bit for bit; what float32 would blur is subtracted before, by `centred` and
`seconds`."""

import math

import numpy as np

from ..errors import ParameterError
from .jit import mutable, njit

NONE = -1  # place of what is missing; where it is negative, no feature is 1
FLOATS = np.dtype("f4"), np.dtype("f8")
PLACES, TICKS = np.dtype("i4"), np.dtype("i8")
WHOLE = tuple(np.dtype(t) for t in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "?"))


def _check(x, accepted, name: str, shape=None):
    "`x`; ParameterError unless it is a contiguous array of an accepted dtype (and of this shape)"
    if x.dtype not in accepted:
        raise ParameterError(f"{name} is {x.dtype}; accepted: {', '.join(map(str, accepted))}.")
    if not x.flags.c_contiguous:
        raise ParameterError(f"{name} is not contiguous; pass numpy.ascontiguousarray(x).")
    if shape is not None and x.shape != shape:
        raise ParameterError(f"{name} has shape {x.shape}; accepted: {shape}.")
    return x


@njit
def _number(x, out, fill, low, high, shift, scale):
    fill, low, high, shift, scale = (
        np.float32(fill),
        np.float32(low),
        np.float32(high),
        np.float32(shift),
        np.float32(scale),
    )
    for i in range(x.size):
        v = np.float32(x[i])
        v = fill if v != v else v
        v = low if v < low else v  # a missing value passes both comparisons
        v = high if v > high else v
        out[i] = (v - shift) / scale


@njit
def _log_number(x, out, fill, low, high, shift, scale):
    fill, low, high, shift, scale = (
        np.float32(fill),
        np.float32(low),
        np.float32(high),
        np.float32(shift),
        np.float32(scale),
    )
    for i in range(x.size):
        v = np.float32(x[i])
        v = fill if v != v else v
        v = low if v < low else v
        v = high if v > high else v
        # in float64, whose last bit, on which libraries differ, is lost in the rounding
        v = np.float32(math.copysign(math.log(1.0 + abs(np.float64(v))), np.float64(v)))
        out[i] = (v - shift) / scale


def number(
    x: np.ndarray,  # (row,) float32 or float64; NaN is missing
    out: np.ndarray,  # (row,) float32, written; may be `x`
    fill: float = np.nan,  # what a missing value becomes; NaN: it stays missing
    low: float = -np.inf,
    high: float = np.inf,  # bounds that values are clipped to, infinite ones too
    log: bool = False,  # then sign(v) * log(1 + |v|)
    shift: float = 0.0,
    scale: float = 1.0,  # then (v - shift) / scale
) -> None:
    "Impute, clip, log and scale; all in float32 but the logarithm"
    x = mutable(_check(x, FLOATS, "x"))
    _check(out, FLOATS[:1], "out", x.shape)
    (_log_number if log else _number)(
        x, out, float(fill), float(low), float(high), float(shift), float(scale)
    )


@njit
def _centred(x, out, centre):
    for i in range(x.size):
        out[i] = np.float32(np.float64(x[i]) - centre)


@njit
def _log_centred(x, out, centre):
    for i in range(x.size):
        v = np.float64(x[i])
        out[i] = np.float32(math.copysign(math.log(1.0 + abs(v)), v) - centre)


def centred(
    x: np.ndarray,  # (row,) float32 or float64; NaN is missing and stays so
    out: np.ndarray,  # (row,) float32, written
    centre: float,  # that becomes 0
    log: bool = False,  # sign(v) * log(1 + |v|) is taken before
) -> None:
    "Numbers as their distance from a centre: subtracted in float64, then rounded"
    x = mutable(_check(x, FLOATS, "x"))
    _check(out, FLOATS[:1], "out", x.shape)
    (_log_centred if log else _centred)(x, out, float(centre))


@njit
def _seconds(x, out, unit, origin):
    for i in range(x.size):
        out[i] = (
            np.float32(np.nan)
            if x[i] == np.iinfo(np.int64).min
            else np.float32(x[i] / unit - origin)
        )


def seconds(
    x: np.ndarray,  # (row,) int64 ticks since 1970; the least int64 is missing
    out: np.ndarray,  # (row,) float32, written; NaN is missing
    unit: float,  # ticks of a second, float
    origin: float,  # seconds since 1970 that become 0
) -> None:
    "Times as seconds from an origin: subtracted in float64, then rounded"
    x = mutable(_check(x, (TICKS,), "x"))
    _check(out, FLOATS[:1], "out", x.shape)
    _seconds(x, out, float(unit), float(origin))


@njit
def _missing(x, out):
    for i in range(x.size):
        out[i] = np.float32(x[i] != x[i])


def missing(
    x: np.ndarray,  # (row,) float32 or float64
    out: np.ndarray,  # (row,) float32, written; not `x`
) -> None:
    "1 where a value is missing, else 0"
    x = mutable(_check(x, FLOATS, "x"))
    _check(out, FLOATS[:1], "out", x.shape)
    _missing(x, out)


@njit
def _bucket(x, edges, first, out):
    for i in range(x.size):
        v, place = x[i], first
        for edge in edges:
            place += np.int32(v >= edge)
        out[i] = np.int32(NONE) if v != v else place


def bucket(
    x: np.ndarray,  # (row,) float32; NaN is missing
    edges: np.ndarray,  # (n,) float32, rising: a value equal to an edge is above it
    first: int,  # feature of the values below all edges
    out: np.ndarray,  # (row,) int32, written
) -> None:
    "The feature of the bucket that holds each value; NONE for a missing one"
    x = mutable(_check(x, FLOATS[:1], "x"))
    _check(edges, FLOATS[:1], "edges")
    _check(out, (PLACES,), "out", x.shape)
    _bucket(x, edges, np.int32(first), out)


@njit
def _lookup(x, first, table, outside, out):
    count, outside = 0, out.dtype.type(outside)
    for i in range(x.size):
        k = np.int64(x[i]) - first
        inside = 0 <= k < table.size
        out[i] = table[k if inside else 0] if inside else outside
        count += not inside
    return count


def lookup(
    x: np.ndarray,  # (row,) whole numbers but uint64, or booleans
    first: int,  # number that the table begins with
    table: np.ndarray,  # (n,) int32 or float32, n > 0: what first, first + 1, … become
    outside: float,  # what a number outside the table becomes
    out: np.ndarray,  # (row,) of the table's type, written
) -> int:  # how many numbers are outside the table
    "Look each number up in a table"
    x = mutable(_check(x, WHOLE, "x"))
    _check(table, (PLACES, FLOATS[0]), "table")
    _check(out, (table.dtype,), "out", x.shape)
    return _lookup(
        x.view(np.uint8) if x.dtype == bool else x, int(first), table, float(outside), out
    )


@njit
def _assemble(numbers, at, places, out):
    rows, width = out.shape
    flat = out.reshape(rows * width)
    for start in range(0, rows, 32):  # rows that stay in L1 until all their features are there
        stop = min(start + 32, rows)
        flat[start * width : stop * width] = 0
        for j in range(places.shape[0]):
            for i in range(start, stop):
                p = places[j, i]
                if p >= 0:
                    flat[i * width + p] = 1
        for j in range(at.size):
            for i in range(start, stop):
                flat[i * width + at[j]] = numbers[j, i]


def assemble(
    numbers: np.ndarray,  # (n, row) float32
    at: np.ndarray,  # (n,) int64: the feature of each row of `numbers`, below `width`
    places: np.ndarray,  # (m, row) int32 below `width`: the features that are 1; negative: none
    out: np.ndarray,  # (row, width) float32, written: all else is 0
) -> None:
    "Write the matrix of features, row by row"
    _check(numbers, FLOATS[:1], "numbers", (len(at), len(out)))
    _check(places, (PLACES,), "places", (len(places), len(out)))
    _check(out, FLOATS[:1], "out")
    _assemble(numbers, at, places, out)
