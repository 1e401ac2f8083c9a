// Twins: groups.py. Tables of the groups are kept in shared memory where they fit, a copy for each warp while there is room, else in L2.
#include "common.cuh"

constexpr i64 MISSING_TIME = (i64)(1ull << 63), LAST = 0x7FFFFFFFFFFFFFFFll;

template <class T> struct Is { static constexpr bool FLOAT = T(0.5) != T(0); };
template <class T> __device__ inline bool there(T v, int nat) { return !is_nan(v) && !(nat && (i64)v == MISSING_TIME); }
template <class T> __device__ inline i64 sorted(T v) {  // an integer that sorts as v does
  if (!Is<T>::FLOAT) return (i64)v;
  i64 bits = __double_as_longlong((double)v);
  return bits < 0 ? -(bits & 0x7FFFFFFFFFFFFFFFll) : bits;
}

// count, total, least and greatest (groups,) each
template <class C, class T>
__global__ void first(const C* __restrict__ codes, const T* __restrict__ x, i64 n, int nat, int groups, i64 none_least, i64 none_greatest,
                      u64* count, double* total, i64* least, i64* greatest, int copies) {
  DYNAMIC_SHARED(memory);
  i64 cells = (i64)groups * copies;
  double* t = reinterpret_cast<double*>(memory);
  u64* c = reinterpret_cast<u64*>(t + cells);
  i64 *low = reinterpret_cast<i64*>(c + cells), *high = low + cells;
  for (i64 i = threadIdx.x; i < cells; i += blockDim.x) { t[i] = 0; c[i] = 0; low[i] = none_least; high[i] = none_greatest; }
  __syncthreads();
  i64 mine = copies ? (i64)(threadIdx.x / WARP % copies) * groups : 0;
  if (!copies) { t = total; c = count; low = least; high = greatest; }
  for (i64 i = position(); i < n; i += stride()) {
    T v = x[i];
    if (!there(v, nat)) continue;
    i64 g = mine + codes[i], key = sorted(v);
    atomicAdd(&c[g], 1ull); atomicAdd(&t[g], (double)v);
    if (key < PEEK(&low[g])) atomicMin(&low[g], key);
    if (key > PEEK(&high[g])) atomicMax(&high[g], key);
  }
  __syncthreads();
  for (i64 i = threadIdx.x; i < cells; i += blockDim.x) {
    i64 g = i % groups;
    if (!c[i]) continue;
    atomicAdd(&count[g], c[i]); atomicAdd(&total[g], t[i]);
    atomicMin(&least[g], low[i]); atomicMax(&greatest[g], high[i]);
  }
}

// rest and m2 (groups,): sums of the deviations from the mean, and of their squares
template <class C, class T>
__global__ void second(const C* __restrict__ codes, const T* __restrict__ x, i64 n, int nat, int groups, const double* __restrict__ mean,
                       double* rest, double* m2, int copies) {
  DYNAMIC_SHARED(memory);
  i64 cells = (i64)groups * copies;
  double *r = reinterpret_cast<double*>(memory), *s = r + cells;
  for (i64 i = threadIdx.x; i < 2 * cells; i += blockDim.x) r[i] = 0;
  __syncthreads();
  i64 mine = copies ? (i64)(threadIdx.x / WARP % copies) * groups : 0;
  if (!copies) { r = rest; s = m2; }
  for (i64 i = position(); i < n; i += stride()) {
    T v = x[i];
    if (!there(v, nat)) continue;
    i64 g = mine + codes[i];
    double d = (double)v - mean[codes[i]];
    atomicAdd(&r[g], d); atomicAdd(&s[g], d * d);
  }
  __syncthreads();
  for (i64 i = threadIdx.x; i < cells; i += blockDim.x) {
    if (r[i] != 0) atomicAdd(&rest[i % groups], r[i]);
    if (s[i] != 0) atomicAdd(&m2[i % groups], s[i]);
  }
}

// the number of the period of each time; extremes (2,): the least and the greatest
__global__ void periods(const i64* __restrict__ x, i64 n, i64 step, i64* __restrict__ out, i64* extremes) {
  i64 low = LAST, high = MISSING_TIME;
  for (i64 i = position(); i < n; i += stride()) {
    i64 v = x[i], number = v / step;
    if (v % step < 0) number--;  // towards minus infinity
    out[i] = v == MISSING_TIME ? v : number;
    if (v == MISSING_TIME) continue;
    low = min(low, number); high = max(high, number);
  }
  low = block_fold(low, LAST, [](i64 a, i64 b) { return a < b ? a : b; });
  high = block_fold(high, MISSING_TIME, [](i64 a, i64 b) { return a < b ? b : a; });
  if (threadIdx.x == 0) { atomicMin(&extremes[0], low); atomicMax(&extremes[1], high); }
}
