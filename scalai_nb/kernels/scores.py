"""Scores and labels counted in one pass

Into bins that are narrow near 0 and near 1, or exactly while they are few; errors likewise.

The bins of a score s < ½ follow the bits of the float64: 2^bits to an octave from ½ down to 2^-25
and, below, where hardly anything lives, 2^(bits-7) to an octave down to 0 (with 6 bits: two
octaves to a bin). A score from ½ on has the bin of 1 - s, mirrored. So there are 64·2^bits bins,
each narrow in proportion to its distance from 0 or 1, and ½ is an edge.

The sums of losses are over non-negative numbers, first within tiles and then over tiles: of n
rows they are off by at most (n / 2048 + 2048)·2^-53 of themselves, 1e-12 for 20 million rows.
Counts are exact; sums of weights are rounded as they are added."""

from typing import Any, NamedTuple

import numpy as np
from numba import extending, types

from ..errors import ParameterError
from .jit import mutable, njit

intrinsic: Any = extending.intrinsic  # numba passes the first argument

TILE = 2048  # rows whose bins and likelihoods are kept at hand
# likelihoods that are multiplied before a logarithm is taken: each is 2^-52 at least, so the
# product does not underflow
FACTORS = 16
FINEST = 998  # biased exponent of the lowest octave with 2^bits bins: 2^-25
FAST = {
    "contract",
    "reassoc",
    "nsz",
}  # what vectorising sums takes; NaN and infinity keep their meaning


class Tally(NamedTuple):
    "What is counted of a block; of a block in groups with a leading axis for them"

    rows: np.ndarray | np.int64
    counts: (
        np.ndarray
    )  # (bins, 2) uint32 or int64, with weights float64: negatives and positives of each bin
    log_loss: np.ndarray | np.float64  # Σ −w ln(likelihood), the likelihood kept `eps` from 0 and 1
    brier: np.ndarray | np.float64  # Σ w (score − label)²
    squares: np.ndarray  # (2,) Σ w² of negatives and of positives; 0 without weights
    # rows with a label other than 0 and 1, a score outside 0 to 1 or NaN, a weight that is
    # negative or not finite
    bad: tuple


def _taken(name: str, x: Any, kinds: str) -> Any:
    """`x` as kernels take it

    With the dtype of one of the letters `kinds`, a bool as int8, a copy if it has strides; None
    as it is."""
    if x is None:
        return None
    x = x.view(np.int8) if x.dtype == bool else x
    if x.dtype.char not in kinds or not x.dtype.isnative:
        raise ParameterError(
            f"A kernel cannot take a {name} of dtype {x.dtype}; accepted: "
            f"{', '.join(np.dtype(k).name for k in kinds)}. Convert it with astype."
        )
    return mutable(np.ascontiguousarray(x))


def _rows(label, score, weight):
    "Columns of a block as kernels take them"
    return _taken("label", label, "b"), _taken("score", score, "fd"), _taken("weight", weight, "d")


def _count_dtype(score, weight):
    "What rows are counted in: 32 bits take half the cache"
    return np.float64 if weight is not None else np.uint32 if len(score) < 2**32 else np.int64


@intrinsic
def _float_bits(typingctx, x):
    "The bits of a float64"

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.int64))

    return types.int64(types.float64), codegen


@njit(inline="always")
def _bin(s, bits):
    "Bin of the float64 `s`; NaN and what is outside 0 to 1 gets one too, at an end"
    high = s >= 0.5
    b = _float_bits(1.0 - s if high else s)
    fine = (b >> (52 - bits)) - (FINEST << bits)
    k = fine + (8 << bits) if fine >= 0 else b >> (59 - bits)
    k = min(max(k, 0), (32 << bits) - 1)
    return (64 << bits) - 1 - k if high else k


@njit
def bins(score: np.ndarray, bits: int) -> np.ndarray:
    "Bin of each float64 score"
    found = np.empty(len(score), np.int64)
    for i in range(len(score)):
        found[i] = _bin(score[i], bits)
    return found


