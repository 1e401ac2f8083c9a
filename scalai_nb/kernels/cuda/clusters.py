"""Sums by nearest centre on the device

The functions of `kernels/clusters.py`, launched from `clusters.cu`.

The products of rows and centres are cuBLAS's, in the type of X; what follows from them is one
kernel. Sums are float64 and atomic: their order is free, so that the last bits may differ from
run to run."""

import numpy as np

from . import (
    C as NAMES,
    Array,
    FLOATS,
    NOTHING,
    SHARED,
    THREADS,
    blocks,
    check,
    host,
    launch,
    library,
    shaped,
)
from ..clusters import middle

CHUNK = 1 << 24  # numbers of a copy of some rows
INSTANCES = tuple(f"nearest<{NAMES[t]}>" for t in FLOATS)


def assign(
    X: Array,
    weight: Array | None,
    centers: Array,
    labels: Array | None = None,
    distances: Array | None = None,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Sums over the rows of a block by nearest centre, about `middle(centers, X.dtype)`

    NaN or infinities in X make the inertia not finite."""
    check("X", X, FLOATS, 2)
    rows, features = X.shape
    if labels is not None:
        shaped("labels", check("labels", labels, ("int32",)), (rows,))
    if distances is not None:
        shaped("distances", check("distances", distances, ("float64",)), (rows,))
    if weight is not None:
        weight = shaped(
            "weight",
            check(
                "weight",
                library().ascontiguousarray(weight.astype(np.float64, copy=False)),
                ("float64",),
            ),
            (rows,),
        )
    middles = middle(centers, X.dtype)
    shifted = (np.asarray(centers, np.float64) - middles).astype(X.dtype)
    origin, C, halves = (
        library().asarray(middles),
        library().asarray(shifted),
        library().asarray((shifted * shifted).sum(axis=1) / X.dtype.type(2)),
    )
    clusters, inertia = len(shifted), 0.0
    mass, sums = library().zeros(clusters), library().zeros(shifted.shape)
    room, each = 8 * clusters * (features + 1), THREADS // 32
    step = max(1, CHUNK // max(features, clusters))
    for part in (slice(i, min(i + step, rows)) for i in range(0, rows, step)):
        z = X[part] - origin
        dots, partial = library().ascontiguousarray(z @ C.T), library().zeros(blocks(len(z), each))
        some = [NOTHING if v is None else v[part] for v in (weight, labels, distances)]
        launch(
            "clusters",
            f"nearest<{NAMES[X.dtype.name]}>",
            len(z),
            (
                z,
                C,
                dots,
                halves,
                some[0],
                np.int64(len(z)),
                np.int32(features),
                np.int32(clusters),
                some[1],
                some[2],
                mass,
                sums,
                partial,
                np.int32(room <= SHARED),
            ),
            each=each,
            shared=room if room <= SHARED else 8,
        )
        inertia += float(host(partial.sum(keepdims=True))[0])
    return inertia, host(mass), host(sums)
