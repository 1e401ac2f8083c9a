// Twins: scores.py. Bins are counted in shared memory where they fit (few bits), else in L2; each thread takes one logarithm for 16 likelihoods.
#include "common.cuh"

constexpr int FACTORS = 16, FINEST = 998;  // as in scores.py

// what rows are counted in: in all, and by a block, which sees fewer than 2^32
template <bool WEIGHTED> struct Count { typedef u64 All; typedef u32 Block; };
template <> struct Count<true> { typedef double All; typedef double Block; };

struct Look { i64 cell; double likelihood, error; bool bad_label, bad_score; };

__device__ inline i64 bin_of(double s, int bits) {
  bool high = s >= 0.5;
  i64 b = __double_as_longlong(high ? 1.0 - s : s);
  i64 fine = (b >> (52 - bits)) - ((i64)FINEST << bits);
  i64 k = fine >= 0 ? fine + (8ll << bits) : b >> (59 - bits);
  k = min(max(k, 0ll), (32ll << bits) - 1);
  return high ? (64ll << bits) - 1 - k : k;
}
// the same of a float, in its own 32 bits from 2^-25 on, where both have the same first bits; 1 - s is exact
__device__ inline i64 bin_of(float s, int bits) {
  bool high = s >= 0.5f;
  float near = high ? 1.0f - s : s;
  if (!(near >= 0x1p-25f)) return bin_of((double)s, bits);
  int k = (__float_as_int(near) >> (23 - bits)) - ((FINEST - 896) << bits) + (8 << bits);
  k = min(k, (32 << bits) - 1);
  return high ? (64 << bits) - 1 - k : k;
}
template <class T> __device__ inline Look look(signed char y, T score, double eps, int bits) {
  double s = (double)score;
  double p = y == 1 ? s : 1.0 - s;
  return {2 * bin_of(score, bits) + (y == 1), p < eps ? eps : p > 1.0 - eps ? 1.0 - eps : p, (1.0 - p) * (1.0 - p), (y & 1) != y, !(s >= 0.0 && s <= 1.0)};
}
__device__ inline bool bad_weight(double w) { return !(w >= 0.0 && w - w == 0.0); }

// counts (bins, 2); partial (blocks, 4): of each block the log loss, the squared error, the squared weights of negatives and of positives; bad (3,)
// near: 0: counts only · 1: all cells have a copy in shared memory · 2: those whose scores are 2^-25 and more from 0 and 1 have one, of 16 bits
template <class T, bool WEIGHTED>
__global__ void __launch_bounds__(1024) tally(const signed char* __restrict__ label, const T* __restrict__ score, const double* __restrict__ weight, i64 n, double eps, int bits,
                      typename Count<WEIGHTED>::All* counts, double* __restrict__ partial, u64* bad, int near) {
  typedef typename Count<WEIGHTED>::All N;
  DYNAMIC_SHARED(memory);
  auto whole = reinterpret_cast<typename Count<WEIGHTED>::Block*>(memory);
  u32* halves = reinterpret_cast<u32*>(memory);  // two cells a word
  int cells = 128 << bits, first = near == 2 ? 16 << bits : 0, last = near == 2 ? 112 << bits : near == 1 ? cells : 0;  // cells that are near
  if (near == 1) for (int i = threadIdx.x; i < cells; i += blockDim.x) whole[i] = 0;
  if (near == 2) for (int i = threadIdx.x; i < (last - first) / 2; i += blockDim.x) halves[i] = 0;
  __syncthreads();
  double sums[4] = {0, 0, 0, 0}, product = 1.0;
  u32 labels = 0, scores = 0, weights = 0;
  int factors = 0;
  auto add = [=](i64 cell, u32 more) {
    if (near == 1) atomicAdd(&whole[cell], (typename Count<WEIGHTED>::Block)more);
    else if (cell < first || cell >= last) atomicAdd(&counts[cell], (N)more);
    else {
      int at = (int)cell - first, shift = 16 * (at & 1);
      u32 before = atomicAdd(&halves[at / 2], more << shift) >> shift & 0xFFFF;
      if (before < 0x8000 && before + more >= 0x8000) {  // long before it is full, for those that add meanwhile: half of it leaves
        atomicAdd(&halves[at / 2], 0u - (0x8000u << shift));
        atomicAdd(&counts[cell], (N)0x8000);
      }
    }
  };
  for (i64 i = position(); whole_warps(i) < n; i += stride()) {
    bool part = i < n;
    Look l = part ? look(label[i], score[i], eps, bits) : Look{0, 1.0, 0, false, false};
    labels += l.bad_label; scores += l.bad_score;
    if (WEIGHTED) {
      if (!part) continue;
      double w = weight[i];
      weights += bad_weight(w);
      if (near == 1) atomicAdd(&whole[l.cell], w); else atomicAdd(&counts[l.cell], (N)w);
      sums[0] -= w * log(l.likelihood); sums[1] += w * l.error;
      sums[2] += l.cell & 1 ? 0.0 : w * w; sums[3] += l.cell & 1 ? w * w : 0.0;
    } else {
      count_cells(l.cell, part, add);
      product *= l.likelihood; sums[1] += l.error;
      if (++factors == FACTORS) { sums[0] -= log(product); product = 1.0; factors = 0; }
    }
  }
  sums[0] -= log(product);
  block_sums(sums);
  labels = block_sum(labels); scores = block_sum(scores); weights = block_sum(weights);
  if (threadIdx.x == 0) {
    for (int k = 0; k < 4; k++) partial[4 * blockIdx.x + k] = sums[k];
    if (labels) atomicAdd(&bad[0], (u64)labels);
    if (scores) atomicAdd(&bad[1], (u64)scores);
    if (weights) atomicAdd(&bad[2], (u64)weights);
  }
  // the sums have waited for what all threads counted
  if (near == 1) for (int i = threadIdx.x; i < cells; i += blockDim.x) if (whole[i] != 0) atomicAdd(&counts[i], (N)whole[i]);
  if (near == 2) for (int i = threadIdx.x; i < last - first; i += blockDim.x) {
    u32 half = halves[i / 2] >> 16 * (i & 1) & 0xFFFF;
    if (half) atomicAdd(&counts[first + i], (N)half);
  }
}

