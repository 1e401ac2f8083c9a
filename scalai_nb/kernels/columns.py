"""Kernels that describe a column

Each is one pass over the values, in tiles that stay in the L1 cache.

A tile is first turned into float64, bits and addresses by loops that LLVM vectorises; counting by
address comes after, value by value. Floats are told apart by the bits of |x| (zero, finite,
INFINITY, above it NaN), so nothing depends on how NaN compares. All take one contiguous
dimension. Sums are of float64 in tiles of 2,048 (lanes of a vector, then tiles joined by Chan's
and Pébay's formulas): their error is that of a pairwise sum, some (TILE / 8 + log2(n / TILE)) ·
1e-16 at worst of the sum of magnitudes."""

from typing import NamedTuple

import numpy as np

from ..errors import ParameterError
from .jit import ask, mutable, njit

TILE = 2048  # values of a tile: its buffers take 56 kB at most
BITS = 15  # of the hash, which choose a cell
CELLS = 1 << BITS  # counters of hashed values, each with a register of HyperLogLog
COUNTABLE = 1 << 25  # values whose count fits into a cell beside its register
INFINITY = np.uint64(0x7FF0000000000000)
MAGNITUDE = np.uint64(0x7FFFFFFFFFFFFFFF)
SUMS = {
    "reassoc",
    "contract",
    "nsz",
    "arcp",
}  # what may be done to sums; NaN and infinities stay what they are
FLOATS, WHOLE = ("f4", "f8"), ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_1, _BIG, _ALL = np.uint64(1), np.int64(2**63 - 1), np.uint64(2**64 - 1)
_REST, _TOP, _SHIFT = np.uint64((1 << 64 - BITS) - 1), np.uint64(64 - BITS), np.uint64(52)
_A, _B, _30, _27, _31, _63 = (
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
    *map(np.uint64, (30, 27, 31, 63)),
)
_EXACT = np.float64(2**53).view(
    np.uint64
)  # from here on an integer is told from its neighbours by its own bits


def _checked(x, accepted=FLOATS + WHOLE):
    "`x`, a contiguous vector of an accepted dtype; bools as bytes"
    if x.dtype.str[1:] not in accepted or not x.dtype.isnative:
        raise ParameterError(
            f"The kernel takes {', '.join(np.dtype(t).name for t in accepted)}, "
            f"not {x.dtype}; convert with astype."
        )
    if x.ndim != 1 or not x.flags.c_contiguous:
        raise ParameterError("The kernel takes one contiguous dimension; pass x.ravel().")
    return mutable(x.view(np.uint8) if x.dtype == bool else x)


