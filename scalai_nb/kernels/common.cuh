// What the kernels share: loops, vector loads, sums over a warp and a block, moments. Blocks are of one dimension, of a multiple of 32 threads.
#ifndef SHARED
#define SHARED(T, name, n) __shared__ T name[n]              // tests/simt/simt.h has its own
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define PEEK(p) (*(const volatile decltype(*(p) + 0)*)(p))    // a read that may meet an atomic write
#endif

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned char u8;

constexpr unsigned ALL = 0xffffffffu;
constexpr int WARP = 32, WARPS = 32;  // lanes of a warp, most warps of a block

__device__ inline i64 position() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline i64 stride() { return (i64)gridDim.x * blockDim.x; }

template <class T> __device__ inline bool is_nan(T) { return false; }
__device__ inline bool is_nan(float x) { return x != x; }
__device__ inline bool is_nan(double x) { return x != x; }
template <class T> __device__ inline bool is_infinite(T) { return false; }
__device__ inline bool is_infinite(float x) { return x - x != 0 && x == x; }
__device__ inline bool is_infinite(double x) { return x - x != 0 && x == x; }

// N consecutive values in one load where the address allows it
template <class T, int N> struct alignas(sizeof(T) * N) Pack { T v[N]; };
template <class T> struct Wide { static constexpr int N = 16 / sizeof(T); };
template <class P> __device__ inline bool aligned(const void* p) { return (u64)p % alignof(P) == 0; }

// f(value, index) for the values of x[0:n], grid-wide: vectors of 16 bytes where x is aligned, then what is left
template <class T, class F> __device__ void each(const T* __restrict__ x, i64 n, F f) {
  constexpr int N = Wide<T>::N;
  i64 packs = aligned<Pack<T, N>>(x) ? n / N : 0;
  for (i64 p = position(); p < packs; p += stride()) {
    Pack<T, N> pack = reinterpret_cast<const Pack<T, N>*>(x)[p];
#pragma unroll
    for (int k = 0; k < N; k++) f(pack.v[k], p * N + k);
  }
  for (i64 i = packs * N + position(); i < n; i += stride()) f(x[i], i);
}

// sums: pairwise over the lanes, then over the warps, so in one order for every run; thread 0 has the result
template <class T> __device__ inline T warp_sum(T v) {
#pragma unroll
  for (int by = WARP / 2; by > 0; by /= 2) v += __shfl_down_sync(ALL, v, by);
  return v;
}
template <class T> __device__ T block_sum(T v) {
  SHARED(T, part, WARPS);
  v = warp_sum(v);
  __syncthreads();  // `part` may still be read by a sum before this one
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = v;
  __syncthreads();
  v = threadIdx.x < blockDim.x / WARP ? part[threadIdx.x] : T(0);
  return threadIdx.x < WARP ? warp_sum(v) : v;
}
template <class T, class F> __device__ T block_fold(T v, T none, F f) {
  SHARED(T, part, WARPS);
#pragma unroll
  for (int by = WARP / 2; by > 0; by /= 2) v = f(v, __shfl_down_sync(ALL, v, by));
  __syncthreads();
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = v;
  __syncthreads();
  v = threadIdx.x < blockDim.x / WARP ? part[threadIdx.x] : none;
  if (threadIdx.x < WARP)
#pragma unroll
    for (int by = WARP / 2; by > 0; by /= 2) v = f(v, __shfl_down_sync(ALL, v, by));
  return v;
}
template <class T> __device__ T everyone(T v) {  // thread 0's value, to all threads of the block
  SHARED(T, one, 1);
  __syncthreads();
  if (threadIdx.x == 0) one[0] = v;
  __syncthreads();
  return one[0];
}

// several sums at once, as block_sum: thread 0 has the results
template <int N> __device__ void block_sums(double (&v)[N]) {
  SHARED(double, part, WARPS * N);
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
  for (int k = 0; k < N; k++) v[k] = warp_sum(v[k]);
  __syncthreads();
  if (lane == 0)
#pragma unroll
    for (int k = 0; k < N; k++) part[warp * N + k] = v[k];
  __syncthreads();
  if (warp == 0)
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = warp_sum(lane < blockDim.x / WARP ? part[lane * N + k] : 0.0);
}

// add(cell, how many) for the lanes that take part; all lanes of the warp call it. Lanes that agree with the first of them are one addition:
// a column that is constant, or nearly, would otherwise wait for one address
template <class F> __device__ inline void count_cells(i64 cell, bool part, F add) {
  unsigned lanes = __ballot_sync(ALL, part);
  if (!lanes) return;
  int first = __ffs((int)lanes) - 1;
  i64 theirs = __shfl_sync(ALL, cell, first);
  unsigned same = __ballot_sync(ALL, part && cell == theirs);
  if ((int)(threadIdx.x % WARP) == first) add(cell, (u32)__popc(same));
  else if (part && cell != theirs) add(cell, 1u);
}
template <class T> __device__ inline void count_one(T* counts, i64 cell, bool part) {
  count_cells(cell, part, [=](i64 at, u32 more) { atomicAdd(&counts[at], (T)more); });
}
// i of a loop over n that whole warps run together: for (i64 i = position(); whole_warps(i) < n; i += stride()), where i < n says who takes part
__device__ inline i64 whole_warps(i64 i) { return i - threadIdx.x % WARP; }