// of groups: rows (groups,), counts (places, bins, 2), sums (groups, 4) as of `tally`. rows and sums have a copy in shared memory first
template <class T, bool WEIGHTED>
__global__ void tally_by(const int* __restrict__ groups, const int* __restrict__ place, int n_groups, const signed char* __restrict__ label,
                         const T* __restrict__ score, const double* __restrict__ weight, i64 n, double eps, int bits,
                         u64* rows, typename Count<WEIGHTED>::All* counts, double* sums, u64* bad, int near_sums) {
  typedef typename Count<WEIGHTED>::All N;
  DYNAMIC_SHARED(memory);
  double* s = near_sums ? reinterpret_cast<double*>(memory) : sums;
  u64* r = near_sums ? reinterpret_cast<u64*>(memory) + 4 * n_groups : rows;
  if (near_sums) for (int i = threadIdx.x; i < n_groups; i += blockDim.x) {
    for (int k = 0; k < 4; k++) s[4 * i + k] = 0;
    r[i] = 0;
  }
  __syncthreads();
  u64 labels = 0, scores = 0, weights = 0;
  for (i64 i = position(); i < n; i += stride()) {
    int g = groups[i];
    double w = WEIGHTED ? weight[i] : 1.0;
    Look l = look(label[i], score[i], eps, bits);
    labels += l.bad_label; scores += l.bad_score; weights += WEIGHTED && bad_weight(w);
    atomicAdd(&counts[place[g] * (128ll << bits) + l.cell], (N)w);
    atomicAdd(&r[g], 1ull);
    atomicAdd(&s[4 * g], -w * log(l.likelihood)); atomicAdd(&s[4 * g + 1], w * l.error);
    if (WEIGHTED) atomicAdd(&s[4 * g + 2 + (l.cell & 1)], w * w);
  }
  labels = block_sum(labels); scores = block_sum(scores); weights = block_sum(weights);
  if (threadIdx.x == 0) {
    if (labels) atomicAdd(&bad[0], labels);
    if (scores) atomicAdd(&bad[1], scores);
    if (weights) atomicAdd(&bad[2], weights);
  }
  if (near_sums) for (int i = threadIdx.x; i < n_groups; i += blockDim.x) if (r[i]) {
    for (int k = 0; k < 4; k++) atomicAdd(&sums[4 * i + k], s[4 * i + k]);
    atomicAdd(&rows[i], r[i]);
  }
}