@njit(inline="always")
def _ahead(x, start):
    """Fetch the tile of `x` that begins at `start` while the one before it is computed

    The processor does not look beyond a page by itself."""
    for i in range(start, start + TILE, 64 // x.itemsize):
        ask(x, i)


# ---- scan: counts, extremes and moments ----


class Scan(NamedTuple):
    "What one pass finds; of no finite value: n is 0, and the extremes are reversed infinities"

    missing: int  # NaN
    zeros: int
    below: int  # -inf
    above: int  # +inf
    least: float  # of finite values, as greatest; int of whole numbers
    greatest: float
    small: float  # least magnitude but zero; of whole numbers 1
    n: int  # finite values
    mean: float
    # sums of the 2nd to 4th power of the deviations from the mean; infinite or NaN beyond the
    # range of a float
    m2: float
    m3: float
    m4: float


def settled(
    n: int, mean: float, m2: float, m3: float, m4: float
) -> tuple[int, float, float, float, float]:
    """The moments, of which what left the range of a float is infinite (m2) or unknown (m3, m4)

    Whatever happened on the way."""
    return (
        n,
        mean,
        m2 if m2 < np.inf else np.inf,
        m3 if abs(m3) < np.inf else np.nan,
        m4 if m4 < np.inf else np.nan,
    )


@njit(error_model="numpy")
def join(
    n: int,
    mean: float,
    m2: float,
    m3: float,
    m4: float,
    k: int,
    mean_k: float,
    s2: float,
    s3: float,
    s4: float,
) -> tuple:
    "Moments of n values and k more"  # Pébay 2008, SAND2008-6212, eq. 1.5 to 1.7
    if n == 0:
        return k, mean_k, s2, s3, s4
    both, d = n + k, mean_k - mean
    p, q = n / both, k / both
    m4 += (
        s4
        + d * d * d * d * (n * q) * (p * p - p * q + q * q)
        + 6 * d * d * (p * p * s2 + q * q * m2)
        + 4 * d * (p * s3 - q * m3)
    )
    m3 += s3 + d * d * d * (n * q) * (p - q) + 3 * d * (p * s2 - q * m2)
    return (
        both,
        (mean + d * q if abs(d) < np.inf else mean * p + mean_k * q),
        m2 + s2 + d * d * (n * q),
        m3,
        m4,
    )


@njit(error_model="numpy", fastmath=SUMS)
def _powers(t, keep, m, k, zero):
    """Mean of the k values t[:m][keep] and the sums of the powers of their deviations

    A constant has exactly none."""
    s, s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(m):
        s += t[i] - zero if keep[i] else 0.0
    shift = s / k
    for i in range(m):
        d = (t[i] - zero) - shift if keep[i] else 0.0
        e = d * d
        s1 += d
        s2 += e
        s3 += e * d
        s4 += e * e
    d = s1 / k  # what rounding left of the mean
    return zero + (shift + d), s2 - d * s1, s3 - 3 * d * s2, s4 - 4 * d * s3


@njit(error_model="numpy")
def _scan_floats(x):
    """Counts, the keys of the extremes (the bits, as an integer that sorts alike)

    Least magnitude but zero, moments."""
    t, keep = np.empty(TILE), np.empty(TILE, np.bool_)
    u = t.view(np.uint64)
    missing, zeros, above, low, high, small = 0, 0, 0, _BIG, -_BIG, _ALL
    n, mean, m2, m3, m4, zero = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, len(x), TILE):
        m, k, large = min(TILE, len(x) - start), 0, np.int64(0)
        _ahead(x, start + TILE)
        for i in range(m):
            t[i] = x[start + i]
        for i in range(m):
            mag, sign = u[i] & MAGNITUDE, np.int64(u[i]) >> 63
            finite, key = mag < INFINITY, (np.int64(mag) ^ sign) - sign
            keep[i] = finite
            k += finite
            zeros += mag == 0
            missing += mag > INFINITY
            above += (mag == INFINITY) & (sign == 0)
            low = min(low, key if finite else _BIG)
            high = max(high, key if finite else -_BIG)
            large = max(large, np.int64(mag) if finite else 0)
            small = min(small, mag - _1)
        if k == 0:
            continue
        scale = 1.0
        if large >= 0x7F10000000000000:  # 2^1010, from where on sums of differences may overflow
            scale = 16384.0
            for i in range(m):
                t[i] /= scale
        if n == 0:
            for i in range(m - 1, -1, -1):
                zero = t[i] if keep[i] else zero
        mean_k, s2, s3, s4 = _powers(t, keep, m, k, zero / scale if n else zero)
        if n == 0:
            zero *= scale
        n, mean, m2, m3, m4 = join(
            n, mean, m2, m3, m4, k, mean_k * scale, s2 * scale**2, s3 * scale**3, s4 * scale**4
        )
    return (
        missing,
        zeros,
        len(x) - n - missing - above,
        above,
        low,
        high,
        small + _1,
        n,
        mean,
        m2,
        m3,
        m4,
    )


