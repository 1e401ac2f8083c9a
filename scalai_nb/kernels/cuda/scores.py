"""Scores and labels counted on the device

The functions of `kernels/scores.py`, launched from `scores.cu`.

Counts are exact. Losses are float64: sums of a thread, then pairwise over a block's threads, then
over blocks, one order for every run; of groups, and of weights in bins, sums are atomic and their
order is free: the last bits may differ from run to run."""

import numpy as np

from . import (
    C,
    Array,
    FLOATS,
    FREE,
    NOTHING,
    SHARED,
    THREADS,
    blocks,
    check,
    host,
    launch,
    library,
    shared_limit,
)
from ..scores import Classes, ERRORS, Errors, Tally

WEIGHTED = "false", "true"
INSTANCES = (
    *(
        f"{f}<{C[t]}, {w}>"
        for f in ("tally", "tally_by", "distinct", "classify", "deviations")
        for t in FLOATS
        for w in WEIGHTED
    ),
    *(f"errors<{C[t]}, {C[p]}, {w}>" for t in FLOATS for p in FLOATS for w in WEIGHTED),
)


def _taken(name: str, x: Array, dtypes) -> Array:
    """`x` as kernels take it: of an accepted dtype, a bool as int8, a copy if it has strides

    None as it is."""
    if x is None:
        return None
    x = x.view(np.int8) if x.dtype == bool else x
    return check(name, library().ascontiguousarray(x), dtypes, x.ndim)


def _rows(label, score, weight):
    return _taken("label", label, ("int8",)), _taken("score", score, FLOATS), _weight(weight)


def _weight(weight):
    return _taken("weight", weight, ("float64",))


def _there(x):
    return NOTHING if x is None else x


def _instance(name, x, weight):
    return f"{name}<{C[x.dtype.name]}, {WEIGHTED[weight is not None]}>"


def _zeros(shape, weight):
    return library().zeros(shape, np.uint64 if weight is None else np.float64)


def _whole(counts):
    "Counts of the device on the host"
    return host(counts).astype(np.int64) if counts.dtype == np.uint64 else host(counts)


def _counted(counts, n):
    "Counts of `n` rows on the host, of the type that the twin counts in"
    return (
        host(counts).astype(np.uint32)
        if counts.dtype == np.uint64 and n < 2**32
        else _whole(counts)
    )


def tally(label: Array, score: Array, weight: Array | None, eps: float, bits: int) -> Tally:
    """Count scores by bin and label, and sum their losses

    Values that make no sense are counted, and spoil the rest."""
    label, score, weight = _rows(label, score, weight)
    n, cells = len(score), 128 << bits
    rooms = (
        cells * (4 if weight is None else 8),
        (96 << bits) * 2,
    )  # bytes of all cells, and of those that take 16 bits
    near = 1 if rooms[0] <= SHARED else 2 if weight is None and rooms[1] <= shared_limit() else 0
    threads, most = (1024, 1) if near == 2 else (THREADS, 8)
    counts, bad, partial = (
        _zeros(cells, weight),
        library().zeros(3, np.uint64),
        library().zeros((blocks(n, threads, most), 4)),
    )
    launch(
        "scores",
        _instance("tally", score, weight),
        n,
        (
            label,
            score,
            _there(weight),
            np.int64(n),
            np.float64(eps),
            np.int32(bits),
            counts,
            partial,
            bad,
            np.int32(near),
        ),
        threads=threads,
        each=threads,
        most=most,
        shared=rooms[near - 1] if near else 8,
    )
    loss, brier, *squares = host(partial.sum(axis=0))
    return Tally(
        np.int64(n),
        _counted(counts, n).reshape(-1, 2),
        loss,
        brier,
        np.array(squares),
        tuple(map(int, host(bad))),
    )


