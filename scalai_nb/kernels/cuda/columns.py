"""Kernels that describe a column, on the device

The functions of `kernels/columns.py`, launched from `columns.cu`.

Moments are float64: within a tile (a block's) sums of powers about the tile's own mean, one order
for every run; tiles are joined by the twin's formula, in order. Counts are exact. `spread` keeps
its buckets, and on cards that allow it the hash cells too, in shared memory."""

import numpy as np

from . import (
    C,
    Array,
    FLOATS,
    FREE,
    SHARED,
    THREADS,
    blocks,
    check,
    host,
    launch,
    library,
    shared_limit,
)
from ..columns import CELLS, COUNTABLE, INFINITY, Scan, Spread, _float, join, settled

WHOLE = "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
WIDER = {
    "uint8": "int16",
    "uint16": "int32",
    "uint32": "int64",
}  # types without kernels of their own become these, on the device
KINDS = [C[t] for t in (*FLOATS, *WHOLE) if t != "bool" and t not in WIDER]
INSTANCES = (
    *(f"{f}<{c}>" for f in ("scan", "mark", "count") for c in KINDS),
    *(f"spread<{c}, false>" for c in KINDS),
    "spread<long long, true>",
    "ranks",
    *(f"tally<{c}>" for c in KINDS[2:]),
)
VALUES = 16  # of a thread of `scan`, as in columns.cu
MOST, LEAST = np.iinfo(np.int64).max, np.iinfo(np.int64).min


def _checked(x, accepted=FLOATS + WHOLE):
    "`x`, a contiguous vector of an accepted dtype, as a type that kernels have; bools as bytes"
    name = check("x", x, accepted).dtype.name
    return x.view(np.int8) if name == "bool" else x.astype(WIDER[name]) if name in WIDER else x


def _join(tiles) -> tuple:
    "Moments of all tiles, in order"
    total = 0, 0.0, 0.0, 0.0, 0.0
    for n, *moments in tiles:
        if n:
            total = join(*total, int(n), *moments)
    return total