@njit(error_model="numpy")
def _scan_whole(x):
    "Zeros, extremes, moments"
    t, keep = np.empty(TILE), np.ones(TILE, np.bool_)
    zeros, low, high, n, mean, m2, m3, m4 = 0, x[0], x[0], 0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, len(x), TILE):
        m = min(TILE, len(x) - start)
        _ahead(x, start + TILE)
        for i in range(m):
            v = x[start + i]
            t[i] = v
            zeros += v == 0
            low, high = min(low, v), max(high, v)
        mean_k, s2, s3, s4 = _powers(t, keep, m, m, np.float64(x[0]))
        n, mean, m2, m3, m4 = join(n, mean, m2, m3, m4, m, mean_k, s2, s3, s4)
    return zeros, low, high, n, mean, m2, m3, m4


def _float(key: int | np.integer) -> float:
    "The float whose bits, as an integer that sorts alike, are `key`"
    return float(np.copysign(np.int64(abs(key)).view(np.float64), key))


def scan(
    x: np.ndarray,  # (n,) numbers
) -> Scan:
    "Count, extremes and moments in one pass"
    x = _checked(x)
    if x.dtype.kind != "f" and len(x):
        zeros, low, high, *moments = _scan_whole(x)
        return Scan(0, zeros, 0, 0, int(low), int(high), 1, *settled(*moments))
    missing, zeros, below, above, low, high, small, *moments = _scan_floats(
        x if x.dtype.kind == "f" else x.astype(np.float64)
    )
    if not moments[0]:
        return Scan(missing, 0, below, above, np.inf, -np.inf, np.inf, 0, 0.0, 0.0, 0.0, 0.0)
    return Scan(
        missing,
        zeros,
        below,
        above,
        _float(low),
        _float(high),
        _float(small) if 0 < small < INFINITY else np.inf,
        *settled(*moments),
    )


@njit
def _bounds(x):
    low, high = x[0], x[0]
    for v in x:
        low, high = min(low, v), max(high, v)
    return low, high


def bounds(
    x: np.ndarray,  # (n,) whole numbers, at least one
) -> tuple[int, int]:  # least and greatest
    "The range of whole numbers"
    low, high = _bounds(_checked(x, WHOLE))
    return int(low), int(high)


# ---- spread: buckets and hash cells ----


@njit
def _mixed(h, m):
    "Hash the bits h[:m]"
    for i in range(m):  # SplitMix64, Steele et al. 2014
        z = (h[i] ^ (h[i] >> _30)) * _A
        z = (z ^ (z >> _27)) * _B
        h[i] = z ^ (z >> _31)


@njit
def _addressed(h, skip, m, address):
    """Turn the hashes h[:m] into the address of a cell

    And beside it (last 8 bits) the rank that its register takes."""
    for i in range(m):
        address[i] = np.int64(
            ((h[i] & _REST) << _1) + _1
        )  # the exponent of this float is the number of bits up to the leading one
        h[i] = h[i] >> _TOP if not skip[i] else np.uint64(CELLS)
    bits = address.view(np.uint64)
    for i in range(m):
        bits[i] = h[i] << np.uint64(8) | np.uint64(64 - BITS + 1 + 1023) - (bits[i] >> _SHIFT)


@njit
def _counted(at, bits, m, counts, cells):
    "Count the addresses `at`, and in each cell the count (shifted by 6) and the greatest rank"
    for i in range(m):
        counts[at[i]] += np.uint32(1)
        cell, rank = bits[i] >> np.uint64(8), np.uint32(bits[i] & np.uint64(255))
        c = cells[cell] + np.uint32(64)
        old = c & np.uint32(63)
        if rank > old:
            c += rank - old  # seldom after the first values, so the branch is foreseen
        cells[cell] = c


@njit
def _spread_floats(x, shift, low, size, counts, cells):
    "Count floats in `counts`, positive before negative ones, and in `cells`"
    t, h, address, skip, at = (
        np.empty(TILE),
        np.empty(TILE, np.uint64),
        np.empty(TILE),
        np.empty(TILE, np.bool_),
        np.empty(TILE, np.uint32),
    )
    u, bits = t.view(np.uint64), address.view(np.uint64)
    for start in range(0, len(x), TILE):
        m = min(TILE, len(x) - start)
        _ahead(x, start + TILE)
        for i in range(m):
            t[i] = x[start + i] + 0.0  # -0.0 becomes 0.0
        for i in range(m):
            mag = u[i] & MAGNITUDE
            at[i] = min((mag >> shift) - low, size) + (u[i] >> _63) * (size + _1)
            h[i] = u[i]
            skip[i] = mag - _1 >= INFINITY - _1
        _mixed(h, m)
        _addressed(h, skip, m, address)
        _counted(at, bits, m, counts, cells)