constexpr u64 FREE = ~0ull;

// slots (size,), size a power of 2: the first row seen of each (group, score); counts (size, 2) beside them. used (groups,): distinct scores; over: too many
template <class T, bool WEIGHTED>
__global__ void distinct(const int* __restrict__ groups, const signed char* __restrict__ label, const T* __restrict__ score, const double* __restrict__ weight,
                         i64 n, u64 limit, u32* over, u64* used, u64* slots, u64 size, typename Count<WEIGHTED>::All* counts) {
  typedef typename Count<WEIGHTED>::All N;
  for (i64 i = position(); i < n; i += stride()) {
    int g = groups ? groups[i] : 0;
    if (PEEK(&over[g])) continue;
    i64 b = __double_as_longlong((double)score[i] + 0.0);  // -0.0 is 0.0
    u64 z = (u64)(b ^ b >> 32 ^ b >> 15 ^ (i64)g << 20) * 0x9E3779B97F4A7C15ull, at = z >> 32 & (size - 1);
    while (true) {
      u64 seen = atomicCAS(&slots[at], FREE, (u64)i);
      if (seen == FREE) {
        if (atomicAdd(&used[g], 1ull) >= limit) atomicOr(&over[g], 1u);
        break;
      }
      if ((groups ? groups[seen] : 0) == g && __double_as_longlong((double)score[seen] + 0.0) == b) break;
      at = (at + 1) & (size - 1);
    }
    atomicAdd(&counts[2 * at + (label[i] & 1)], (N)(WEIGHTED ? weight[i] : 1.0));
  }
}

// confusion (classes, classes) and ranks (classes,), which have a copy in shared memory first; partial (blocks, 5): Σ w x, Σ w x² of the log loss and of
// the Brier score, Σ w²; bad (4,): labels, scores, sums of scores, weights
template <class T, bool WEIGHTED>
__global__ void classify(const int* __restrict__ label, const T* __restrict__ score, const double* __restrict__ weight, i64 n, int classes, double eps, double tolerance,
                         typename Count<WEIGHTED>::All* confusion, typename Count<WEIGHTED>::All* ranks, double* __restrict__ partial, u64* bad, int near_counts) {
  typedef typename Count<WEIGHTED>::All N;
  DYNAMIC_SHARED(memory);
  N* c = near_counts ? reinterpret_cast<N*>(memory) : confusion;
  N* r = near_counts ? c + classes * classes : ranks;
  if (near_counts) for (int i = threadIdx.x; i < classes * (classes + 1); i += blockDim.x) c[i] = 0;
  __syncthreads();
  double sums[5] = {0, 0, 0, 0, 0};
  u64 labels = 0, scores = 0, totals = 0, weights = 0;
  for (i64 i = position(); i < n; i += stride()) {
    int y = label[i], best = 0, rank = 0;
    double w = WEIGHTED ? weight[i] : 1.0;
    weights += WEIGHTED && bad_weight(w);
    if (y < 0 || y >= classes) { labels++; continue; }
    const T* s = score + i * classes;
    T mine = s[y], highest = s[0];
    double total = 0, spread = 0;
    bool outside = false;
    for (int j = 0; j < classes; j++) {
      double x = (double)s[j];
      outside |= !(x >= 0.0 && x <= 1.0);
      total += x; spread += x * x;
      rank += s[j] > mine || (s[j] == mine && j < y);
      if (s[j] > highest) { best = j; highest = s[j]; }
    }
    scores += outside; totals += !outside && fabs(total - 1.0) > tolerance;
    double p = (double)mine, loss = -log(p < eps ? eps : p > 1.0 - eps ? 1.0 - eps : p), brier = spread - p * p + (1.0 - p) * (1.0 - p);
    sums[0] += w * loss; sums[1] += w * loss * loss; sums[2] += w * brier; sums[3] += w * brier * brier; sums[4] += w * w;
    atomicAdd(&c[(i64)y * classes + best], (N)w); atomicAdd(&r[rank], (N)w);
  }
  block_sums(sums);
  labels = block_sum(labels); scores = block_sum(scores); totals = block_sum(totals); weights = block_sum(weights);
  if (threadIdx.x == 0) {
    for (int k = 0; k < 5; k++) partial[5 * blockIdx.x + k] = sums[k];
    if (labels) atomicAdd(&bad[0], labels);
    if (scores) atomicAdd(&bad[1], scores);
    if (totals) atomicAdd(&bad[2], totals);
    if (weights) atomicAdd(&bad[3], weights);
  }
  if (near_counts) for (int i = threadIdx.x; i < classes * (classes + 1); i += blockDim.x)
    if (c[i] != 0) atomicAdd(i < classes * classes ? &confusion[i] : &ranks[i - classes * classes], c[i]);
}

