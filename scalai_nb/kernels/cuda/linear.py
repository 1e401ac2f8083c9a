"""Sums that linear models learn from, on the device

The functions of `kernels/linear.py`, launched from `linear.cu`.

The gradient of one margin is a kernel that reads X once (up to 256 features; beyond, and for
softmax and curvature, products of matrices are cuBLAS's and only what lies between them is a
kernel). Within RUN rows of a warp sums are of the type of X, beyond it float64, as in the twin;
blocks are added in one order, so a call repeats itself bit for bit."""

import numpy as np

from . import C, Array, FLOATS, NOTHING, blocks, check, host, launch, library, shaped
from ..linear import FAMILIES

ROWS, THREADS = 4, 256  # rows of a warp at a time, as in linear.cu
WIDTHS = 1, 2, 4, 8  # features of a lane that `gradient` is compiled for
CHUNK = 1 << 24  # numbers of a copy of some rows, where curvature needs one
INSTANCES = (
    *(f"gradient<{C[t]}, {k}>" for t in FLOATS for k in WIDTHS),
    *(f"{f}<{C[t]}>" for t in FLOATS for f in ("margins", "shares")),
)


def _taken(X, *rows):
    "X, and vectors of its rows as float64 on the device; None stays None"
    check("X", X, FLOATS, 2)
    for v in rows:
        if v is not None and not isinstance(v, library().ndarray):
            check("a vector of the rows", v, ())
        if v is not None:
            shaped("a vector of the rows", v, X.shape[:1])
    return [
        None if v is None else library().ascontiguousarray(v.astype(np.float64, copy=False))
        for v in rows
    ]


def _gradient(X, y, weight, w, family):
    "Loss and gradient (feature + 1,) of one margin; `w` (feature + 1,) is of the type of X"
    rows, features = X.shape
    width = next(k for k in WIDTHS if features <= 32 * k)
    each = THREADS // 32 * ROWS
    partial = library().zeros((blocks(rows, each), features + 2))
    launch(
        "linear",
        f"gradient<{C[X.dtype.name]}, {width}>",
        rows,
        (
            X,
            y,
            NOTHING if weight is None else weight,
            w,
            np.int32(features),
            np.int64(rows),
            np.int32(FAMILIES[family]),
            partial,
        ),
        each=each,
    )
    total = host(partial.sum(axis=0))
    return float(total[-1]), total[:-1]