@njit
def _spread_whole(x, shift, low, size, counts, cells, linear):
    "The same for whole numbers"
    t, h, address, skip, at = (
        np.empty(TILE),
        np.empty(TILE, np.uint64),
        np.empty(TILE),
        np.zeros(TILE, np.bool_),
        np.empty(TILE, np.uint32),
    )
    u, bits = t.view(np.uint64), address.view(np.uint64)
    for start in range(0, len(x), TILE):
        m = min(TILE, len(x) - start)
        _ahead(x, start + TILE)
        for i in range(m):
            t[i] = x[start + i]
            h[i] = np.uint64(x[start + i])
        for i in range(m):
            mag, own = u[i] & MAGNITUDE, h[i]
            h[i] = u[i] if mag < _EXACT else own
            if linear:
                u[i] = np.uint64(max(np.int64(own), -np.int64(own))) | (own & ~MAGNITUDE)
        for i in range(m):
            at[i] = min(((u[i] & MAGNITUDE) >> shift) - low, size) + (u[i] >> _63) * (size + _1)
        _mixed(h, m)
        _addressed(h, skip, m, address)
        _counted(at, bits, m, counts, cells)


class Spread(NamedTuple):
    "Counts by bucket and by hash"

    # (2, size + 1) int64: of positive and of negative values by magnitude; the last: those
    # outside
    counts: np.ndarray
    cells: (
        np.ndarray
    )  # (CELLS,) int64: values by the first bits of their hash; floats without zeros and infinities
    registers: np.ndarray  # (CELLS,) uint8: the greatest rank in each, for HyperLogLog


def spread(
    x: np.ndarray,  # (n,) numbers; NaN is missing
    shift: int,  # last bits of a magnitude that a bucket leaves open
    low: int,  # the first bucket: magnitude >> shift
    size: int,  # buckets of either sign
    # whether the magnitude is |x| itself (of int64), instead of the bits of the float64 |x|
    linear: bool = False,
) -> Spread:
    """Count values by bucket and by hash, in one pass

    Of floats, zero and infinities count as outside."""
    x, whole = _checked(x, ("i8",) if linear else FLOATS + WHOLE), x.dtype.kind != "f"
    total = np.zeros(2 * (size + 1), np.int64), np.zeros(CELLS, np.int64), np.zeros(CELLS, np.uint8)
    for start in range(0, len(x), COUNTABLE):
        counts, cells = np.zeros(2 * (size + 1), np.uint32), np.zeros(CELLS + 1, np.uint32)
        args = (
            x[start : start + COUNTABLE],
            np.uint64(shift),
            np.uint64(low),
            np.uint64(size),
            counts,
            cells,
        )
        if whole:
            _spread_whole(*args, linear)
        else:
            _spread_floats(*args)
        total[0][:] += counts
        total[1][:] += cells[:-1] >> 6
        np.maximum(total[2], (cells[:-1] & 63).astype(np.uint8), out=total[2])
    return Spread(total[0].reshape(2, -1), *total[1:])


@njit
def _ranks(h, hashed, registers):
    "Raise the registers to the ranks of these bits"
    address, skip, z = np.empty(TILE), np.zeros(TILE, np.bool_), np.empty(TILE, np.uint64)
    bits = address.view(np.uint64)
    for start in range(0, len(h), TILE):
        m = min(TILE, len(h) - start)
        z[:m] = h[start : start + m]
        if not hashed:
            _mixed(z, m)
        _addressed(z, skip, m, address)
        for i in range(m):
            cell, rank = bits[i] >> np.uint64(8), np.uint8(bits[i] & np.uint64(255))
            registers[cell] = max(registers[cell], rank)