@njit(error_model="numpy", fastmath=FAST)
def _look(label, score, eps, bits, cell, likelihood, error):
    """Cell (twice the bin, and one more for a positive)

    Likelihood and squared error of the rows of a tile; how many labels and scores are bad."""
    bad_labels, bad_scores, top = 0, 0, 1.0 - eps
    for i in range(len(score)):
        s, y = np.float64(score[i]), label[i]
        p = s if y == 1 else 1.0 - s
        bad_labels += (y & 1) != y
        bad_scores += not (s >= 0.0 and s <= 1.0)
        likelihood[i] = min(max(p, eps), top)
        error[i] = (1.0 - p) * (1.0 - p)
        cell[i] = 2 * _bin(s, bits) + (y == 1)
    return bad_labels, bad_scores


@njit(error_model="numpy", fastmath=FAST)
def _weigh(weight, label, squares):
    "Add the squares of the weights of a tile by label; how many are bad"
    bad, negative, positive = 0, 0.0, 0.0
    for i in range(len(weight)):
        w = weight[i]
        bad += not (w >= 0.0 and w < np.inf)
        negative += 0.0 if label[i] == 1 else w * w
        positive += w * w if label[i] == 1 else 0.0
    squares[0] += negative
    squares[1] += positive
    return bad


@njit(error_model="numpy", fastmath=FAST)
def _tally(label, score, weight, eps, bits, counts, squares):
    cell, likelihood, error = np.empty(TILE, np.int32), np.empty(TILE), np.empty(TILE)
    loss, brier, bad_labels, bad_scores, bad_weights = 0.0, 0.0, 0, 0, 0
    for start in range(0, len(score), TILE):
        size = min(TILE, len(score) - start)
        y = label[start : start + size]
        labels, scores = _look(y, score[start : start + size], eps, bits, cell, likelihood, error)
        bad_labels, bad_scores = bad_labels + labels, bad_scores + scores
        tile_loss, tile_brier = 0.0, 0.0
        if weight is None:
            for i in range(size):
                counts[cell[i]] += 1
            for i in range(size):
                tile_brier += error[i]
            likelihood[size:] = 1.0
            for i in range(0, size, FACTORS):
                product = 1.0
                for j in range(FACTORS):
                    product *= likelihood[i + j]
                tile_loss -= np.log(product)
        else:
            w = weight[start : start + size]
            bad_weights += _weigh(w, y, squares)
            for i in range(size):
                counts[cell[i]] += w[i]
            for i in range(size):
                tile_brier += w[i] * error[i]
            for i in range(size):
                tile_loss -= w[i] * np.log(likelihood[i])
        loss, brier = loss + tile_loss, brier + tile_brier
    return loss, brier, (bad_labels, bad_scores, bad_weights)


def tally(
    label: np.ndarray,  # (row,) int8 or bool: 0 or 1
    score: np.ndarray,  # (row,) float32 or float64 from 0 to 1
    weight: np.ndarray | None,  # (row,) float64, or None: 1 each
    eps: float,  # likelihoods are kept this far from 0 and 1, and it is 2^-52 at least
    bits: int,  # 11 for 131,072 bins, 8 for 16,384
) -> Tally:
    """Count scores by bin and label, and sum their losses

    Values that make no sense are counted, and spoil the rest."""
    label, score, weight = _rows(label, score, weight)
    counts, squares = np.zeros((64 << bits) * 2, _count_dtype(score, weight)), np.zeros(2)
    loss, brier, bad = _tally(label, score, weight, eps, bits, counts, squares)
    return Tally(
        np.int64(len(score)),
        counts.reshape(-1, 2),
        np.float64(loss),
        np.float64(brier),
        squares,
        bad,
    )


