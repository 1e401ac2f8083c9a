"""Sums over rows that linear models learn from

Loss, gradient and curvature of a family of losses, and the scatter of columns.

Each function reads the block once, in tiles that stay in the L2 cache, and returns float64 sums
that add up over blocks. Within a tile products and sums are of the block's own type: over float32
the gradient per row is off by some 1e-7 of the mean of |x · slope|, as scikit-learn's float32
path is; the loss, the intercept's slope and everything between tiles are float64."""

import numpy as np

from ..errors import ParameterError
from .jit import mutable, njit

FAMILIES = {"squared": 0, "logistic": 1, "poisson": 2, "softmax": 3}
SQUARED, LOGISTIC, POISSON = 0, 1, 2
TILE = 32_768  # numbers of a tile: 128 KiB of float32
RUN = 512  # factors 1 + exp(-|margin|), each at most 2, whose product cannot overflow
FAST = {"contract", "reassoc", "nsz", "arcp", "afn"}  # safe where NaN and infinities may occur


# ---- what a tile takes


@njit(fastmath=FAST)
def _dots(X, w, b, out):
    "out[i] = X[i] · w + b"
    rows, features = X.shape
    even = rows - rows % 4
    for i in range(0, even, 4):  # four rows at a time share the reads of w
        s0 = s1 = s2 = s3 = X.dtype.type(0)
        for j in range(features):
            s0 += X[i, j] * w[j]
            s1 += X[i + 1, j] * w[j]
            s2 += X[i + 2, j] * w[j]
            s3 += X[i + 3, j] * w[j]
        out[i], out[i + 1], out[i + 2], out[i + 3] = s0 + b, s1 + b, s2 + b, s3 + b
    for i in range(even, rows):
        s0 = X.dtype.type(0)
        for j in range(features):
            s0 += X[i, j] * w[j]
        out[i] = s0 + b


@njit(fastmath=FAST)
def _pull(X, r, g):
    "g += Xᵀ r"
    rows, features = X.shape
    even = rows - rows % 4
    for i in range(0, even, 4):
        r0, r1, r2, r3 = r[i], r[i + 1], r[i + 2], r[i + 3]
        for j in range(features):
            g[j] += (r0 * X[i, j] + r1 * X[i + 1, j]) + (r2 * X[i + 2, j] + r3 * X[i + 3, j])
    for i in range(even, rows):
        for j in range(features):
            g[j] += r[i] * X[i, j]


@njit
def _scale(X, s, out):
    "out = [X, 1] with row i times s[i]"
    rows, features = X.shape
    for i in range(rows):
        for j in range(features):
            out[i, j] = X[i, j] * s[i]
        out[i, features] = s[i]


# ---- families: the loss of a margin, its slope and its curvature


@njit
def _logistic(z, y):
    """log(1 + exp(z)) - y z, for y of 0 or 1, in two parts

    1 + exp(-|z|), whose logarithm is to be added, and the rest."""
    q = np.exp(-abs(z))
    upper = 1.0 / (1.0 + q)  # probability of the likelier class
    return 1.0 + q, max(z, 0.0) - y * z, (upper if z >= 0 else q * upper) - y, q * upper * upper


@njit
def _poisson(z, y):
    "exp(z) - y z"
    m = np.exp(z)
    return 1.0, m - y * z, m - y, m


@njit
def _squared(z, y):
    "Half the squared error"
    e = z - y
    return 1.0, 0.5 * e * e, e, 1.0


@njit
def _one(z, y, family):
    if family == LOGISTIC:
        return _logistic(z, y)
    return _poisson(z, y) if family == POISSON else _squared(z, y)


@njit
def _slopes(eta, y, weight, r, h, family):
    "Loss of a tile; the slope and curvature of each row in r and h"
    loss = 0.0
    if weight.size == 0:
        for start in range(0, eta.size, RUN):  # one logarithm a run, that of a product
            product = 1.0
            for i in range(start, min(start + RUN, eta.size)):
                factor, part, r[i], h[i] = _one(eta[i], y[i], family)
                product *= factor
                loss += part
            loss += np.log(product)
        return loss
    for i in range(eta.size):
        factor, part, r[i], h[i] = _one(eta[i], y[i], family)
        if weight[i] == 0:
            r[i] = h[i] = 0.0  # not 0 · inf
        else:
            loss += weight[i] * (part + np.log(factor))
            r[i] *= weight[i]
            h[i] *= weight[i]
    return loss


