"""Features from columns on the device

The functions of `kernels/features.py`, launched from `features.cu`.

Results are the twin's bit for bit, but for the logarithm's last bit."""

import numpy as np

from . import C, Array, FLOATS, SHARED, check, host, launch, library, shaped

WHOLE = "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"
ROWS, FLOAT_BYTES = 32, 4  # rows of a tile of `assemble`
CHUNK = (SHARED // (ROWS * FLOAT_BYTES) - 1) | 1  # features of a tile
INSTANCES = (
    *(f"number<{C[t]}, {log}>" for t in FLOATS for log in ("false", "true")),
    *(f"centred<{C[t]}, {log}>" for t in FLOATS for log in ("false", "true")),
    "seconds",
    *(f"missing<{C[t]}>" for t in FLOATS),
    "bucket",
    *(f"lookup<{C[t]}, {v}>" for t in WHOLE if t != "bool" for v in ("int", "float")),
    "assemble",
)


def _start(instance, n, args):
    launch("features", instance, n, args)


def _out(x, out, dtype):
    "`out`, checked to be like `x`"
    return shaped("out", check("out", out, (dtype,)), x.shape)


def number(
    x: Array,
    out: Array,
    fill: float = np.nan,
    low: float = -np.inf,
    high: float = np.inf,
    log: bool = False,
    shift: float = 0.0,
    scale: float = 1.0,
) -> None:
    "Impute, clip, log and scale; all in float32 but the logarithm"
    check("x", x, FLOATS)
    words = map(np.float32, (fill, low, high, shift, scale))
    _start(
        f"number<{C[x.dtype.name]}, {'true' if log else 'false'}>",
        x.size,
        (x, _out(x, out, "float32"), np.int64(x.size), *words),
    )


def centred(x: Array, out: Array, centre: float, log: bool = False) -> None:
    "Numbers as their distance from a centre: subtracted in float64, then rounded"
    check("x", x, FLOATS)
    _start(
        f"centred<{C[x.dtype.name]}, {'true' if log else 'false'}>",
        x.size,
        (x, _out(x, out, "float32"), np.int64(x.size), np.float64(centre)),
    )


def seconds(x: Array, out: Array, unit: float, origin: float) -> None:
    "Times as seconds from an origin: subtracted in float64, then rounded"
    check("x", x, ("int64",))
    _start(
        "seconds",
        x.size,
        (x, _out(x, out, "float32"), np.int64(x.size), np.float64(unit), np.float64(origin)),
    )


def missing(x: Array, out: Array) -> None:
    "1 where a value is missing, else 0"
    check("x", x, FLOATS)
    _start(f"missing<{C[x.dtype.name]}>", x.size, (x, _out(x, out, "float32"), np.int64(x.size)))


def bucket(x: Array, edges: Array, first: int, out: Array) -> None:
    "The feature of the bucket that holds each value; NONE for a missing one"
    check("x", x, ("float32",))
    check("edges", edges, ("float32",))
    _start(
        "bucket",
        x.size,
        (x, edges, np.int32(edges.size), np.int32(first), _out(x, out, "int32"), np.int64(x.size)),
    )


def lookup(x: Array, first: int, table: Array, outside: float, out: Array) -> int:
    "Look each number up in a table; how many are outside it"
    check("x", x, WHOLE)
    check("table", table, ("int32", "float32"))
    _out(x, out, table.dtype.name)
    if x.dtype == bool:
        x = x.view(np.uint8)
    count = library().zeros(1, np.uint64)
    _start(
        f"lookup<{C[x.dtype.name]}, {C[table.dtype.name]}>",
        x.size,
        (
            x,
            np.int64(first),
            table,
            np.int64(table.size),
            table.dtype.type(outside),
            out,
            count,
            np.int64(x.size),
        ),
    )
    return int(host(count)[0])


def assemble(numbers: Array, at: Array, places: Array, out: Array) -> None:
    "Write the matrix of features, row by row"
    check("out", out, ("float32",), 2)
    check("at", at, ("int64",))
    check("numbers", numbers, ("float32",), 2)
    check("places", places, ("int32",), 2)
    rows, width = out.shape
    shaped("numbers", numbers, (at.size, rows))
    shaped("places", places, (len(places), rows))
    chunk = min(CHUNK, max(1, width))
    launch(
        "features",
        "assemble",
        rows,
        (
            numbers,
            at,
            np.int32(len(numbers)),
            places,
            np.int32(len(places)),
            out,
            np.int64(rows),
            np.int32(width),
            np.int32(chunk),
        ),
        each=ROWS,
        shared=ROWS * (chunk | 1) * FLOAT_BYTES,
    )