@njit(error_model="numpy")
def _tally_by(groups, place, label, score, weight, eps, bits, rows, counts, loss, brier, squares):
    cell, likelihood, error = np.empty(TILE, np.int32), np.empty(TILE), np.empty(TILE)
    bad_labels, bad_scores, bad_weights = 0, 0, 0
    product = np.ones(
        len(loss)
    )  # of likelihoods of each group whose logarithm is still to be taken
    for start in range(0, len(score), TILE):
        size = min(TILE, len(score) - start)
        y, group = label[start : start + size], groups[start : start + size]
        labels, scores = _look(y, score[start : start + size], eps, bits, cell, likelihood, error)
        bad_labels, bad_scores = bad_labels + labels, bad_scores + scores
        for i in range(size):
            g = group[i]
            rows[g] += 1
            if weight is None:
                counts[place[g], cell[i]] += 1
                brier[g] += error[i]
                more = product[g] * likelihood[i]
                if more < 1e-280:
                    loss[g] -= np.log(more)
                    more = 1.0
                product[g] = more
            else:
                w = weight[start + i]
                bad_weights += not (w >= 0.0 and w < np.inf)
                counts[place[g], cell[i]] += w
                brier[g] += w * error[i]
                loss[g] -= w * np.log(likelihood[i])
                squares[g, cell[i] & 1] += w * w
    for g in range(len(loss)):
        loss[g] -= np.log(product[g])
    return bad_labels, bad_scores, bad_weights


def tally_by(
    groups: np.ndarray,  # (row,) int32: the group of each row, from 0 to len(binned) - 1
    label: np.ndarray,
    score: np.ndarray,
    weight: np.ndarray | None,
    eps: float,
    bits: int,  # as for `tally`
    binned: np.ndarray,  # (n_groups,) bool: of which groups the bins are wanted
) -> Tally:  # with a leading axis of groups, and in `counts` of those that are wanted
    "As `tally`, for each group of rows"
    (label, score, weight), groups = _rows(label, score, weight), _taken("groups", groups, "i")
    place = np.where(binned, np.cumsum(binned), 0)  # row 0 takes what nobody wants
    n, counts = (
        len(binned),
        np.zeros((1 + np.count_nonzero(binned), (64 << bits) * 2), _count_dtype(score, weight)),
    )
    rows, loss, brier, squares = np.zeros(n, np.int64), np.zeros(n), np.zeros(n), np.zeros((n, 2))
    bad = _tally_by(
        groups, place, label, score, weight, eps, bits, rows, counts, loss, brier, squares
    )
    return Tally(rows, counts[1:].reshape(-1, 64 << bits, 2), loss, brier, squares, bad)


