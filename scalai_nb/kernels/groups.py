"""A column described by group on the CPU: count, mean, deviations, range

The sums are those of the corrected two-pass algorithm (Chan, Golub & LeVeque 1983, eq. 1.7): the
second pass takes deviations from the mean of the first and puts it right by their sum. The mean
is then within a few ulp of the largest deviation, whatever the offset of the values."""

import numpy as np

from ..errors import ParameterError
from .jit import mutable, njit

# groups that are counted in one table; more are made fewer by the caller, block by block
LIMIT = 65_536


@njit(inline="always")
def _there(v, nat):
    "Whether `v` is a value: not NaN, and where `nat` not the integer that stands for NaT"
    return v == v and not (nat and v == np.iinfo(np.int64).min)


@njit
def _first(codes, x, nat, count, total, least, greatest):
    for i in range(x.size):
        v = x[i]
        if _there(v, nat):
            g = codes[i]
            count[g] += 1
            total[g] += v
            if v < least[g]:
                least[g] = v
            if v > greatest[g]:
                greatest[g] = v


@njit
def _second(codes, x, nat, mean, rest, m2):
    for i in range(x.size):
        v = x[i]
        if _there(v, nat):
            g = codes[i]
            d = v - mean[g]
            rest[g] += d
            m2[g] += d * d


def fold(
    codes: np.ndarray,  # (n,) int32 or int64 from 0 to groups - 1; not checked
    x: np.ndarray,  # (n,) bool, any integer, any float; NaN is missing
    groups: int,
    nat: bool = False,  # whether `x` are times as int64, whose least value is missing
) -> tuple[np.ndarray, ...]:
    # (groups,) each: count int64, mean float64, sum of squared deviations float64, least, greatest
    # (int64 or float64)
    """Describe the values of each group

    A group without values has count 0, one with an infinity an infinite mean (or NaN) and NaN
    deviations."""
    if x.dtype.kind not in "biuf" or x.ndim != 1 or x.shape != codes.shape:
        raise ParameterError(
            f"Values are {x.dtype} of shape {x.shape}, codes of shape {codes.shape}; "
            "accepted: numbers, one for each code."
        )
    if x.dtype.kind == "b" or x.dtype.itemsize < 4:
        x = x.astype(np.float32 if x.dtype.kind == "f" else np.int32)
    elif x.dtype == np.uint64:
        x = x.astype(np.float64)
    x, codes = mutable(np.ascontiguousarray(x)), mutable(codes)
    whole = x.dtype.kind in "iu"
    least, greatest = (
        (np.full(groups, np.iinfo(np.int64).max), np.full(groups, np.iinfo(np.int64).min))
        if whole
        else (np.full(groups, np.inf), np.full(groups, -np.inf))
    )
    count, total, rest, m2 = np.zeros(groups, np.int64), *np.zeros((3, groups))
    _first(codes, x, nat, count, total, least, greatest)
    n = np.maximum(count, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = total / n
        _second(codes, x, nat, mean, rest, m2)
        return (
            count,
            np.where(np.isfinite(mean), mean + rest / n, mean),
            np.maximum(m2 - rest * rest / n, 0),
            least,
            greatest,
        )


@njit
def _periods(x, step, out):
    missing = np.iinfo(np.int64).min
    low, high, start, number = np.iinfo(np.int64).max, missing, missing, missing
    for i in range(x.size):
        v = x[i]
        if v == missing:
            out[i] = missing
            continue
        if (
            start == missing or v - start < 0 or v - start >= step
        ):  # times that follow each other are often of one period
            number = v // step
            start = number * step
            if number < low:
                low = number
            if number > high:
                high = number
        out[i] = number
    return low, high


@njit
def _shift(numbers, low, last):
    for i in range(numbers.size):
        numbers[i] = last if numbers[i] == np.iinfo(np.int64).min else numbers[i] - low


def periods(
    x: np.ndarray,  # (n,) int64 times; the least value is missing
    step: int,  # length of a period, in the same unit
    most: int = LIMIT,
) -> tuple[np.ndarray, int, int] | None:
    # codes (n,) int64, number of the first period, how many there are to the last;
    # None where they are more than `most`
    """The period that each time is in, from the first that occurs

    The missing ones have the code after the last."""
    x, codes = mutable(np.ascontiguousarray(x)), np.empty(len(x), np.int64)
    low, high = _periods(x, step, codes)
    if high < low:
        low, high = 0, -1
    if high - low >= most:
        return None
    _shift(codes, low, high - low + 1)
    return codes, low, high - low + 1