def registers(
    # (n,) uint64 that tell values apart: of a number those of its float64, from 2^53 on of the
    # whole number itself
    bits: np.ndarray,
    hashed: bool = False,  # whether they are hashes already
) -> np.ndarray:  # (CELLS,) uint8
    "The registers of HyperLogLog for these values"
    out = np.zeros(CELLS, np.uint8)
    _ranks(_checked(bits, ("u8",)), hashed, out)
    return out


@njit
def _picked(x, whole, heavy, out):
    "Copy the values whose cell is heavy to `out`; how many they are"
    h, address, skip, n = np.empty(TILE, np.uint64), np.empty(TILE), np.empty(TILE, np.bool_), 0
    t, bits = np.empty(TILE), address.view(np.uint64)
    u = t.view(np.uint64)
    for start in range(0, len(x), TILE):
        m = min(TILE, len(x) - start)
        for i in range(m):
            t[i] = x[start + i]
        for i in range(m):
            mag = u[i] & MAGNITUDE
            skip[i] = (mag - _1 >= INFINITY - _1) and not whole
            h[i] = u[i]
        if whole:
            for i in range(m):
                if u[i] & MAGNITUDE >= _EXACT:
                    h[i] = np.uint64(np.int64(x[start + i]))
        _mixed(h, m)
        _addressed(h, skip, m, address)
        for i in range(m):
            out[n] = x[start + i]
            n += heavy[bits[i] >> np.uint64(8)]
    return n


def pick(
    x: np.ndarray,  # (n,) numbers, as `spread` took them
    heavy: np.ndarray,  # (CELLS,) bool, on the host: which cells to take
) -> np.ndarray:  # (k,) of the dtype of `x` and beside it
    """The values, in order, whose hash falls into a heavy cell

    Of floats, zeros, infinities and NaN never do."""
    x, out = _checked(x), np.empty(len(x) + 1, x.dtype)
    return out[: _picked(x, x.dtype.kind != "f", np.append(heavy, False), out)].copy()


# ---- few values: exact counts ----


@njit
def _placed(h, keep, m, table, found, limit, steps):
    """Count h[:m][keep] in the open-addressing table; distinct values so far (limit + 1

    Too many) and steps left."""
    last = np.uint64(len(table) - 1)
    for i in range(m):
        if not keep[i]:
            continue
        key = h[i]
        z = (key ^ (key >> _30)) * _A
        z = (z ^ (z >> _27)) * _B
        slot = (z ^ (z >> _31)) >> np.uint64(48) & last
        while table[slot, 1] and table[slot, 0] != key:
            slot = (slot + _1) & last
            steps -= 1
        if not table[slot, 1]:
            table[slot, 0] = key
            found += 1
            if found > limit:
                return found, steps
        table[slot, 1] += _1
        if steps < 0:
            return limit + 1, steps
    return found, steps


@njit
def _count(x, whole, table, limit):
    "Count in the table, up to one value more than the limit; at most 4 steps a value are walked"
    t, h, keep, found, steps = (
        np.empty(TILE),
        np.empty(TILE, np.uint64),
        np.ones(TILE, np.bool_),
        0,
        4 * len(x) + 4 * len(table),
    )
    u = t.view(np.uint64)
    for start in range(0, len(x), TILE):
        m = min(TILE, len(x) - start)
        _ahead(x, start + TILE)
        if whole:
            for i in range(m):
                h[i] = np.uint64(np.int64(x[start + i]))
        else:
            for i in range(m):
                t[i] = x[start + i] + 0.0  # -0.0 becomes 0.0
            for i in range(m):
                h[i] = u[i] if u[i] != ~MAGNITUDE else np.uint64(0)
                keep[i] = (u[i] & MAGNITUDE) <= INFINITY
        found, steps = _placed(h, keep, m, table, found, limit, steps)
        if found > limit:
            break
    return found


