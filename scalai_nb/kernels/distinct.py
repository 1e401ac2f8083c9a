"""Distinct numbers, counted in a table that is open to its next cell

A table of indices, at least twice as long as what it may hold, is filled by linear probing (Knuth
1998, The Art of Computer Programming 3, 6.4, algorithm L). The numbers are hashes already, so their
lowest bits are the cell."""

import numpy as np

from .jit import mutable, njit


@njit
def _distinct(marks, rows, times, table, found, first, count):
    "Fill the three from the left; how many there are"
    n, mask = 0, table.size - 1
    for i in range(marks.size):
        at = np.int64(marks[i]) & mask
        while table[at] >= 0 and found[table[at]] != marks[i]:
            at = (at + 1) & mask
        k = table[at]
        if k < 0:
            table[at] = n
            found[n], first[n], count[n] = marks[i], rows[i], times[i]
            n += 1
        else:
            first[k] = min(first[k], rows[i])
            count[k] += times[i]
    return n


def distinct(
    marks: np.ndarray,  # (n,) uint64, hashes
    rows: np.ndarray,  # (n,) int64
    times: np.ndarray,  # (n,) int64
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # (distinct,) each
    "The distinct marks in the order in which they come, of each the least row and the sum of times"
    size = len(marks)
    cells = 1 << (2 * size).bit_length()
    out = np.empty(size, np.uint64), np.empty(size, np.int64), np.empty(size, np.int64)
    table = np.full(cells, -1, np.int32 if size < 2**31 else np.int64)
    n = _distinct(*map(mutable, (marks, rows, times)), table, *out)
    found, first, count = (some[:n].copy() for some in out)
    return found, first, count
