// Twins: columns.py. `scan` reads a tile of the column into registers, so that the sums of powers are about the tile's own mean; `spread` and
// `tally` count in shared memory where the table fits, else in L2.
#include "common.cuh"

constexpr u64 INFINITY_ = 0x7FF0000000000000ull, MAGNITUDE = 0x7FFFFFFFFFFFFFFFull, EXACT = 0x4340000000000000ull;  // EXACT: the bits of 2^53
constexpr int BITS = 15, CELLS = 1 << BITS;
constexpr i64 BIG = 0x7FFFFFFFFFFFFFFFll;

template <class T> struct Is { static constexpr bool FLOAT = T(0.5) != T(0), SIGNED = T(-1) < T(0); };
__device__ inline u64 bits(double x) { return (u64)__double_as_longlong(x); }
__device__ inline double sortable(i64 key) { return copysign(__longlong_as_double(key < 0 ? -key : key), key < 0 ? -1.0 : 1.0); }

// ---- scan

constexpr int VALUES = 16;  // of a thread; 32 would leave room for one block a multiprocessor, and spill on some cards

// values of a thread of the tile that begins at `start`; which of them are there, a bit each
template <class T, int V> __device__ inline u32 load(const T* __restrict__ x, i64 start, i64 n, T (&v)[V]) {
  constexpr int N = Wide<T>::N;
  if (start + (i64)blockDim.x * V <= n && aligned<Pack<T, N>>(x + start)) {
    const Pack<T, N>* packs = reinterpret_cast<const Pack<T, N>*>(x + start);
#pragma unroll
    for (int k = 0; k < V / N; k++) {
      Pack<T, N> p = packs[threadIdx.x + k * blockDim.x];
#pragma unroll
      for (int e = 0; e < N; e++) v[k * N + e] = p.v[e];
    }
    return (1u << V) - 1;
  }
  u32 there = 0;
#pragma unroll
  for (int k = 0; k < V; k++) {
    i64 i = start + threadIdx.x + (i64)k * blockDim.x;
    v[k] = i < n ? x[i] : T(0);
    if (i < n) there |= 1u << k;
  }
  return there;
}

// moments (tiles, 5): of each tile finite values, mean, sums of the 2nd to 4th power about it
// totals (5): missing, zeros, -inf, +inf, least magnitude but zero (as bits, less one); extremes (2): least and greatest as integers that sort alike
template <class T>
__global__ void __launch_bounds__(256, 1) scan(const T* __restrict__ x, i64 n, double* __restrict__ moments, u64* __restrict__ totals, i64* __restrict__ extremes) {
  constexpr int V = VALUES;
  u64 missing = 0, zeros = 0, below = 0, above = 0, small = ~0ull;
  i64 least = BIG, greatest = -BIG - 1;
  i64 tiles = (n + (i64)blockDim.x * V - 1) / ((i64)blockDim.x * V);
  for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    T v[V];
    u32 there = load(x, tile * blockDim.x * V, n, v), keep = there;
    i64 low = BIG, high = -BIG - 1;
#pragma unroll
    for (int k = 0; k < V; k++) if (there >> k & 1) {
      i64 key;
      if (Is<T>::FLOAT) {
        u64 u = bits((double)v[k]), mag = u & MAGNITUDE;
        bool negative = u >> 63, finite = mag < INFINITY_;
        key = negative ? -(i64)mag : (i64)mag;
        zeros += mag == 0; missing += mag > INFINITY_;
        above += mag == INFINITY_ && !negative; below += mag == INFINITY_ && negative;
        small = min(small, mag - 1);
        if (!finite) { keep &= ~(1u << k); continue; }
      } else {
        key = Is<T>::SIGNED ? (i64)v[k] : (i64)((u64)v[k] ^ 1ull << 63);
        zeros += v[k] == T(0);
      }
      low = min(low, key); high = max(high, key);
    }
    low = everyone(block_fold(low, BIG, [](i64 a, i64 b) { return a < b ? a : b; }));
    high = everyone(block_fold(high, -BIG - 1, [](i64 a, i64 b) { return a < b ? b : a; }));
    least = min(least, low); greatest = max(greatest, high);
    double count = everyone(block_sum((double)__popc(keep)));
    if (count == 0) {
      if (threadIdx.x < 5) moments[tile * 5 + threadIdx.x] = 0;
      continue;
    }
    double zero, top;
    if (Is<T>::FLOAT) { zero = sortable(low); top = fmax(fabs(zero), fabs(sortable(high))); }
    else { zero = Is<T>::SIGNED ? (double)low : (double)((u64)low ^ 1ull << 63); top = 0; }
    double scale = bits(top) >= 0x7F10000000000000ull ? 16384.0 : 1.0, s = 0;  // 2^1010, from where on sums of differences may overflow
    zero /= scale;
#pragma unroll
    for (int k = 0; k < V; k++) if (keep >> k & 1) s += (double)v[k] / scale - zero;
    double shift = everyone(block_sum(s)) / count, p[4] = {0, 0, 0, 0};
#pragma unroll
    for (int k = 0; k < V; k++) if (keep >> k & 1) {
      double d = ((double)v[k] / scale - zero) - shift, e = d * d;
      p[0] += d; p[1] += e; p[2] += e * d; p[3] += e * e;
    }
    block_sums(p);
    if (threadIdx.x == 0) {
      double d = p[0] / count;  // what rounding left of the mean
      double* out = moments + tile * 5;
      out[0] = count; out[1] = (zero + (shift + d)) * scale;
      out[2] = (p[1] - d * p[0]) * (scale * scale);
      out[3] = (p[2] - 3 * d * p[1]) * (scale * scale * scale);
      out[4] = (p[3] - 4 * d * p[2]) * (scale * scale * scale * scale);
    }
  }
  missing = block_sum(missing); zeros = block_sum(zeros); below = block_sum(below); above = block_sum(above);
  small = block_fold(small, ~0ull, [](u64 a, u64 b) { return a < b ? a : b; });
  if (threadIdx.x) return;
  if (missing) atomicAdd(&totals[0], missing);
  if (zeros) atomicAdd(&totals[1], zeros);
  if (below) atomicAdd(&totals[2], below);
  if (above) atomicAdd(&totals[3], above);
  atomicMin(&totals[4], small);
  atomicMin(&extremes[0], least); atomicMax(&extremes[1], greatest);
}