def scan(x: Array) -> Scan:
    "Count, extremes and moments in one pass"
    x = _checked(x)
    tile = THREADS * VALUES
    moments = library().zeros((-(-x.size // tile), 5))
    totals, extremes = (
        library().asarray(np.array([0, 0, 0, 0, FREE], np.uint64)),
        library().asarray(np.array([MOST, LEAST])),
    )
    launch(
        "columns",
        f"scan<{C[x.dtype.name]}>",
        x.size,
        (x, np.int64(x.size), moments, totals, extremes),
        each=tile,
    )
    with np.errstate(invalid="ignore", over="ignore"):
        n, *powers = settled(*_join(host(moments)))
    missing, zeros, below, above, small = map(int, host(totals))
    low, high = map(int, host(extremes))
    if not n:
        return Scan(missing, 0, below, above, np.inf, -np.inf, np.inf, 0, 0.0, 0.0, 0.0, 0.0)
    if x.dtype.kind == "f":
        small = np.uint64((small + 1) % 2**64)
        return Scan(
            missing,
            zeros,
            below,
            above,
            _float(low),
            _float(high),
            _float(small) if 0 < small < INFINITY else np.inf,
            n,
            *powers,
        )
    if x.dtype.kind == "u":
        low, high = low + 2**63, high + 2**63
    return Scan(0, zeros, 0, 0, low, high, 1, n, *powers)


def bounds(x: Array) -> tuple[int, int]:
    "The range of whole numbers"
    x = _checked(x, WHOLE)
    return int(host(x.min())), int(host(x.max()))


def spread(x: Array, shift: int, low: int, size: int, linear: bool = False) -> Spread:
    """Count values by bucket and by hash, in one pass

    Of floats, zero and infinities count as outside."""
    x, kind = _checked(x, ("int64",) if linear else FLOATS + WHOLE), "true" if linear else "false"
    total = np.zeros(2 * (size + 1), np.int64), np.zeros(CELLS, np.int64), np.zeros(CELLS, np.uint8)
    room = 4 * len(total[0])
    both, counts_only = room + 4 * CELLS <= shared_limit(), room <= SHARED
    for start in range(0, len(x), COUNTABLE):
        part, counts, cells = (
            x[start : start + COUNTABLE],
            library().zeros(len(total[0]), np.uint32),
            library().zeros(CELLS, np.uint32),
        )
        words = (
            np.uint64(shift),
            np.uint64(low),
            np.uint64(size),
            counts,
            cells,
            np.int32(both or counts_only),
            np.int32(both),
        )
        launch(
            "columns",
            f"spread<{C[x.dtype.name]}, {kind}>",
            len(part),
            (part, np.int64(len(part)), *words),
            threads=1024 if both else THREADS,
            each=1024 if both else THREADS,
            most=1 if both else 8,
            shared=room + 4 * CELLS if both else room if counts_only else 4,
        )
        counts, cells = host(counts), host(cells)
        total[0][:] += counts
        total[1][:] += cells >> 6
        np.maximum(total[2], (cells & 63).astype(np.uint8), out=total[2])
    return Spread(total[0].reshape(2, -1), *total[1:])


def registers(bits: Array, hashed: bool = False) -> Array:
    "The registers of HyperLogLog for these values"
    out = library().zeros(CELLS, np.uint32)
    launch(
        "columns",
        "ranks",
        bits.size,
        (check("bits", bits, ("uint64",)), np.int64(bits.size), np.int32(hashed), out),
    )
    return host(out).astype(np.uint8)


def pick(x: Array, heavy: Array) -> Array:
    """The values, in order, whose hash falls into a heavy cell

    Of floats, zeros, infinities and NaN never do."""
    values, keep = _checked(x), library().zeros(x.size, bool)
    launch(
        "columns",
        f"mark<{C[values.dtype.name]}>",
        x.size,
        (values, np.int64(x.size), library().asarray(heavy), keep),
    )
    return x[keep]


def count(x: Array, limit: int) -> tuple[Array, Array] | None:
    "Count the distinct values exactly, or find soon that they are too many"
    x = _checked(x)
    claims = (
        limit + blocks(x.size, THREADS, 1) * THREADS
    )  # each thread may claim a slot after the limit was passed
    size = 1 << int(2 * min(claims, x.size)).bit_length()
    keys, counts, found = (
        library().full(size + 1, FREE, np.uint64),
        library().zeros(size + 1, np.uint64),
        library().zeros(1, np.uint64),
    )
    launch(
        "columns",
        f"count<{C[x.dtype.name]}>",
        x.size,
        (x, np.int64(x.size), keys, counts, np.uint64(size), found, np.uint64(limit)),
        most=1,
    )
    if int(host(found)[0]) > limit:
        return None
    used = counts > 0
    values, counts = host(keys[used]), host(counts[used]).astype(np.int64)
    values = values.view(
        np.float64 if x.dtype.kind == "f" else np.uint64 if x.dtype == np.uint64 else np.int64
    )
    order = np.argsort(values)
    return values[order], counts[order]


def tally(codes: Array, first: int, size: int) -> Array:
    "How often each of a range of whole numbers occurs"
    codes, counts, near = (
        _checked(codes, WHOLE),
        library().zeros(size + 1, np.uint64),
        4 * (size + 1) <= SHARED,
    )
    launch(
        "columns",
        f"tally<{C[codes.dtype.name]}>",
        codes.size,
        (
            codes,
            np.int64(codes.size),
            np.uint64(first % 2**64).view(np.int64),
            np.uint64(size),
            counts,
            np.int32(near),
        ),
        shared=4 * (size + 1) if near else 4,
    )
    return host(counts).astype(np.int64)


def unique(x: Array) -> tuple[Array, Array]:
    "Count the distinct values by sorting, however many there are"
    x, xp = _checked(x), library()
    x = xp.sort(x[~xp.isnan(x)] + x.dtype.type(0) if x.dtype.kind == "f" else x)  # -0.0 becomes 0.0
    first = xp.flatnonzero(xp.concatenate([xp.ones(min(len(x), 1), bool), x[1:] != x[:-1]]))
    values = host(x[first]).astype(
        np.float64 if x.dtype.kind == "f" else np.uint64 if x.dtype == np.uint64 else np.int64
    )
    return values, np.diff(host(first), append=len(x))


def sample(x: Array, size: int) -> Array:
    "Values at even distances"
    return host(_checked(x)[:: max(-(-len(x) // size), 1)])