def tally_by(
    groups: Array,
    label: Array,
    score: Array,
    weight: Array | None,
    eps: float,
    bits: int,
    binned: Array,
) -> Tally:
    "As `tally`, for each group of rows"
    (label, score, weight), groups = (
        _rows(label, score, weight),
        _taken("groups", groups, ("int32",)),
    )
    n, size, cells = len(score), len(binned), 128 << bits
    place = np.where(binned, np.cumsum(binned), 0).astype(np.int32)  # row 0 takes what nobody wants
    counts = _zeros((1 + np.count_nonzero(binned), cells), weight)
    rows, sums, bad = (
        library().zeros(size, np.uint64),
        library().zeros((size, 4)),
        library().zeros(3, np.uint64),
    )
    room = 40 * size
    launch(
        "scores",
        _instance("tally_by", score, weight),
        n,
        (
            groups,
            library().asarray(place),
            np.int32(size),
            label,
            score,
            _there(weight),
            np.int64(n),
            np.float64(eps),
            np.int32(bits),
            rows,
            counts,
            sums,
            bad,
            np.int32(room <= SHARED),
        ),
        shared=room if room <= SHARED else 8,
    )
    loss, brier, *squares = host(sums).T
    return Tally(
        host(rows).astype(np.int64),
        _counted(counts[1:], n).reshape(-1, cells // 2, 2),
        loss.copy(),
        brier.copy(),
        np.stack(squares, axis=1),
        tuple(map(int, host(bad))),
    )


def distinct(
    groups: Array | None, label: Array, score: Array, weight: Array | None, limit: int, over: Array
) -> tuple[Array, Array, Array, Array]:
    "Count each distinct score of each group"
    (label, score, weight), groups = (
        _rows(label, score, weight),
        _taken("groups", groups, ("int32",)),
    )
    n = len(score)
    claims = (limit + blocks(n, THREADS, 1) * THREADS) * len(
        over
    )  # each thread may claim a slot of a group after its limit was passed
    size = 1 << int(2 * min(n, claims)).bit_length()
    slots, counts = library().full(size, FREE, np.uint64), _zeros((size, 2), weight)
    full, used = (
        library().asarray(np.asarray(over).astype(np.uint32)),
        library().zeros(len(over), np.uint64),
    )
    launch(
        "scores",
        _instance("distinct", score, weight),
        n,
        (
            _there(groups),
            label,
            score,
            _there(weight),
            np.int64(n),
            np.uint64(limit),
            full,
            used,
            slots,
            np.uint64(size),
            counts,
        ),
        most=1,
    )
    taken = slots != FREE
    rows = slots[taken].astype(np.int64)
    found, counts, over = (
        host(score[rows].astype(np.float64)) + 0.0,
        _whole(counts[taken]),
        host(full) != 0,
    )
    group = np.zeros(len(found), np.int32) if groups is None else host(groups[rows])
    order = np.lexsort((found, group))
    order = order[~over[group[order]]]
    return over, group[order], found[order], counts[order]


def classify(
    label: Array, score: Array, weight: Array | None, eps: float, tolerance: float
) -> Classes:
    """Count rows by label and prediction, and sum their losses

    Values that make no sense are counted, and spoil the rest."""
    label, score, weight = (
        _taken("label", label, ("int32",)),
        check("score", library().ascontiguousarray(score), FLOATS, 2),
        _weight(weight),
    )
    n, classes = score.shape
    room = 8 * classes * (classes + 1)
    confusion, ranks = _zeros((classes, classes), weight), _zeros(classes, weight)
    partial, bad = library().zeros((blocks(n, THREADS), 5)), library().zeros(4, np.uint64)
    launch(
        "scores",
        _instance("classify", score, weight),
        n,
        (
            label,
            score,
            _there(weight),
            np.int64(n),
            np.int32(classes),
            np.float64(eps),
            np.float64(tolerance),
            confusion,
            ranks,
            partial,
            bad,
            np.int32(room <= SHARED),
        ),
        shared=room if room <= SHARED else 8,
    )
    sums = host(partial.sum(axis=0))
    return Classes(
        _whole(confusion),
        _whole(ranks),
        sums[:4].reshape(2, 2),
        sums[4],
        tuple(map(int, host(bad))),
    )


def errors(target: Array, prediction: Array, weight: Array | None, by_prediction: bool) -> Errors:
    """Sum errors, and count them by bins that are within 0.4 % of their middle

    Values that make no sense are counted, and spoil the rest."""
    target, prediction, weight, xp = (
        _taken("target", target, FLOATS),
        _taken("prediction", prediction, FLOATS),
        _weight(weight),
        library(),
    )
    n = len(target)
    counts, table, bad = (
        xp.zeros(ERRORS),
        xp.zeros((ERRORS, 3)) if by_prediction else None,
        xp.zeros(3, np.uint64),
    )
    partial, ends, rest = (xp.zeros((blocks(n, THREADS), k)) for k in (8, 2, 2))
    launch(
        "scores",
        f"errors<{C[target.dtype.name]}, {C[prediction.dtype.name]}, "
        f"{WEIGHTED[weight is not None]}>",
        n,
        (
            target,
            prediction,
            _there(weight),
            np.int64(n),
            counts,
            _there(table),
            partial,
            ends,
            bad,
        ),
    )
    sums = host(partial.sum(axis=0))
    with np.errstate(all="ignore"):
        mean = sums[7] / sums[0] if sums[0] > 0 else 0.0
        launch(
            "scores",
            _instance("deviations", target, weight),
            n,
            (target, _there(weight), np.int64(n), np.float64(mean), rest),
        )
        first, spread = host(rest.sum(axis=0))
        if sums[0] > 0:
            spread = spread - first * first / sums[0]  # what rounding left of the mean
    return Errors(
        n,
        np.append(sums, spread),
        np.array([float(host(ends[:, 0].min())), float(host(ends[:, 1].max()))]),
        host(counts),
        np.zeros((0, 3)) if table is None else host(table),
        tuple(map(int, host(bad))),
    )