@njit
def _single(X, y, weight, w, b, family, gradient, hessian):
    """Loss

    Adds to gradient (feature + 1) and, unless it is empty, to hessian (feature + 1, feature + 1).
    """
    rows, features = X.shape
    tile = max(16, min(1024, TILE // (features + 1)))
    eta, r, h = np.empty(tile), np.empty(tile), np.empty(tile)
    eta_, r_ = np.empty(tile, X.dtype), np.empty(tile, X.dtype)  # of the type of X
    g = np.empty(features, X.dtype)
    scaled = np.empty((tile if hessian.size else 0, features + 1), X.dtype)
    loss = 0.0
    for start in range(0, rows, tile):
        n = min(tile, rows - start)
        x = X[start : start + n]
        _dots(x, w, b, eta_[:n])
        eta[:n] = eta_[:n]
        loss += _slopes(
            eta[:n], y[start : start + n], weight[start : start + n], r[:n], h[:n], family
        )
        r_[:n] = r[:n]
        g[:] = 0
        _pull(x, r_[:n], g)
        for j in range(features):
            gradient[j] += g[j]
        gradient[features] += r[:n].sum()
        if hessian.size:
            r_[:n] = np.sqrt(h[:n])
            _scale(x, r_[:n], scaled[:n])
            hessian += np.dot(scaled[:n].T, scaled[:n])
    return loss


@njit
def _softmax(eta, y, weight, P):
    """Loss of a tile: -log of the share of class y

    Its slopes in P (row, class), which are the shares less one at y."""
    rows, classes = eta.shape
    loss = 0.0
    for i in range(rows):
        top = eta[i, 0]
        for k in range(1, classes):
            top = max(top, eta[i, k])
        total = 0.0
        for k in range(classes):
            P[i, k] = np.exp(eta[i, k] - top)
            total += P[i, k]
        for k in range(classes):
            P[i, k] /= total
        part = np.log(total) + top - eta[i, y[i]]
        if weight.size == 0:
            loss += part
        elif weight[i] != 0:
            loss += weight[i] * part
    return loss


@njit
def _several(X, y, weight, W, b, gradient, hessian):
    """Loss of softmax

    Adds to gradient (class, feature + 1) and, unless it is empty, to hessian (class · (feature +
    1), the same)."""
    rows, features = X.shape
    classes = len(W)
    tile = max(16, min(1024, TILE // (features + 1)))
    if hessian.size:
        tile = max(16, tile // classes)
    eta, P = np.empty((tile, classes)), np.empty((tile, classes))
    one = np.empty(tile, X.dtype)
    g = np.empty(features, X.dtype)
    curved = tile if hessian.size else 0
    scaled, joint = (
        np.empty((curved, features + 1), X.dtype),
        np.empty((curved, classes * (features + 1)), X.dtype),
    )
    loss = 0.0
    for start in range(0, rows, tile):
        n = min(tile, rows - start)
        x, labels, weights = X[start : start + n], y[start : start + n], weight[start : start + n]
        for k in range(classes):
            _dots(x, W[k], b[k], one[:n])
            eta[:n, k] = one[:n]
        loss += _softmax(eta[:n], labels, weights, P[:n])
        for k in range(classes):
            intercept = 0.0
            for i in range(n):
                r = P[i, k] - (1.0 if labels[i] == k else 0.0)
                if weights.size:
                    r = r * weights[i] if weights[i] != 0 else 0.0
                one[i] = r
                intercept += r
            g[:] = 0
            _pull(x, one[:n], g)
            for j in range(features):
                gradient[k, j] += g[j]
            gradient[k, features] += intercept
        if not hessian.size:
            continue
        for k in range(classes):  # diag(p) - p pᵀ, times x xᵀ
            own = slice(k * (features + 1), (k + 1) * (features + 1))
            for i in range(n):
                one[i] = np.sqrt(P[i, k] * (weights[i] if weights.size else 1.0))
            _scale(x, one[:n], scaled[:n])
            hessian[own, own] += np.dot(scaled[:n].T, scaled[:n])
            for i in range(n):
                one[i] = P[i, k] * (np.sqrt(weights[i]) if weights.size else 1.0)
            _scale(x, one[:n], scaled[:n])
            joint[:n, own] = scaled[:n]
        hessian -= np.dot(joint[:n].T, joint[:n])
    return loss


@njit
def _scatter(X, Y, weight, total, mean, scatter):
    """Adds the rows of [X, Y] to their weight, mean and weighted scatter about the mean

    Tile by tile in float64."""
    # Chan, Golub & LeVeque 1979, eq. 2.1
    rows, features = X.shape
    columns = features + Y.shape[1]
    tile = max(16, min(1024, TILE // columns))
    z, s = np.empty((tile, columns)), np.empty(columns)
    for start in range(0, rows, tile):
        n = min(tile, rows - start)
        z[:n, :features] = X[start : start + n]
        z[:n, features:] = Y[start : start + n]
        mass = 0.0
        s[:] = 0
        for i in range(n):
            w = weight[start + i] if weight.size else 1.0
            mass += w
            if w != 0:
                for j in range(columns):
                    s[j] += w * z[i, j]
        if mass == 0:
            continue
        s /= mass
        for i in range(n):
            root = np.sqrt(weight[start + i]) if weight.size else 1.0
            for j in range(columns):
                z[i, j] = root * (z[i, j] - s[j]) if root != 0 else 0.0
        scatter += np.dot(z[:n].T, z[:n])
        delta, both = s - mean, total + mass
        for i in range(columns):
            for j in range(columns):
                scatter[i, j] += delta[i] * delta[j] * (total * mass / both)
        mean += delta * (mass / both)
        total = both
    return total


# ---- what is called


def _checked(X, weight):
    "Rows and weights as kernels take them; no weights are an empty array"
    if X.dtype not in (np.float32, np.float64):
        raise ParameterError(f"X is {X.dtype}; accepted: float32 and float64.")
    if X.ndim != 2 or not X.flags.c_contiguous:
        raise ParameterError(
            "X must be (row, feature) and C-contiguous; use numpy.ascontiguousarray."
        )
    weight = np.empty(0) if weight is None else np.ascontiguousarray(weight, np.float64)
    return mutable(X), mutable(weight)


def slopes(
    X: np.ndarray,  # (row, feature) float32 or float64, C-contiguous
    y: np.ndarray,  # (row,) targets; for logistic 0 or 1, for softmax the number of the class
    weight: np.ndarray | None,  # (row,) how often a row counts, at least 0; None: once
    # (1, feature + 1) coefficients, the last is the intercept; for softmax (class, feature + 1)
    W: np.ndarray,
    family: str,  # a key of FAMILIES
    curved: bool = False,  # whether to sum the second derivatives too
) -> tuple[float, np.ndarray, np.ndarray]:
    # loss, gradient like W, and the hessian over the ravelled W (empty unless curved); float64
    """Sums over the rows of a block: loss, gradient and curvature

    NaN or infinities in X make the gradient not finite."""
    (X, weight), W = _checked(X, weight), np.asarray(W, np.float64)
    gradient, size = np.zeros(W.shape), W.size if curved else 0
    hessian, own = np.zeros((size, size)), W.astype(X.dtype)
    if family == "softmax":
        loss = _several(
            X,
            mutable(y),
            weight,
            np.ascontiguousarray(own[:, :-1]),
            own[:, -1].copy(),
            gradient,
            hessian,
        )
    else:
        loss = _single(
            X,
            mutable(y),
            weight,
            own[0, :-1].copy(),
            own[0, -1],
            FAMILIES[family],
            gradient[0],
            hessian,
        )
    return loss, gradient, hessian


def scatter(
    X: np.ndarray,  # (row, feature) float32 or float64, C-contiguous
    Y: np.ndarray | None,  # (row, target) of a float type; None: no targets
    weight: np.ndarray | None,  # (row,) how often a row counts, at least 0; None: once
) -> tuple[float, np.ndarray, np.ndarray]:
    # weight of all rows; mean (feature + target,); scatter about the mean, its square; float64
    """Weight, mean and weighted scatter of the columns of [X, Y]. Products are float64

    Relative error some 1e-15 of the largest entry."""
    X, weight = _checked(X, weight)
    Y = np.empty((len(X), 0)) if Y is None else mutable(np.ascontiguousarray(Y, np.float64))
    columns = X.shape[1] + Y.shape[1]
    mean, about = np.zeros(columns), np.zeros((columns, columns))
    return _scatter(X, Y, weight, 0.0, mean, about), mean, about


@njit
def _descend(H, g, w, l1, step, Hs, sweeps, tol):
    features = len(g)
    active = np.ones(features, np.bool_)
    for sweep in range(sweeps):
        largest, everything = 0.0, sweep % 10 == 0
        for j in range(features):
            if not (active[j] or everything) or H[j, j] <= 0:
                continue
            at = w[j] + step[j]
            target = at - (g[j] + Hs[j]) / H[j, j]
            new = np.sign(target) * max(0.0, abs(target) - l1[j] / H[j, j])
            active[j] = new != 0 or l1[j] == 0
            if new != at:
                for i in range(features):
                    Hs[i] += H[j, i] * (new - at)
                step[j] = new - w[j]
                largest = max(largest, abs(new - at) * np.sqrt(H[j, j]))
        if largest <= tol:
            if everything:
                break
            active[:] = True  # so that the next sweep tells whether all are at rest


def descend(
    H: np.ndarray,  # (p, p) curvature, positive semi-definite, float64
    g: np.ndarray,  # (p,) gradient at w
    w: np.ndarray,  # (p,) where the model of the loss is from
    l1: np.ndarray,  # (p,) weights of |w|
    sweeps: int = 10_000,  # at most, and fewer where p is large
    tol: float = 1e-12,  # stop when no coordinate moves the model by more than about its square
) -> np.ndarray:  # step (p,)
    """The step s of least g·s + sᵀHs / 2 + Σ l1 |w + s|

    By coordinate descent over an active set. On the host: H is small."""
    # Friedman, Hastie & Tibshirani 2010, section 2
    step, Hs = np.zeros(len(g)), np.zeros(len(g))
    _descend(
        np.ascontiguousarray(H), g, w, l1, step, Hs, min(sweeps, 100 + 10**9 // max(1, H.size)), tol
    )
    return step