constexpr int ERROR_BITS = 7, OCTAVES = 64;

__device__ inline i64 error_bin(double x) {
  i64 k = (__double_as_longlong(fabs(x)) >> (52 - ERROR_BITS)) - ((1023ll - OCTAVES) << ERROR_BITS);
  k = min(max(k + 1, 0ll), 2ll * OCTAVES << ERROR_BITS);
  return (2ll * OCTAVES << ERROR_BITS) + (x > 0.0 ? k : -k);
}

// counts (bins,) and, unless it is nothing, table (bins, 3); partial (blocks, 8): Σ of w, w², w·error, w·|error|, w·error², w·error⁴, w·|error| / |target|,
// w·target; ends (blocks, 2): least and greatest error; bad (3,): targets, predictions, weights
template <class T, class P, bool WEIGHTED>
__global__ void errors(const T* __restrict__ target, const P* __restrict__ prediction, const double* __restrict__ weight, i64 n,
                       double* counts, double* table, double* __restrict__ partial, double* __restrict__ ends, u64* bad) {
  const double INFINITE = __longlong_as_double(0x7FF0000000000000ll);
  double sums[8] = {0, 0, 0, 0, 0, 0, 0, 0}, least = INFINITE, greatest = -INFINITE;
  u64 targets = 0, predictions = 0, weights = 0;
  for (i64 i = position(); i < n; i += stride()) {
    double t = (double)target[i], p = (double)prediction[i], w = WEIGHTED ? weight[i] : 1.0, e = p - t, a = fabs(e), e2 = w * (e * e);
    targets += t - t != 0; predictions += p - p != 0; weights += WEIGHTED && bad_weight(w);
    least = fmin(least, e); greatest = fmax(greatest, e);
    sums[0] += w; sums[1] += w * w; sums[2] += w * e; sums[3] += w * a; sums[4] += e2; sums[5] += e2 * (e * e);
    sums[6] += w * (a / fmax(fabs(t), 0x1p-52)); sums[7] += w * t;
    atomicAdd(&counts[error_bin(e)], w);
    if (table) {
      double* row = table + 3 * error_bin(p);
      atomicAdd(&row[0], w); atomicAdd(&row[1], w * e); atomicAdd(&row[2], e2);
    }
  }
  block_sums(sums);
  least = block_fold(least, INFINITE, [](double a, double b) { return fmin(a, b); });
  greatest = block_fold(greatest, -INFINITE, [](double a, double b) { return fmax(a, b); });
  targets = block_sum(targets); predictions = block_sum(predictions); weights = block_sum(weights);
  if (threadIdx.x) return;
  for (int k = 0; k < 8; k++) partial[8 * blockIdx.x + k] = sums[k];
  ends[2 * blockIdx.x] = least; ends[2 * blockIdx.x + 1] = greatest;
  if (targets) atomicAdd(&bad[0], targets);
  if (predictions) atomicAdd(&bad[1], predictions);
  if (weights) atomicAdd(&bad[2], weights);
}

// partial (blocks, 2): Σ w·d and Σ w·d² of the deviations of x from `mean`
template <class T, bool WEIGHTED>
__global__ void deviations(const T* __restrict__ x, const double* __restrict__ weight, i64 n, double mean, double* __restrict__ partial) {
  double sums[2] = {0, 0};
  for (i64 i = position(); i < n; i += stride()) {
    double d = (double)x[i] - mean, w = WEIGHTED ? weight[i] : 1.0;
    sums[0] += w * d; sums[1] += w * (d * d);
  }
  block_sums(sums);
  if (threadIdx.x == 0) { partial[2 * blockIdx.x] = sums[0]; partial[2 * blockIdx.x + 1] = sums[1]; }
}