// ---- spread: buckets and hash cells

__device__ inline u64 mixed(u64 h) {  // SplitMix64, Steele et al. 2014
  u64 z = (h ^ h >> 30) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ z >> 27) * 0x94D049BB133111EBull;
  return z ^ z >> 31;
}
__device__ inline u32 cell_of(u64 z) { return (u32)(z >> (64 - BITS)); }
__device__ inline u32 rank_of(u64 z) { return __clzll((long long)((z << BITS >> BITS) << 1 | 1)) - (BITS - 2); }  // leading zeros of the other bits, and one

// what tells a value apart: the bits of its float64, of a large whole number its own; `skip`: a float that is not hashed
template <class T> __device__ inline u64 identity(T x, bool& skip) {
  u64 u = bits((double)x + 0.0), mag = u & MAGNITUDE;  // + 0.0: -0.0 is 0.0
  if (Is<T>::FLOAT) { skip = mag - 1 >= INFINITY_ - 1; return u; }
  skip = false;
  return mag < EXACT ? u : (u64)(i64)x;
}

// a cell holds a count (from bit 6 on) and the greatest rank (below)
__device__ inline void raise(u32* cell, u32 more, u32 rank) {
  u32 now = atomicAdd(cell, more << 6) + (more << 6);
  while ((now & 63) < rank) {
    u32 seen = atomicCAS(cell, now, now - (now & 63) + rank);
    if (seen == now) break;
    now = seen;
  }
}