def count(
    x: np.ndarray,  # (n,) numbers; NaN is missing
    limit: int,  # most distinct values
) -> tuple[np.ndarray, np.ndarray] | None:
    # distinct values in ascending order (float64, int64 or uint64) and how often each occurs,
    # on the host; None: there are more
    "Count the distinct values exactly, or find soon that they are too many"
    x = _checked(x)
    table = np.zeros(
        (1 << (4 * limit - 1).bit_length(), 2), np.uint64
    )  # key and count side by side
    if _count(x, x.dtype.kind != "f", table, limit) > limit:
        return None
    keys, counts = table[table[:, 1] > 0].T.copy()
    values = keys.view(
        np.float64 if x.dtype.kind == "f" else np.uint64 if x.dtype == np.uint64 else np.int64
    )
    order = np.argsort(values)
    return values[order], counts[order].view(np.int64)


@njit
def _tally(codes, first, size, counts):
    "Count into four tables in turn, so that equal neighbours need not wait for each other"
    n = len(codes) // 4 * 4
    for i in range(0, n, 4):
        for j in range(4):
            counts[j, min(np.uint64(np.int64(codes[i + j]) - first), size)] += 1
    for i in range(n, len(codes)):
        counts[0, min(np.uint64(np.int64(codes[i]) - first), size)] += 1


@njit
def _tally_wide(codes, first, size, counts):
    for code in codes:
        counts[min(np.uint64(np.int64(code) - first), size)] += 1


def tally(
    codes: np.ndarray,  # (n,) whole numbers
    first: int,  # the least that is counted
    size: int,  # how many numbers are counted, from `first` on
) -> np.ndarray:  # (size + 1,) int64 on the host; the last: those outside
    "How often each of a range of whole numbers occurs"
    codes, least = _checked(codes, WHOLE), np.uint64(first % 2**64).view(np.int64)
    if size > 1 << 14:
        counts = np.zeros(size + 1, np.int64)
        _tally_wide(codes, least, np.uint64(size), counts)
        return counts
    counts = np.zeros((4, size + 1), np.int64)
    _tally(codes, least, np.uint64(size), counts)
    return counts.sum(0)


# ---- buckets on the host: keys in ascending order with their counts ----


