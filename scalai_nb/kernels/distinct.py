"""Distinct hashes, counted in a table that is filled by linear probing

Knuth 1998, The Art of Computer Programming 3, 6.4, algorithm L. The cell of a hash is its lowest
bits. Cells lie anywhere in memory, so each is asked for before it is needed."""

import numpy as np

from .jit import ask, mutable, njit

AHEAD = 12  # hashes from here whose cell is asked for


@njit(inline="always")
def _count(table, found, first, times, n, mark, row, more):
    "Count one hash; how many there are then"
    last = table.size - 1
    at = np.int64(mark) & last
    while table[at] >= 0 and found[table[at]] != mark:
        at = (at + 1) & last
    k = table[at]
    if k < 0:
        table[at] = n
        found[n], first[n], times[n] = mark, row, more
        return n + 1
    first[k] = min(first[k], row)
    times[k] += more
    return n


@njit
def _rows(table, found, first, times, n, marks, start, most):
    "Count the hashes of consecutive rows; those above `most` are left out"
    for i in range(marks.size):
        ask(table, np.int64(marks[min(i + AHEAD, marks.size - 1)]) & table.size - 1)
        if marks[i] <= most:
            n = _count(table, found, first, times, n, marks[i], start + i, 1)
    return n


@njit
def _counted(table, found, first, times, n, marks, rows, counts):
    "Count hashes that are counted already"
    for i in range(marks.size):
        ask(table, np.int64(marks[min(i + AHEAD, marks.size - 1)]) & table.size - 1)
        n = _count(table, found, first, times, n, marks[i], rows[i], counts[i])
    return n


class Table:
    "Distinct hashes in the order in which they come, the first row of each, how many rows have it"

    def __init__(
        self,
        room: int,  # hashes that will come, at most
    ) -> None:
        index = np.int32 if room < 2**31 else np.int64
        self._cells = np.full(1 << (2 * room).bit_length(), -1, index)
        self._kept = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64)
        self._size = 0

    def rows(
        self,
        marks: np.ndarray,  # (row,) uint64, of consecutive rows
        start: int,  # the first of them
        most: int,  # hashes above it are left out
    ) -> None:
        "Count rows"
        at = self._cells, *self._kept, self._size
        self._size = _rows(*at, mutable(marks), start, np.uint64(most))

    def counted(
        self,
        marks: np.ndarray,  # (n,) uint64
        first: np.ndarray,  # (n,) int64
        times: np.ndarray,  # (n,) int64
    ) -> None:
        "Take what another table has counted"
        at = self._cells, *self._kept, self._size
        self._size = _counted(*at, *map(mutable, (marks, first, times)))

    def all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # hashes, first rows, times
        "What is counted so far"
        hashes, first, times = (some[: self._size] for some in self._kept)
        return hashes, first, times
