"""Which centre is nearest to each row, and the sums by centre

A block is read once, in tiles that stay in the L2 cache. Distances are compared by products of
the block's own type, taken about the middle of the centres, so that data far from 0 lose nothing;
two centres that are equally far up to rounding (1e-7 of the spread for float32) may be taken for
each other. The distance to the chosen centre is then summed anew, and all sums are float64."""

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError
from .jit import mutable, njit

TILE = 32_768  # numbers of a tile: 128 KiB of float32


@njit
def _choose(z, C, halves, scores, best, labels):
    "labels[i] = the centre nearest to z[i]: least |c|² / 2 - z · c; the first of equals"
    np.dot(C, z.T, scores)
    best[:] = np.inf
    labels[:] = 0
    for k in range(len(C)):
        for i in range(best.size):
            score = halves[k] - scores[k, i]
            nearer = score < best[i]
            best[i] = score if nearer else best[i]
            labels[i] = k if nearer else labels[i]


@njit(fastmath={"contract", "reassoc", "nsz"})
def _distance(z, c):
    "Squared distance"
    total = z.dtype.type(0)
    for j in range(z.size):
        total += (z[j] - c[j]) * (z[j] - c[j])
    return total


@njit
def _assign(X, weight, C, origin, mass, sums, labels, distances):
    """Inertia

    Adds to mass (cluster,) and sums (cluster, feature) about the origin, writes labels and
    distances unless they are empty."""
    rows, features = X.shape
    clusters = len(C)
    tile = max(16, min(1024, TILE // max(features, clusters)))
    z, scores = np.empty((tile, features), X.dtype), np.empty(clusters * tile, X.dtype)
    best, nearest = np.empty(tile, X.dtype), np.empty(tile, np.int32)
    halves = np.empty(clusters, X.dtype)
    for k in range(clusters):
        halves[k] = _distance(C[k], np.zeros(features, X.dtype)) / 2
    inertia = 0.0
    for start in range(0, rows, tile):
        n = min(tile, rows - start)
        for i in range(n):
            for j in range(features):
                z[i, j] = X[start + i, j] - origin[j]
        _choose(
            z[:n], C, halves, scores[: clusters * n].reshape(clusters, n), best[:n], nearest[:n]
        )
        for i in range(n):
            k, w = nearest[i], weight[start + i] if weight.size else 1.0
            away = _distance(z[i], C[k])
            if labels.size:
                labels[start + i] = k
            if distances.size:
                distances[start + i] = away
            if w == 0:
                continue
            inertia += w * away
            mass[k] += w
            for j in range(features):
                sums[k, j] += w * z[i, j]
    return inertia


def assign(
    X: np.ndarray,  # (row, feature) float32 or float64, C-contiguous
    weight: np.ndarray | None,  # (row,) how often a row counts, at least 0; None: once
    centers: np.ndarray,  # (cluster, feature) float64
    labels: np.ndarray | None = None,  # (row,) int32, written: the nearest centre of each row
    distances: np.ndarray | None = None,  # (row,) float64, written: the squared distance to it
) -> tuple[float, np.ndarray, np.ndarray]:
    # inertia; weight of each cluster; weighted sum of its rows about the middle of the centres
    """Sums over the rows of a block by nearest centre, about `middle(centers, X.dtype)`

    NaN or infinities in X make the inertia not finite."""
    if X.dtype not in (np.float32, np.float64):
        raise ParameterError(f"X is {X.dtype}; accepted: float32 and float64.")
    if X.ndim != 2 or not X.flags.c_contiguous:
        raise ParameterError(
            "X must be (row, feature) and C-contiguous; use numpy.ascontiguousarray."
        )
    for name, a, kind in (("labels", labels, np.int32), ("distances", distances, np.float64)):
        if a is not None and (a.dtype != kind or a.shape != X.shape[:1]):
            raise ParameterError(
                f"{name} is {a.dtype} of the shape {a.shape}; "
                f"accepted: {np.dtype(kind)} of the shape {X.shape[:1]}."
            )
    origin = middle(centers, X.dtype)
    C = (np.asarray(centers, np.float64) - origin).astype(X.dtype)
    mass, sums = np.zeros(len(C)), np.zeros(C.shape)
    weight = np.empty(0) if weight is None else np.ascontiguousarray(weight, np.float64)
    labels = np.empty(0, np.int32) if labels is None else labels
    distances = np.empty(0) if distances is None else distances
    X, weight = mutable(X), mutable(weight)
    return _assign(X, weight, C, origin, mass, sums, labels, distances), mass, sums


def middle(centers: np.ndarray, dtype: npt.DTypeLike) -> np.ndarray:
    "(feature,) the mean of the centres as `dtype` holds it: what sums are about"
    return np.asarray(centers, np.float64).mean(axis=0).astype(dtype)