// counts (2, size + 1) and cells (CELLS,) of at most 2^25 values; either may have a copy in shared memory first
template <class T, bool LINEAR>
__global__ void __launch_bounds__(1024) spread(const T* __restrict__ x, i64 n, u64 shift, u64 low, u64 size, u32* counts, u32* cells, int near_counts, int near_cells) {
  DYNAMIC_SHARED(memory);
  u32* near = reinterpret_cast<u32*>(memory);
  i64 buckets = 2 * (i64)(size + 1);
  u32* c = near_counts ? near : counts;
  u32* h = near_cells ? near + (near_counts ? buckets : 0) : cells;
  i64 all = (near_counts ? buckets : 0) + (near_cells ? CELLS : 0);
  for (i64 i = threadIdx.x; i < all; i += blockDim.x) near[i] = 0;
  __syncthreads();
  for (i64 i = position(); whole_warps(i) < n; i += stride()) {
    bool part = i < n, skip = true;
    T v = part ? x[i] : T(0);
    u64 key = identity(v, skip), u = bits((double)v + 0.0);
    if (LINEAR) { i64 w = (i64)v; u = (w < 0 ? 0 - (u64)w : (u64)w) | ((u64)w & ~MAGNITUDE); }
    i64 at = (i64)(min(((u & MAGNITUDE) >> shift) - low, size) + (u >> 63) * (size + 1));
    count_one(c, at, part);
    if (part && !skip) {
      u64 z = mixed(key);
      raise(&h[cell_of(z)], 1, rank_of(z));
    }
  }
  __syncthreads();
  if (near_counts) for (i64 i = threadIdx.x; i < buckets; i += blockDim.x) if (near[i]) atomicAdd(&counts[i], near[i]);
  if (near_cells) for (int i = threadIdx.x; i < CELLS; i += blockDim.x) if (h[i]) raise(&cells[i], h[i] >> 6, h[i] & 63);
}

__global__ void ranks(const u64* __restrict__ x, i64 n, int hashed, u32* registers) {
  for (i64 i = position(); i < n; i += stride()) {
    u64 z = hashed ? x[i] : mixed(x[i]);
    if (PEEK(&registers[cell_of(z)]) < rank_of(z)) atomicMax(&registers[cell_of(z)], rank_of(z));
  }
}

template <class T> __global__ void mark(const T* __restrict__ x, i64 n, const bool* __restrict__ heavy, bool* __restrict__ out) {
  for (i64 i = position(); i < n; i += stride()) {
    bool skip;
    u64 key = identity(x[i], skip);
    out[i] = !skip && heavy[cell_of(mixed(key))];
  }
}

// ---- exact counts

constexpr u64 FREE = ~0ull;

// keys and counts (size + 1,), size a power of 2; the last is of the key FREE. `found`: distinct keys; beyond `limit` the table is given up
template <class T> __global__ void count(const T* __restrict__ x, i64 n, u64* keys, u64* counts, u64 size, u64* found, u64 limit) {
  for (i64 i = position(); whole_warps(i) < n; i += stride()) {
    if (__any_sync(ALL, PEEK(found) > limit)) return;
    bool part = i < n;
    T v = part ? x[i] : T(0);
    u64 key = Is<T>::FLOAT ? bits((double)v + 0.0) : (u64)(i64)v;  // + 0.0: -0.0 is 0.0
    if (Is<T>::FLOAT && (key & MAGNITUDE) > INFINITY_) part = false;
    u32 peers = __match_any_sync(ALL, key) & __ballot_sync(ALL, part);
    if (!part || __ffs((int)peers) - 1 != (int)(threadIdx.x % WARP)) continue;
    u64 slot = mixed(key) >> 20 & (size - 1);
    if (key == FREE) slot = size;
    else while (true) {
      u64 seen = atomicCAS(&keys[slot], FREE, key);
      if (seen == FREE) atomicAdd(found, 1ull);
      if (seen == FREE || seen == key) break;
      slot = (slot + 1) & (size - 1);
    }
    if (!atomicAdd(&counts[slot], (u64)__popc(peers)) && slot == size) atomicAdd(found, 1ull);
  }
}

// counts (size + 1,): of first, first + 1, …; the last: of what lies outside
template <class T> __global__ void tally(const T* __restrict__ x, i64 n, i64 first, u64 size, u64* counts, int near_counts) {
  DYNAMIC_SHARED(memory);
  u32* near = reinterpret_cast<u32*>(memory);
  if (near_counts) for (i64 i = threadIdx.x; i <= (i64)size; i += blockDim.x) near[i] = 0;
  __syncthreads();
  for (i64 i = position(); whole_warps(i) < n; i += stride()) {
    i64 at = i < n ? (i64)min((u64)(i64)x[i] - (u64)first, size) : 0;
    if (near_counts) count_one(near, at, i < n); else count_one(counts, at, i < n);
  }
  __syncthreads();
  if (near_counts) for (i64 i = threadIdx.x; i <= (i64)size; i += blockDim.x) if (near[i]) atomicAdd(&counts[i], (u64)near[i]);
}