@njit
def gathered(
    counts: np.ndarray, low: int, zero: int, below: int, above: int, infinity: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and counts of the buckets in use

    Of `counts` as `spread` returns them, of zero and of both infinities."""
    size = counts.shape[1] - 1
    keys, often, n = np.empty(2 * size + 3, np.int64), np.empty(2 * size + 3, np.int64), 0
    first = 0 if low else 1  # the bucket of zero has both signs
    if low == 0 and size:
        zero = counts[0, 0] + counts[1, 0]
    if below:
        keys[n], often[n], n = -infinity, below, n + 1
    for i in range(size - 1, first - 1, -1):
        if counts[1, i]:
            keys[n], often[n], n = -low - i, counts[1, i], n + 1
    if zero:
        keys[n], often[n], n = 0, zero, n + 1
    for i in range(first, size):
        if counts[0, i]:
            keys[n], often[n], n = low + i, counts[0, i], n + 1
    if above:
        keys[n], often[n], n = infinity, above, n + 1
    return keys[:n].copy(), often[:n].copy()


@njit
def occupied(keys: np.ndarray, shift: int) -> int:
    "How many different keys there are without their last `shift` bits"
    n, last = 0, np.int64(0)
    for i in range(len(keys)):
        key = keys[i] >> shift if keys[i] >= 0 else -(-keys[i] >> shift)
        n += i == 0 or key != last
        last = key
    return n


@njit
def joined(
    a: np.ndarray, m: np.ndarray, b: np.ndarray, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    "The keys of both and their counts (buckets, kinds) summed"
    keys, counts, i, j, k = (
        np.empty(len(a) + len(b), np.int64),
        np.empty((len(a) + len(b), m.shape[1]), np.int64),
        0,
        0,
        0,
    )
    while i < len(a) or j < len(b):
        left, right = (
            j == len(b) or (i < len(a) and a[i] <= b[j]),
            i == len(a) or (j < len(b) and b[j] <= a[i]),
        )
        keys[k] = a[i] if left else b[j]
        for c in range(m.shape[1]):
            counts[k, c] = (m[i, c] if left else 0) + (n[j, c] if right else 0)
        i, j, k = i + left, j + right, k + 1
    return keys[:k].copy(), counts[:k].copy()


@njit
def side_by_side(
    a: np.ndarray, m: np.ndarray, b: np.ndarray, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    "The keys of both, ascending, and the counts (2, keys) of either; 0 where it has not the key"
    size = len(a) + len(b)
    keys, counts, i, j, k = np.empty(size, np.int64), np.zeros((2, size), np.int64), 0, 0, 0
    while i < len(a) or j < len(b):
        left = j == len(b) or (i < len(a) and a[i] <= b[j])
        right = i == len(a) or (j < len(b) and b[j] <= a[i])
        keys[k] = a[i] if left else b[j]
        if left:
            counts[0, k] = m[i]
        if right:
            counts[1, k] = n[j]
        i, j, k = i + left, j + right, k + 1
    return keys[:k], counts[:, :k]


@njit
def shortened(
    keys: np.ndarray, counts: np.ndarray, drop: int
) -> tuple[np.ndarray, np.ndarray]:
    "Ascending keys without the last `drop` bits of their magnitudes, and the sums of their counts"
    found, sums, k = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64), -1
    for i in range(len(keys)):
        key = keys[i] >> drop if keys[i] >= 0 else -(-keys[i] >> drop)
        if k < 0 or found[k] != key:
            k += 1
            found[k], sums[k] = key, 0
        sums[k] += counts[i]
    return found[: k + 1], sums[: k + 1]


@njit
def summed_runs(
    keys: np.ndarray, counts: np.ndarray, ends: np.ndarray, drops: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The different keys of runs that follow one another, and the sums of their counts

    A run is ascending, ends before the place in `ends`, and is `shortened` by the bits in `drops`.
    """
    a, m, start = keys[:0], counts[:0], 0
    for run in range(len(ends)):
        b, n = shortened(keys[start : ends[run]], counts[start : ends[run]], drops[run])
        size = len(a) + len(b)
        both, sums, i, j, k = np.empty(size, np.int64), np.empty(size, np.int64), 0, 0, 0
        while i < len(a) and j < len(b):
            left, right = a[i] <= b[j], b[j] <= a[i]
            both[k] = min(a[i], b[j])
            sums[k] = left * m[i] + right * n[j]
            i, j, k = i + left, j + right, k + 1
        rest = len(a) - i
        both[k : k + rest], sums[k : k + rest], k = a[i:], m[i:], k + rest
        rest = len(b) - j
        both[k : k + rest], sums[k : k + rest], k = b[j:], n[j:], k + rest
        a, m, start = both[:k], sums[:k], ends[run]
    return a, m


# ---- what NumPy does well ----


def unique(
    x: np.ndarray,  # (n,) numbers; NaN is missing
) -> tuple[np.ndarray, np.ndarray]:
    # distinct values in ascending order (float64, int64 or uint64) and how often each occurs, on
    # the host
    "Count the distinct values by sorting, however many there are"
    x = _checked(x)
    x = np.sort(x[~np.isnan(x)] + 0.0 if x.dtype.kind == "f" else x)  # -0.0 becomes 0.0
    first = (
        np.flatnonzero(np.concatenate([[True], x[1:] != x[:-1]]))
        if len(x)
        else np.empty(0, np.int64)
    )
    return x[first].astype(
        np.float64 if x.dtype.kind == "f" else np.uint64 if x.dtype == np.uint64 else np.int64
    ), np.diff(first, append=len(x))


def sample(
    x: np.ndarray,  # (n,) numbers
    size: int,  # at most how many
) -> np.ndarray:  # on the host
    "Values at even distances"
    return _checked(x)[:: max(-(-len(x) // size), 1)]
