"""Planted bugs: what is done to the source text, and which check must notice it

`memory`: AddressSanitizer or UBSan · `races`: the race checker · `shim`: the shim's own rules
(barriers, masks, argument types) · `result`: a result that differs from the twin's · none: what no
check can notice, as the shim runs one thread at a time between barriers and shuffles, on small data
and on the host's memory.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    "`old` (which the source has) becomes `new`; the parity case runs with it in every order"

    what: str
    kernels: str
    old: str
    new: str
    case: str  # name in parity.CASES
    instances: tuple[str, ...]  # that the case launches
    caught: str | None


SUM = (
    "  v = warp_sum(v);\n"
    "  __syncthreads();  // `part` may still be read by a sum before this one\n"
    "  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = v;\n"
    "  __syncthreads();\n"
)
SCAN, SPREAD, GRADIENT = ("scan<float>",), ("spread<float, false>",), ("gradient<float, 2>",)
TALLY = ("tally<signed char>",)

BUGS = [
    Bug(
        "a __syncthreads is missing between the warps' sums and their sum",
        "columns",
        SUM,
        SUM.replace("= v;\n  __syncthreads();\n", "= v;\n"),
        "columns.scan float32 2500",
        SCAN,
        "races",
    ),
    Bug(
        "a __syncthreads is missing before shared memory is used again",
        "columns",
        SUM,
        SUM.replace("  __syncthreads();  // `part`", "  // `part`"),
        "columns.scan float32 2500",
        SCAN,
        "races",
    ),
    Bug(
        "a broadcast does not wait for its value",
        "columns",
        "  if (threadIdx.x == 0) one[0] = v;\n  __syncthreads();\n",
        "  if (threadIdx.x == 0) one[0] = v;\n",
        "columns.scan float32 2500",
        SCAN,
        "races",
    ),
    Bug(
        "warps add to the sums of a block at once",
        "linear",
        "    if (turn == warp) {",
        "    if (turn == 0) {",
        "linear.slopes logistic float32 700 × 50",
        GRADIENT,
        "races",
    ),
    Bug(
        "the last index is one too many",
        "features",
        "for (i64 i = position(); i < n; i += stride()) {\n    float v = (float)x[i];",
        "for (i64 i = position(); i <= n; i += stride()) {\n    float v = (float)x[i];",
        "features.number float32 2500",
        ("number<float, false>",),
        "memory",
    ),
    Bug(
        "the tail of a column is read as if it were a whole tile",
        "columns",
        "if (start + (i64)blockDim.x * V <= n && aligned",
        "if (aligned",
        "columns.scan float32 2500",
        SCAN,
        "memory",
    ),
    Bug(
        "the tail of a column is left out",
        "columns",
        "i64 tiles = (n + (i64)blockDim.x * V - 1) / ((i64)blockDim.x * V);",
        "i64 tiles = n / ((i64)blockDim.x * V);",
        "columns.scan float32 2500",
        SCAN,
        "result",
    ),
    Bug(
        "vectors are loaded from where none may begin",
        "columns",
        "<= n && aligned<Pack<T, N>>(x + start)) {",
        "<= n) {",
        "columns.scan of a column that starts off a vector float32",
        SCAN,
        "memory",
    ),
    Bug(
        "the stride of a row is that of another matrix",
        "linear",
        "X[(row + r) * features + j]",
        "X[(row + r) * (features + 1) + j]",
        "linear.slopes logistic float32 700 × 50",
        GRADIENT,
        "memory",
    ),
    Bug(
        "blocks go on by one block, not by the grid",
        "columns",
        "{ return (i64)gridDim.x * blockDim.x; }",
        "{ return blockDim.x; }",
        "columns.tally int8 2500",
        TALLY,
        "result",
    ),
    Bug(
        "a histogram's addition in shared memory is not atomic",
        "columns",
        "{ atomicAdd(&counts[at], (T)more); }",
        "{ counts[at] += (T)more; }",
        "columns.tally int8 2500",
        TALLY,
        "races",
    ),
    Bug(
        "blocks add their histograms to the total without atomics",
        "columns",
        "if (near[i]) atomicAdd(&counts[i], (u64)near[i]);",
        "counts[i] += near[i];",
        "columns.tally int8 2500",
        TALLY,
        "races",
    ),
    Bug(
        "a histogram is read while it is still counted",
        "columns",
        (
            "  __syncthreads();\n"
            "  if (near_counts) for (i64 i = threadIdx.x; i <= (i64)size; i += blockDim.x) if"
        ),
        "  if (near_counts) for (i64 i = threadIdx.x; i <= (i64)size; i += blockDim.x) if",
        "columns.tally int8 2500",
        TALLY,
        "races",
    ),
    Bug(
        "a plain read meets an atomic write",
        "columns",
        "if (PEEK(&registers[cell_of(z)]) <",
        "if (registers[cell_of(z)] <",
        "columns.registers 2500",
        ("ranks",),
        "races",
    ),
    Bug(
        "a maximum is read, compared and written in three steps",
        "groups",
        "if (key > PEEK(&high[g])) atomicMax(&high[g], key);",
        "if (key > high[g]) high[g] = key;",
        "groups.fold float32 2500 into 40",
        ("first<long long, float>", "second<long long, float>"),
        "races",
    ),
    Bug(
        "shared memory is not set to 0",
        "columns",
        (
            "  if (near_counts) for (i64 i = threadIdx.x; i <= (i64)size; i += blockDim.x) "
            "near[i] = 0;\n"
        ),
        "",
        "columns.tally int8 2500",
        TALLY,
        "result",
    ),
    Bug(
        "part of the tile is not set to 0",
        "features",
        "i < ROWS * pitch; i += blockDim.x) tile[i] = 0",
        "i < ROWS * pitch - 9; i += blockDim.x) tile[i] = 0",
        "features.assemble 280 2500",
        ("assemble",),
        "races",
    ),
    Bug(
        "too little shared memory: a table one longer than was asked for",
        "columns",
        "i <= (i64)size; i += blockDim.x) near[i] = 0",
        "i <= (i64)size + 1; i += blockDim.x) near[i] = 0",
        "columns.tally int8 2500",
        TALLY,
        "memory",
    ),
    Bug(
        "a shuffle that only some lanes of its mask reach",
        "columns",
        "return threadIdx.x < WARP ? warp_sum(v) : v;",
        "return threadIdx.x < blockDim.x / WARP ? warp_sum(v) : v;",
        "columns.scan float32 2500",
        SCAN,
        "shim",
    ),
    Bug(
        "lanes without a row leave before a ballot",
        "columns",
        "    i64 at = i < n ?",
        "    if (i >= n) break;\n    i64 at = i < n ?",
        "columns.tally int8 2500",
        TALLY,
        "shim",
    ),
    Bug(
        "a barrier that only some threads reach",
        "features",
        "      if (lane < high)\n        for (int j = warp; j < m",
        "      if (lane >= high) return;\n      if (lane < high)\n        for (int j = warp; j < m",
        "features.assemble 280 2500",
        ("assemble",),
        "shim",
    ),
    Bug(
        "a warp's lanes wait at two barriers",
        "columns",
        "  if (threadIdx.x == 0) one[0] = v;\n  __syncthreads();\n",
        (
            "  if (threadIdx.x == 0) { one[0] = v; __syncthreads(); }\n  else __syncthreads();\n"
        ).replace("; __syncthreads(); }\n", ";\n __syncthreads(); }\n"),
        "columns.scan float32 2500",
        SCAN,
        "shim",
    ),
    Bug(
        "the kernel takes another type than the launcher passes",
        "linear",
        "const T* __restrict__ W, int features,",
        "const T* __restrict__ W, i64 features,",
        "linear.slopes logistic float32 700 × 50",
        GRADIENT,
        "shim",
    ),
    Bug(
        "sums of a tile are of float32",
        "columns",
        "double shift = everyone(block_sum(s)) / count,",
        "double shift = (float)(everyone(block_sum(s)) / count) + 1e-3f,",
        "columns.scan of a constant float32",
        SCAN,
        "result",
    ),
    Bug(
        "the sign of a shuffle's offset is lost: a lane is left out of the sum",
        "columns",
        "for (int by = WARP / 2; by > 0; by /= 2) v += __shfl_down_sync(ALL, v, by);",
        "for (int by = WARP / 2; by > 1; by /= 2) v += __shfl_down_sync(ALL, v, by);",
        "columns.scan float32 2500",
        SCAN,
        "result",
    ),
    Bug(
        "a counter of 16 bits runs over into its neighbour",
        "scores",
        "if (before < 0x8000 && before + more >= 0x8000)",
        "if (false)",
        "scores.tally 10 of a pile",
        ("tally<float, false>",),
        "result",
    ),
    # what cannot be seen here
    Bug(
        "a lost update: the compare-and-swap is not tried again",
        "columns",
        "    if (seen == now) break;\n    now = seen;\n",
        "    break;\n",
        "columns.spread float32 2500",
        SPREAD,
        None,
    ),
    Bug(
        "indices of 32 bits: wrong from 2^31 values on",
        "columns",
        "{ return (i64)blockIdx.x * blockDim.x + threadIdx.x; }",
        "{ return blockIdx.x * blockDim.x + threadIdx.x; }",
        "columns.tally int8 2500",
        TALLY,
        None,
    ),
    Bug(
        "the rows of a tile lie in one bank: slow, not wrong",
        "features",
        "int pitch = chunk | 1;",
        "int pitch = chunk;",
        "features.assemble 280 2500",
        ("assemble",),
        None,
    ),
]