def _chunks(X, columns):
    "Slices of the rows of X that are small enough to copy"
    step = max(1, CHUNK // columns)
    return [slice(i, min(i + step, len(X))) for i in range(0, len(X), step)]


def _scaled(x, s):
    "[x, 1] with row i times s[i]"
    out = library().empty((len(x), x.shape[1] + 1), x.dtype)
    out[:, :-1] = x * s[:, None]
    out[:, -1] = s
    return out


def _single(X, y, weight, w, family, gradient, hessian):
    "Loss by products of matrices; adds to gradient and, unless it is empty, to hessian"
    loss = 0.0
    for part in _chunks(X, X.shape[1] + 1):
        x, rows = X[part], part.stop - part.start
        slope, root = library().empty(rows, X.dtype), library().empty(rows, X.dtype)
        partial = library().zeros((blocks(rows, THREADS), 2))
        eta = x @ w[:-1] + w[-1]
        launch(
            "linear",
            f"margins<{C[X.dtype.name]}>",
            rows,
            (
                eta,
                y[part],
                NOTHING if weight is None else weight[part],
                np.int64(rows),
                np.int32(FAMILIES[family]),
                slope,
                root,
                partial,
            ),
        )
        gradient[:-1] += host(x.T @ slope)
        gradient[-1:] += host(partial[:, :1].sum(axis=0))
        loss += float(host(partial[:, 1:].sum(axis=0))[0])
        if hessian.size:
            z = _scaled(x, root)
            hessian += host(z.T @ z)
    return loss


def _several(X, y, weight, W, gradient, hessian):
    "Loss of softmax by products of matrices; adds to gradient and, unless it is empty, to hessian"
    loss, classes, each = 0.0, len(W), X.shape[1] + 1
    for part in _chunks(X, each * (classes if hessian.size else 1)):
        x, rows = X[part], part.stop - part.start
        shares = library().ascontiguousarray(x @ W[:, :-1].T + W[:, -1])
        slope, partial = library().empty_like(shares), library().zeros(blocks(rows, THREADS))
        weights = NOTHING if weight is None else weight[part]
        launch(
            "linear",
            f"shares<{C[X.dtype.name]}>",
            rows,
            (shares, y[part], weights, np.int64(rows), np.int32(classes), slope, partial),
        )
        gradient[:, :-1] += host(slope.T @ x)
        gradient[:, -1] += host(slope.sum(axis=0, dtype=np.float64))
        loss += float(host(partial.sum(keepdims=True))[0])
        if not hessian.size:
            continue
        joint = library().empty((rows, classes * each), X.dtype)
        for k in range(classes):  # diag(p) - p pᵀ, times x xᵀ
            own, one = (
                slice(k * each, (k + 1) * each),
                shares[:, k] if weight is None else shares[:, k] * weights,
            )
            z = _scaled(x, library().sqrt(one).astype(X.dtype, copy=False))
            hessian[own, own] += host(z.T @ z)
            joint[:, own] = _scaled(
                x,
                (shares[:, k] if weight is None else shares[:, k] * library().sqrt(weights)).astype(
                    X.dtype, copy=False
                ),
            )
        hessian -= host(joint.T @ joint)
    return loss


def slopes(
    X: Array, y: Array, weight: Array | None, W: Array, family: str, curved: bool = False
) -> tuple[float, np.ndarray, np.ndarray]:
    """Sums over the rows of a block: loss, gradient and curvature

    NaN or infinities in X make the gradient not finite."""
    y, weight = _taken(X, y, weight)
    W = np.asarray(W, np.float64)
    gradient, size = np.zeros(W.shape), W.size if curved else 0
    hessian, own = np.zeros((size, size)), library().asarray(W.astype(X.dtype))
    if family == "softmax":
        loss = _several(X, y.astype(np.int64), weight, own, gradient, hessian)
    elif curved or X.shape[1] > 32 * WIDTHS[-1]:
        loss = _single(X, y, weight, own[0], family, gradient[0], hessian)
    else:
        loss, gradient[0] = _gradient(X, y, weight, own[0], family)
    return loss, gradient, hessian


def scatter(
    X: Array, Y: Array | None, weight: Array | None
) -> tuple[float, np.ndarray, np.ndarray]:
    """Weight, mean and weighted scatter of the columns of [X, Y]. Products are float64

    Relative error some 1e-15 of the largest entry."""
    (weight,) = _taken(X, weight)
    columns, total = X.shape[1] + (0 if Y is None else Y.shape[1]), 0.0
    mean, about = library().zeros(columns), library().zeros((columns, columns))
    for part in _chunks(X, columns):
        z = X[part].astype(np.float64)
        if Y is not None:
            z = library().concatenate([z, Y[part].astype(np.float64)], axis=1)
        w = library().ones(len(z)) if weight is None else weight[part]
        mass = float(host(w.sum(keepdims=True))[0])
        if mass == 0:
            continue
        z = library().where(
            w[:, None] != 0, z, 0.0
        )  # a row of weight 0 counts nothing, be it infinite
        centre = w @ z / mass
        z = library().where(w[:, None] != 0, z - centre, 0.0) * library().sqrt(w)[:, None]
        delta, both = centre - mean, total + mass
        about += z.T @ z + library().outer(delta, delta) * (
            total * mass / both
        )  # Chan, Golub & LeVeque 1979, eq. 2.1
        mean += delta * (mass / both)
        total = both
    return total, host(mean), host(about)
