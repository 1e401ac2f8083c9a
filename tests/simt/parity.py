"""One table of calls that twin and launcher must answer alike: kernel × type × shape

Nasty values are among them. `CASES` drives the shim's tests and those on a card. A call takes a
module of kernels and `put`, which brings an array to where the module's arrays live; it returns
whatever the kernel returned or wrote. `reference` says the same in plain NumPy and float64, where
that is short.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

SIZES = 0, 1, 33, 2500  # none; one; a warp and a bit; more than one tile or block of everything
FLOATS, WHOLE = (
    ("float32", "float64"),
    ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"),
)
COLUMNS = (
    "float32",
    "float64",
    "int8",
    "int64",
    "uint64",
    "bool",
)  # each width and each sign once; compilation proves the others


@dataclass(frozen=True)
class Case:
    "A call, and how near the results must be: `rtol` of each value, and of its array's largest"

    name: str
    kernels: str  # module of kernels
    call: Callable = field(repr=False)
    rtol: float = 0.0
    reference: Callable | None = field(default=None, repr=False)  # () -> the same
    of_reference: float = 1e-9  # how near the twin must be to that


CASES: list[Case] = []


def add(kernels, name, call, rtol=0.0, reference=None, of_reference=1e-9):
    CASES.append(Case(f"{kernels}.{name}", kernels, call, rtol, reference, of_reference))


def random(seed) -> np.random.Generator:
    return np.random.default_rng(seed)


def flat(result, get=lambda x: x) -> list[np.ndarray]:
    "The arrays and numbers of a result, one after another, on the host; None is an empty array"
    if isinstance(result, (tuple, list)):
        return [a for part in result for a in flat(part, get)]
    return [np.zeros(0) if result is None else np.asarray(get(result))]


def differences(wanted: list, found: list, rtol: float) -> str:
    "What is not alike, in words; empty if nothing is"
    if len(wanted) != len(found):
        return f"{len(found)} results, not {len(wanted)}"
    for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
        if a.shape != b.shape:
            return f"result {i} has shape {b.shape}, not {a.shape}"
        if a.dtype.kind != b.dtype.kind or a.dtype.kind == "f" and a.dtype != b.dtype:
            return f"result {i} is {b.dtype}, not {a.dtype}"
        finite = a[np.isfinite(a)] if a.dtype.kind == "f" else a
        near = (
            rtol * max(abs(float(v)) for v in (finite.min(), finite.max()))
            if rtol and finite.size
            else 0.0
        )
        if (
            not rtol
            and not np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
            or rtol
            and not np.allclose(b, a, rtol, near, equal_nan=True)
        ):
            return f"result {i} is {str(b)[:300]}, not {str(a)[:300]}"
    return ""


# ---- columns


def column(dtype, n, seed=0):
    "Values of which many are equal, some missing, zero, infinite, subnormal or huge"
    r = random(seed)
    x = np.where(r.random(n) < 0.3, r.integers(-5, 6, n), r.normal(0, 40, n))
    if dtype in FLOATS:
        big = 1e30 if dtype == "float32" else 1e300
        for step, value in (
            (7, np.nan),
            (11, 0.0),
            (13, -0.0),
            (301, np.inf),
            (307, -np.inf),
            (311, 1e-40 if dtype == "float32" else 5e-324),
            (997, -big),
        ):
            x[step - 1 :: step] = value
        return x.astype(dtype)
    if dtype == "bool":
        return x > 0
    x = np.clip(np.abs(x) if dtype[0] == "u" else x, -128, 127).astype(dtype)
    if dtype in ("int64", "uint64") and n > 40:
        x[40::41] = np.iinfo(dtype).max - np.arange(x[40::41].size, dtype=dtype)
    return x


def moments(x):
    "Missing, zeros, -inf, +inf; least and greatest finite; their count and mean"
    v = x.astype(np.float64)
    ok = v[np.isfinite(v)]
    if not ok.size:
        return int(np.isnan(v).sum()), 0, int((v == -np.inf).sum()), int((v == np.inf).sum()), 0
    return (
        int(np.isnan(v).sum()),
        int((ok == 0).sum()),
        int((v == -np.inf).sum()),
        int((v == np.inf).sum()),
        ok.size,
        ok.mean(),
        ((ok - ok.mean()) ** 2).sum(),
    )


def distinct(x):
    "Values, as the widest type of their kind, and counts"
    x = x.astype(
        {"f": np.float64, "u": np.uint64 if x.dtype == np.uint64 else np.int64}.get(
            x.dtype.kind, np.int64
        )
    )
    return np.unique(np.where(x == 0, x.dtype.type(0), x)[~np.isnan(x)], return_counts=True)


def few(scan):
    return (*scan[:4], scan.n) + ((scan.mean, scan.m2) if scan.n else ())


for dtype in COLUMNS:
    for n in SIZES:
        x = column(dtype, n)
        add("columns", f"scan {dtype} {n}", lambda k, put, x=x: k.scan(put(x)), 1e-9)
        add(
            "columns",
            f"count {dtype} {n}",
            lambda k, put, x=x: k.count(put(x), 4096),
            reference=lambda x=x: distinct(x),
        )
        add(
            "columns",
            f"unique {dtype} {n}",
            lambda k, put, x=x: k.unique(put(x)),
            reference=lambda x=x: distinct(x),
        )
        add("columns", f"count to its limit {dtype} {n}", lambda k, put, x=x: k.count(put(x), 6))
        add(
            "columns",
            f"spread {dtype} {n}",
            lambda k, put, x=x: k.spread(put(x), 45, 1020 << 7, 1500),
        )
        add(
            "columns",
            f"spread into many buckets {dtype} {n}",
            lambda k, put, x=x: k.spread(put(x), 42, 1000 << 10, 9000),
        )
        if n:
            add(
                "columns",
                f"pick {dtype} {n}",
                lambda k, put, x=x: k.pick(put(x), random(1).random(1 << 15) < 0.5),
            )
        if dtype not in FLOATS:
            add("columns", f"tally {dtype} {n}", lambda k, put, x=x: k.tally(put(x), -3, 50))
            add(
                "columns",
                f"tally into many {dtype} {n}",
                lambda k, put, x=x: k.tally(put(x), -3, 20_000),
            )
            if n:
                add(
                    "columns",
                    f"bounds {dtype} {n}",
                    lambda k, put, x=x: k.bounds(put(x)),
                    reference=lambda x=x: (int(x.min()), int(x.max())),
                )
for n in SIZES:
    x = column("int64", n, 3)
    add(
        "columns",
        f"spread of magnitudes {n}",
        lambda k, put, x=x: k.spread(put(x), 2, 0, 50, linear=True),
    )
    u = random(4).integers(0, 2**63, n).astype(np.uint64)
    add(
        "columns",
        f"registers {n}",
        lambda k, put, u=u: (k.registers(put(u)), k.registers(put(u), hashed=True)),
    )
    for dtype in FLOATS:
        plain = random(n).normal(3, 2, n).astype(dtype)
        add(
            "columns",
            f"moments {dtype} {n}",
            lambda k, put, x=plain: few(k.scan(put(x))),
            1e-9,
            lambda x=plain: moments(x),
        )
for dtype in FLOATS:
    add(
        "columns",
        f"scan of a column that starts off a vector {dtype}",
        lambda k, put, x=column(dtype, 5001, 5): k.scan(put(x)[1:]),
        1e-9,
    )
    add(
        "columns",
        f"scan of a constant {dtype}",
        lambda k, put, x=np.full(5000, 0.1, dtype): k.scan(put(x)),
        1e-12,
    )
    add(
        "columns",
        f"scan of nothing but missing {dtype}",
        lambda k, put, x=np.full(70, np.nan, dtype): k.scan(put(x)),
    )
    add(
        "columns",
        f"spread of a constant {dtype}",
        lambda k, put, x=np.full(600, 0.1, dtype): k.spread(put(x), 45, 1020 << 7, 1500),
    )
add(
    "columns",
    "scan at the end of the range",
    lambda k, put: k.scan(put(np.array([1.7e308, -1.7e308, 1.0] * 5)))[:8],
)


# ---- scores


def scored(n, dtype, seed=0):
    "Labels, scores with piles at 0, 1 and round numbers, weights some of which are 0"
    r = random(seed)
    s = r.random(n)
    for step, value in ((10, 0.0), (11, 1.0), (101, 1e-30), (13, 0.5)):
        s[step - 1 :: step] = value
    s[::3] = s[::3].round(1)
    w = r.random(n)
    w[::9] = 0
    return (r.random(n) < s).astype(np.int8), s.astype(dtype), w


def losses(y, s, w, eps):
    "Rows, log loss and Brier"
    p = np.clip(np.where(y == 1, s.astype(float), 1 - s.astype(float)), eps, 1 - eps)
    w = np.ones(len(y)) if w is None else w
    return len(y), -(w * np.log(p)).sum(), (w * (s.astype(float) - y) ** 2).sum()


for dtype in FLOATS:
    for n in SIZES:
        y, s, w = scored(n, dtype)
        groups = random(2).integers(0, 4, n).astype(np.int32)
        for weight in (None, w):
            said = f"{dtype} {n}{'' if weight is None else ' weighted'}"

            def given(put, weight=weight):
                return None if weight is None else put(weight)

            for bits in (11, 10, 6):
                add(
                    "scores",
                    f"tally {bits} {said}",
                    lambda k, put, y=y, s=s, bits=bits, given=given: k.tally(
                        put(y), put(s), given(put), 2**-24, bits
                    ),
                    1e-11,
                )
            add(
                "scores",
                f"losses {said}",
                lambda k, put, y=y, s=s, given=given: (lambda t: (t.rows, t.log_loss, t.brier))(
                    k.tally(put(y), put(s), given(put), 2**-24, 6)
                ),
                1e-11,
                lambda y=y, s=s, w=weight: losses(y, s, w, 2**-24),
            )
            wanted = np.array([True, False, True, True])
            add(
                "scores",
                f"tally_by {said}",
                lambda k, put, g=groups, y=y, s=s, given=given, b=wanted: k.tally_by(
                    put(g), put(y), put(s), given(put), 2**-24, 6, b
                ),
                1e-11,
            )
            if n == 33:
                continue
            for limit in (5, 5000):
                over = np.array([False, False, True, False])
                add(
                    "scores",
                    f"distinct {limit} by group {said}",
                    lambda k, put, g=groups, y=y, s=s, given=given, o=over, limit=limit: k.distinct(
                        put(g), put(y), put(s), given(put), limit, o
                    ),
                    1e-12,
                )
                if n:
                    add(
                        "scores",
                        f"distinct {limit} {said}",
                        lambda k, put, y=y, s=s, given=given, limit=limit: k.distinct(
                            None, put(y), put(s), given(put), limit, np.zeros(1, bool)
                        ),
                        1e-12,
                    )
    y, s, w = scored(300, dtype)
    s[3], s[4], s[5], w[6], w[7], y[8] = np.nan, -1, 2, -1, np.inf, 3
    add(
        "scores",
        f"what makes no sense {dtype}",
        lambda k, put, y=y, s=s, w=w: (
            k.tally(put(y), put(s), put(w), 2**-24, 6).bad,
            k.tally(put(y), put(s), None, 2**-24, 6).bad,
        ),
    )


pile = np.where(np.arange(250_000) % 2000 == 0, 0.7, 0.3).astype(
    np.float32
)  # of one score more than 16 bits hold, in each of three blocks
add(
    "scores",
    "tally 10 of a pile",
    lambda k, put, s=pile: k.tally(
        put((np.arange(len(s)) % 10 == 0).astype(np.int8)), put(s), None, 2**-24, 10
    ),
    1e-11,
)


def classified(n, classes, dtype):
    "Labels, rows of scores that add up to 1 with equal ones among them, weights"
    r = random(classes)
    s = r.random((n, classes)).round(1) + 0.01
    w = r.random(n)
    w[::7] = 0
    return (
        r.integers(0, classes, n).astype(np.int32),
        (s / s.sum(axis=1, keepdims=True)).astype(dtype),
        w,
    )


for dtype in FLOATS:
    for n in SIZES:
        for classes in (1, 3, 100):
            y, s, w = classified(n, classes, dtype)
            if n == 33:
                y[4], s[5, 0], w[6], s[7, 0] = classes, np.nan, -1, 0.9
            add(
                "scores",
                f"classify {classes} {dtype} {n}",
                lambda k, put, y=y, s=s, n=n: k.classify(put(y), put(s), None, 2**-24, 1e-3)[
                    4 * (n == 33) :
                ],
                1e-11,
            )
            add(
                "scores",
                f"classify {classes} {dtype} {n} weighted",
                lambda k, put, y=y, s=s, w=w, n=n: k.classify(put(y), put(s), put(w), 2**-24, 1e-3)[
                    4 * (n == 33) :
                ],
                1e-11,
            )
        t, p, w = (
            random(n).normal(3, 2, n).astype(dtype),
            random(n + 1).normal(3, 2, n),
            random(n + 2).random(n),
        )
        p[::9] = t[::9]
        for prediction in (p, p.astype("float32")):
            for weight in (None, w):
                said = f"{dtype} of {prediction.dtype} {n}{'' if weight is None else ' weighted'}"
                add(
                    "scores",
                    f"errors {said}",
                    lambda k, put, t=t, p=prediction, w=weight: k.errors(
                        put(t), put(p), None if w is None else put(w), w is None
                    ),
                    1e-10,
                )
    t, p, w = np.ones(50, dtype), np.zeros(50, dtype), np.ones(50)
    t[3], p[4], p[5], w[6] = np.inf, np.nan, -np.inf, -1
    add(
        "scores",
        f"errors that make no sense {dtype}",
        lambda k, put, t=t, p=p, w=w: (
            k.errors(put(t), put(p), put(w), False).bad,
            k.errors(put(t), put(p), None, True).bad,
        ),
    )


# ---- features


def written(shape, dtype, put):
    return put(np.full(shape, 77, dtype))


def numbers(k, put, x, **words):
    out = written(x.shape, "float32", put)
    k.number(put(x), out, **words)
    return out


def less(x, centre):
    with np.errstate(over="ignore"):
        return (np.float64(x) - centre).astype(np.float32)


for dtype in FLOATS:
    for n in SIZES:
        x = column(dtype, n)
        add(
            "features",
            f"number {dtype} {n}",
            lambda k, put, x=x: numbers(
                k, put, x, fill=0.5, low=-60, high=50, shift=1.25, scale=3.5
            ),
            reference=lambda x=x: (
                (
                    np.clip(np.where(np.isnan(x), 0.5, x), -60, 50).astype(np.float32)
                    - np.float32(1.25)
                )
                / np.float32(3.5),
            ),
            of_reference=1e-6,
        )
        add(
            "features",
            f"number, logarithms {dtype} {n}",
            lambda k, put, x=x: numbers(k, put, x, log=True),
            2e-7,
        )

        def centred(k, put, x=x, log=False):
            out = written(x.shape, "float32", put)
            k.centred(put(x), out, 1e3 + 0.3, log)
            return out

        add(
            "features",
            f"centred {dtype} {n}",
            centred,
            reference=lambda x=x: less(x, 1e3 + 0.3),
        )
        add(
            "features",
            f"centred, logarithms {dtype} {n}",
            lambda k, put, x=x, centred=centred: centred(k, put, x, log=True),
            2e-7,
        )

        def missing(k, put, x=x):
            out = written(x.shape, "float32", put)
            k.missing(put(x), out)
            return out

        add(
            "features",
            f"missing {dtype} {n}",
            missing,
            reference=lambda x=x: np.isnan(x).astype(np.float32),
        )
for n in SIZES:

    def seconds(k, put, n=n):
        x, out = random(5).integers(0, 2**60, n), written(n, "float32", put)
        x[::5] = np.iinfo(np.int64).min
        k.seconds(put(x), out, 1e9, 1.0e8)
        return out

    add("features", f"seconds {n}", seconds)

    def bucket(k, put, n=n):
        out = written(n, "int32", put)
        k.bucket(
            put(column("float32", n).round()),
            put(np.array([-20, -1, 0, 0.5, 3, 40], np.float32)),
            4,
            out,
        )
        return out

    add("features", f"bucket {n}", bucket)
    for dtype in WHOLE:
        if dtype == "uint64":
            continue
        for table in ("int32", "float32"):

            def lookup(k, put, x=column(dtype, n), table=table):
                out = written(x.shape, table, put)
                return k.lookup(put(x), -2, put(np.arange(9, dtype=table) * 3), -7, out), out

            add("features", f"lookup {dtype} {table} {n}", lookup)
    for width in (1, 7, 280, 500):

        def assemble(k, put, n=n, width=width):
            r, half, out = random(6), max(width // 2, 3), written((n, width), "float32", put)
            at = np.array([0, 2, 1] if width > 6 else [], np.int64)
            places = np.stack(
                [
                    r.integers(-2, half, n),
                    r.integers(half, width, n) if width > half else np.full(n, -1),
                    np.full(n, -2),
                ]
            ).astype(np.int32)
            places[0][places[0] < 3] = -1  # no two write one cell
            k.assemble(
                put(r.normal(size=(len(at), n)).astype(np.float32)), put(at), put(places), out
            )
            return out

        add("features", f"assemble {width} {n}", assemble)


# ---- linear


def rows(n, d, dtype, seed=0):
    "Features, weights of which some are 0"
    r = random(seed)
    w = r.random(n)
    w[::5] = 0
    return r.normal(size=(n, d)).astype(dtype), w


def slopes_of(X, y, weight, W, family):
    "Loss and gradient in float64"
    X = np.column_stack([X.astype(float), np.ones(len(X))])
    z, w = X @ W[0], np.ones(len(X)) if weight is None else weight
    loss, slope = {
        "logistic": lambda: (np.logaddexp(0, z) - y * z, 1 / (1 + np.exp(-z)) - y),
        "poisson": lambda: (np.exp(z) - y * z, np.exp(z) - y),
        "squared": lambda: ((z - y) ** 2 / 2, z - y),
    }[family]()
    return float((w * loss).sum()), ((w * slope) @ X)[None]


for dtype in FLOATS:
    near = 2e-5 if dtype == "float32" else 1e-10
    for n, d in ((0, 3), (1, 1), (300, 5), (700, 50), (40, 100), (90, 200), (30, 300)):
        X, w = rows(n, d, dtype)
        y, classes = (random(1).random(n) < 0.4).astype(float), random(2).integers(0, 3, n)
        W, several = (
            random(3).normal(size=(1, d + 1)) / np.sqrt(d),
            random(4).normal(size=(3, d + 1)) / np.sqrt(d),
        )
        for weight in (None, w):
            said = f"{dtype} {n} × {d}{'' if weight is None else ' weighted'}"

            def given(put, weight=weight):
                return None if weight is None else put(weight)

            for family in ("squared", "logistic", "poisson"):
                add(
                    "linear",
                    f"slopes {family} {said}",
                    lambda k, put, X=X, y=y, given=given, W=W, f=family: k.slopes(
                        put(X), put(y), given(put), W, f
                    )[:2],
                    near,
                    lambda X=X, y=y, w=weight, W=W, f=family: slopes_of(X, y, w, W, f),
                    near,
                )
                if d <= 5:
                    add(
                        "linear",
                        f"curvature {family} {said}",
                        lambda k, put, X=X, y=y, given=given, W=W, f=family: k.slopes(
                            put(X), put(y), given(put), W, f, curved=True
                        ),
                        near,
                    )
            if d <= 50:
                add(
                    "linear",
                    f"slopes softmax {said}",
                    lambda k, put, X=X, y=classes, given=given, W=several, d=d: k.slopes(
                        put(X), put(y), given(put), W, "softmax", curved=d <= 5
                    ),
                    near,
                )
                add(
                    "linear",
                    f"scatter {said}",
                    lambda k, put, X=X, y=y, given=given: k.scatter(
                        put(X), put(y[:, None]), given(put)
                    ),
                    1e-10,
                )


# ---- clusters

for dtype in FLOATS:
    near = 2e-5 if dtype == "float32" else 1e-10
    for n, d, clusters in ((0, 2, 3), (1, 1, 1), (500, 3, 2), (200, 40, 50), (60, 100, 70)):
        X, w = rows(n, d, dtype)
        for weight in (None, w):

            def assign(k, put, X=X, weight=weight, c=random(7).normal(size=(clusters, d)), n=n):
                labels, distances = put(np.full(n, 77, np.int32)), put(np.full(n, 77.0))
                return (
                    k.assign(put(X), None if weight is None else put(weight), c, labels, distances),
                    labels,
                    distances,
                    k.assign(put(X), None, c),
                )

            add(
                "clusters",
                f"assign {dtype} {n} × {d} to {clusters}{'' if weight is None else ' weighted'}",
                assign,
                near,
            )


# ---- groups

for dtype in ("float32", "float64", "int16", "uint32", "int64", "uint64", "bool"):
    for n in SIZES:
        for groups in (1, 40, 5000):
            codes = random(8).integers(0, groups, n).astype("int64" if groups == 40 else "int32")
            add(
                "groups",
                f"fold {dtype} {n} into {groups}",
                lambda k, put, x=column(dtype if dtype != "int16" else "int8", n).astype(dtype),
                       c=codes, groups=groups: k.fold(put(c), put(x), groups),
                1e-9,
            )  # fmt: skip


def times(k, put):
    x = random(9).integers(-(2**40), 2**60, 500)
    x[::5] = np.iinfo(np.int64).min
    return k.fold(put(random(8).integers(0, 3, 500).astype(np.int32)), put(x), 3, nat=True)


add("groups", "fold of times", times, 1e-9)
for n in SIZES:

    def periods(k, put, n=n):
        x = random(11).integers(-(10**6), 10**6, n)
        x[::5] = np.iinfo(np.int64).min
        return k.periods(put(x), 1000), k.periods(put(x), 7, 500), k.periods(put(x[:1]), 7)

    add("groups", f"periods {n}", periods)