@njit(error_model="numpy")
def _distinct(groups, label, score, weight, limit, over, slots, used, group, found, counts):
    """Distinct scores in the order of their first row, by open addressing

    And how many each group has; how many in all."""
    n, left = 0, len(over)
    for i in range(len(score)):
        g = 0 if groups is None else groups[i]
        if over[g]:
            continue
        s = np.float64(score[i]) + 0.0  # -0.0 is 0.0
        b = _float_bits(s)
        mixed = np.uint64(b ^ (b >> 32) ^ (b >> 15) ^ (np.int64(g) << 20)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        at = np.int64(mixed >> np.uint64(32)) & (len(slots) - 1)
        while slots[at] >= 0 and not (_float_bits(found[slots[at]]) == b and group[slots[at]] == g):
            at = (at + 1) & (len(slots) - 1)
        k = slots[at]
        if k < 0:
            if used[g] == limit:
                over[g], left = True, left - 1
                if left == 0:
                    return n
                continue
            k, slots[at] = n, n
            found[k], group[k], counts[k, 0], counts[k, 1] = s, g, 0, 0
            n, used[g] = n + 1, used[g] + 1
        counts[k, label[i] & 1] += 1 if weight is None else weight[i]
    return n


@njit
def _by_group(group, found, counts, over, at, score, sums):
    """Bring what was found of each group together, from place `at` on

    Without the groups that are `over`."""
    for i in range(len(group)):
        g = group[i]
        if over[g]:
            continue
        score[at[g]], sums[at[g], 0], sums[at[g], 1] = found[i], counts[i, 0], counts[i, 1]
        at[g] += 1


@njit
def _surely_more(score, limit):
    """Whether there are more distinct scores than `limit` for sure

    As many hashes of 20 bits differ. It gives up early where many scores are equal."""
    seen, n = np.zeros(1 << 14, np.uint64), 0
    for i in range(len(score)):
        b = _float_bits(np.float64(score[i]) + 0.0)
        mixed = np.uint64(b ^ (b >> 32) ^ (b >> 15)) * np.uint64(0x9E3779B97F4A7C15)
        word = mixed >> np.uint64(50)
        bit = np.uint64(1) << ((mixed >> np.uint64(44)) & np.uint64(63))
        n += (seen[word] & bit) == 0
        seen[word] |= bit
        if n > limit or (i == limit // 8 and 2 * n < i):
            return n > limit
    return False


def distinct(
    groups: np.ndarray | None,  # (row,) int32 from 0 to len(over) - 1, or None: one group
    label: np.ndarray,
    score: np.ndarray,
    weight: np.ndarray | None,  # as for `tally`
    limit: int,  # most distinct scores of a group
    over: np.ndarray,  # (n_groups,) bool: groups that have more already, and are left out
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    # over: (n_groups,) bool; and of the others, sorted, group: (n,) int32, score: (n,) float64,
    # counts: (n, 2) as `tally`'s
    "Count each distinct score of each group"
    (label, score, weight), groups = _rows(label, score, weight), _taken("groups", groups, "i")
    over = over.copy()
    if groups is None and limit < len(score) and not over[0]:
        over[0] = _surely_more(score, limit)
    most = min(len(score), limit * np.count_nonzero(~over))
    slots, used = (
        np.full(1 << max(int(2 * most - 1).bit_length(), 1), -1, np.int32),
        np.zeros(len(over), np.int64),
    )
    group, found, counts = (
        np.empty(most, np.int32),
        np.empty(most),
        np.empty((most, 2), np.int64 if weight is None else np.float64),
    )
    n = _distinct(groups, label, score, weight, limit, over, slots, used, group, found, counts)
    used[over] = 0
    ends = np.cumsum(used)
    score, sums = np.empty(ends[-1]), np.empty((ends[-1], 2), counts.dtype)
    _by_group(group[:n], found, counts, over, ends - used, score, sums)
    for part in map(slice, ends - used, ends):
        order = np.argsort(score[part])
        score[part], sums[part] = score[part][order], sums[part][order]
    return over, np.repeat(np.arange(len(over), dtype=np.int32), used), score, sums


class Classes(NamedTuple):
    "What is counted of a block with a score for each class"

    # (class, class) rows, or their weights, by label and by the class with the highest score (of
    # equal ones the first)
    confusion: np.ndarray
    # (class,) the same, by how many classes are scored above the label (of equal ones the first
    # are above)
    ranks: np.ndarray
    # (2, 2) Σ w x and Σ w x² of log-loss and Brier score, which is Σ over classes (score −
    # label)²
    losses: np.ndarray
    squares: float  # Σ w²
    # rows with a label that is no class, a score outside 0 to 1 or NaN, scores that do not add up
    # to 1, a bad weight
    bad: tuple


@njit(inline="always")
def _classify_row(s, y):
    """Of the scores `s` of a row with label `y`

    Which is the highest, how many are above the label's, their sum, that of their squares, how
    many are bad."""
    mine, best, highest, rank, outside, total, spread = s[y], 0, s[0], 0, 0, 0.0, 0.0
    for j in range(len(s)):
        x = np.float64(s[j])
        outside += not (x >= 0.0 and x <= 1.0)
        total, spread = total + x, spread + x * x
        rank += (s[j] > mine) | ((s[j] == mine) & (j < y))
        best, highest = (j, s[j]) if s[j] > highest else (best, highest)
    return best, rank, total, spread, outside


@njit(error_model="numpy")
def _classify(label, score, weight, eps, tolerance, confusion, ranks, losses):
    bad_labels, bad_scores, bad_sums, bad_weights, squares = 0, 0, 0, 0, 0.0
    for start in range(0, len(score), TILE):
        log1 = log2 = brier1 = brier2 = 0.0
        for i in range(start, min(start + TILE, len(score))):
            y, w = label[i], 1.0 if weight is None else weight[i]
            bad_weights += not (w >= 0.0 and w < np.inf)
            if y < 0 or y >= score.shape[1]:
                bad_labels += 1
                continue
            best, rank, total, spread, outside = _classify_row(score[i], y)
            bad_scores += outside > 0
            bad_sums += outside == 0 and abs(total - 1.0) > tolerance
            p = np.float64(score[i, y])
            log_loss, brier = (
                -np.log(min(max(p, eps), 1.0 - eps)),
                spread - p * p + (1.0 - p) * (1.0 - p),
            )
            log1, log2, brier1, brier2 = (
                log1 + w * log_loss,
                log2 + w * log_loss * log_loss,
                brier1 + w * brier,
                brier2 + w * brier * brier,
            )
            squares += w * w
            confusion[y, best] += w
            ranks[rank] += w
        losses += np.array([[log1, log2], [brier1, brier2]])
    return squares, (bad_labels, bad_scores, bad_sums, bad_weights)


def classify(
    label: np.ndarray,  # (row,) int32: the number of the class
    score: np.ndarray,  # (row, class) float32 or float64, which add up to 1
    weight: np.ndarray | None,  # (row,) float64, or None: 1 each
    eps: float,  # likelihoods are kept this far from 0 and 1
    tolerance: float,  # by which the sum of the scores of a row may be off
) -> Classes:
    """Count rows by label and prediction, and sum their losses

    Values that make no sense are counted, and spoil the rest."""
    label, score, weight = (
        _taken("label", label, "i"),
        _taken("score", score, "fd"),
        _taken("weight", weight, "d"),
    )
    n, kind = score.shape[1], np.int64 if weight is None else np.float64
    confusion, ranks, losses = np.zeros((n, n), kind), np.zeros(n, kind), np.zeros((2, 2))
    return Classes(
        confusion,
        ranks,
        losses,
        *_classify(label, score, weight, eps, tolerance, confusion, ranks, losses),
    )


ERROR_BITS, OCTAVES = 7, 64  # bins of errors: 2^7 to an octave, from 2^-64 to 2^64
ERRORS = (
    2 * (2 * OCTAVES << ERROR_BITS) + 1
)  # how many there are: of either sign, and for what is nearer to 0


@njit(inline="always")
def _error_bin(x):
    """Bin of the float64 `x`, in the order of the values

    0 has the one in the middle, what is beyond 2^64 the outermost ones."""
    k = (_float_bits(abs(x)) >> (52 - ERROR_BITS)) - ((1023 - OCTAVES) << ERROR_BITS)
    k = min(max(k + 1, 0), 2 * OCTAVES << ERROR_BITS)
    return (2 * OCTAVES << ERROR_BITS) + (k if x > 0.0 else -k)


class Errors(NamedTuple):
    """What is summed of a block of numbers and their predictions

    An error is prediction − target, w its weight or 1."""

    rows: int
    # (9,) Σ of w, w², w·error, w·|error|, w·error², w·error⁴,
    # w·|error| / max(|target|, 2^-52),
    # w·target, w·(target − mean)²
    sums: np.ndarray
    ends: np.ndarray  # (2,) least and greatest error
    counts: np.ndarray  # (ERRORS,) Σ w by bin of the error
    table: (
        np.ndarray
    )  # (ERRORS, 3) Σ w, Σ w·error, Σ w·error² by bin of the prediction; (0, 3) if not wanted
    bad: tuple  # rows with a target that is not finite, such a prediction, a bad weight


@njit(error_model="numpy", fastmath=FAST)
def _tile_errors(target, prediction, weight, error, sums, ends, bad):
    "The errors of a tile; add their sums, their range and how many values are bad to what is there"
    bad_targets = bad_predictions = bad_weights = 0
    w_sum = w2 = e1 = a1 = e2 = e4 = relative = t1 = 0.0
    least, greatest = np.inf, -np.inf
    for i in range(len(target)):
        t, p, w = (
            np.float64(target[i]),
            np.float64(prediction[i]),
            1.0 if weight is None else weight[i],
        )
        bad_targets += not abs(t) < np.inf
        bad_predictions += not abs(p) < np.inf
        bad_weights += not (w >= 0.0 and w < np.inf)
        e = p - t
        error[i] = e
        least, greatest = min(least, e), max(greatest, e)
        w_sum, w2, t1 = w_sum + w, w2 + w * w, t1 + w * t
        e1, a1, e2, e4 = e1 + w * e, a1 + w * abs(e), e2 + w * (e * e), e4 + w * (e * e) * (e * e)
        relative += w * (abs(e) / max(abs(t), 2.0**-52))
    mean, spread = t1 / w_sum if w_sum > 0.0 else 0.0, 0.0
    for i in range(len(target)):
        d = np.float64(target[i]) - mean
        spread += (1.0 if weight is None else weight[i]) * (d * d)
    if sums[0] > 0.0 and w_sum > 0.0:  # Chan, Golub & LeVeque 1979, eq. 2.1
        d = mean - sums[7] / sums[0]
        spread += d * d * (sums[0] * w_sum / (sums[0] + w_sum))
    sums += np.array([w_sum, w2, e1, a1, e2, e4, relative, t1, spread])
    ends[0], ends[1] = min(ends[0], least), max(ends[1], greatest)
    bad += np.array([bad_targets, bad_predictions, bad_weights])


@njit(error_model="numpy")
def _errors(target, prediction, weight, sums, ends, counts, table, bad):
    error = np.empty(TILE)
    for start in range(0, len(target), TILE):
        end = min(start + TILE, len(target))
        w = None if weight is None else weight[start:end]
        _tile_errors(target[start:end], prediction[start:end], w, error, sums, ends, bad)
        for i in range(end - start):
            e, one = error[i], 1.0 if weight is None else weight[start + i]
            counts[_error_bin(e)] += one
            if len(table):
                k = _error_bin(np.float64(prediction[start + i]))
                table[k, 0] += one
                table[k, 1] += one * e
                table[k, 2] += one * (e * e)


def errors(
    target: np.ndarray,  # (row,) float32 or float64, finite
    prediction: np.ndarray,  # (row,) float32 or float64, finite
    weight: np.ndarray | None,  # (row,) float64, or None: 1 each
    by_prediction: bool,  # whether `table` is wanted
) -> Errors:
    """Sum errors, and count them by bins that are within 0.4 % of their middle

    Values that make no sense are counted, and spoil the rest."""
    target, prediction, weight = (
        _taken("target", target, "fd"),
        _taken("prediction", prediction, "fd"),
        _taken("weight", weight, "d"),
    )
    sums, counts, table = (
        np.zeros(9),
        np.zeros(ERRORS),
        np.zeros((ERRORS if by_prediction else 0, 3)),
    )
    ends, bad = np.array([np.inf, -np.inf]), np.zeros(3, np.int64)
    _errors(target, prediction, weight, sums, ends, counts, table, bad)
    return Errors(len(target), sums, ends, counts, table, tuple(bad.tolist()))


# ---- on the host, for the small states of blocks


def occupied(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    "The bins that have any of `counts`, (bins, 2), and what they have, as int64 or float64"
    return _occupied(counts, np.zeros(0, np.float64 if counts.dtype == np.float64 else np.int64))


@njit
def _occupied(counts, like):
    n = 0
    for k in range(len(counts)):
        n += counts[k, 0] != 0 or counts[k, 1] != 0
    found, kept, n = np.empty(n, np.int64), np.empty((n, 2), like.dtype), 0
    for k in range(len(counts)):
        if counts[k, 0] != 0 or counts[k, 1] != 0:
            found[n], kept[n, 0], kept[n, 1], n = k, counts[k, 0], counts[k, 1], n + 1
    return found, kept


@njit
def joined(
    x: np.ndarray, x_counts: np.ndarray, y: np.ndarray, y_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct values of `x` and `y`, which are sorted and may repeat each other

    And the sums of their (n, 2) counts."""
    values, counts = np.empty(len(x) + len(y)), np.empty((len(x) + len(y), 2), x_counts.dtype)
    i = j = n = 0
    while i < len(x) or j < len(y):
        first = j == len(y) or (i < len(x) and x[i] <= y[j])
        second = i == len(x) or (j < len(y) and y[j] <= x[i])
        values[n] = x[i] if first else y[j]
        for k in range(2):
            counts[n, k] = (x_counts[i, k] if first else 0) + (y_counts[j, k] if second else 0)
        i, j, n = i + first, j + second, n + 1
    return values[:n].copy(), counts[:n].copy()


# ---- cells within bins, where scores crowd (`evaluation.crowding`)

HALF = 0x3FE0000000000000  # the bits of ½


@njit(inline="always")
def _key(s):
    """A number below 2^63, in the order of the float64 `s` from 0 to 1; a bin is a range of them

    From ½ on the bits of 1 - s, mirrored; those of ½ itself would end the range of no bin."""
    if s < 0.5:
        return _float_bits(s)
    return 2 * HALF - 1 - min(_float_bits(1.0 - s), HALF - 1)


@njit
def keys(score: np.ndarray) -> np.ndarray:
    "(n,) int64 in the order of float64 scores"
    found = np.empty(len(score), np.int64)
    for i in range(len(score)):
        found[i] = _key(score[i] + 0.0)  # -0.0 is 0.0
    return found


class Cells(NamedTuple):
    "Cells within bins, each cut in equal parts"

    bits: int  # of the bins
    first: np.ndarray  # (bins + 1,) the first cell in each bin or after it
    low: np.ndarray  # (cell,) int64, ascending: least key
    high: np.ndarray  # (cell,) int64: greatest key
    shift: np.ndarray  # (cell,) int64: the lower bits of a key that are equal in a part
    base: np.ndarray  # (cell + 1,) int64: number of the first part


def cells(
    least: np.ndarray,  # (cell,) float64, ascending
    greatest: np.ndarray,  # (cell,) float64 in the same bin
    parts: np.ndarray,  # (cell,) int64: 2^parts at most
    bits: int,  # as for `tally`
) -> Cells:
    "Cells from a least to a greatest score, cut in parts by the next bits of their keys"
    low, high = keys(least), keys(greatest)
    needed = np.frexp((high - low).astype(np.float64))[1]  # bits of the widest offset
    shift = np.maximum(needed - parts, 0)
    base = np.concatenate(([0], np.cumsum(((high - low) >> shift) + 1)))
    first = np.searchsorted(bins(least, bits), np.arange((64 << bits) + 1))
    return Cells(bits, first, low, high, shift, base)


class Recount(NamedTuple):
    "What is counted in parts of cells"

    part: np.ndarray  # (n,) float64, ascending: the numbers of those that have any
    counts: np.ndarray  # (n, 2) int64, with weights float64: negatives and positives
    least: np.ndarray  # (n,) float64: least score that occurs
    greatest: np.ndarray  # (n,) float64: greatest score that occurs


@njit(error_model="numpy")
def _recount(label, score, weight, cells, counts, least, greatest):
    for i in range(len(score)):
        s = np.float64(score[i]) + 0.0  # -0.0 is 0.0
        w = 1 if weight is None else weight[i]
        b = _bin(s, cells.bits)
        at, end = cells.first[b], cells.first[b + 1]
        if at == end or w == 0:
            continue
        key = _key(s)
        while end - at > 1:
            middle = (at + end) >> 1
            if cells.low[middle] <= key:
                at = middle
            else:
                end = middle
        if key < cells.low[at] or key > cells.high[at]:
            continue
        k = cells.base[at] + ((key - cells.low[at]) >> cells.shift[at])
        new = counts[k, 0] == 0 and counts[k, 1] == 0
        least[k] = s if new else min(least[k], s)
        greatest[k] = s if new else max(greatest[k], s)
        counts[k, label[i] & 1] += w


def recount(
    label: np.ndarray,
    score: np.ndarray,
    weight: np.ndarray | None,  # as for `tally`
    cells: Cells,
) -> Recount:
    "Count the rows that are in cells, by part and label"
    label, score, weight = _rows(label, score, weight)
    size = cells.base[-1]
    counts = np.zeros((size, 2), np.int64 if weight is None else np.float64)
    least, greatest = np.empty(size), np.empty(size)
    _recount(label, score, weight, cells, counts, least, greatest)
    found, counts = occupied(counts)
    return Recount(found.astype(np.float64), counts, least[found], greatest[found])


def merge_recounts(a: Recount, b: Recount) -> Recount:
    "What is counted of the rows of both, in parts of the same cells"
    part, counts = joined(a.part, a.counts, b.part, b.counts)
    least, greatest = np.full(len(part), np.inf), np.full(len(part), -np.inf)
    for x in (a, b):
        at = np.searchsorted(part, x.part)
        least[at] = np.minimum(least[at], x.least)
        greatest[at] = np.maximum(greatest[at], x.greatest)
    return Recount(part, counts, least, greatest)
