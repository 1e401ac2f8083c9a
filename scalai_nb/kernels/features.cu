// Twins: features.py. A value a thread; `assemble` builds 32 rows of the matrix at a time in shared memory and writes them out once, row by row.
#include "common.cuh"

constexpr int NONE = -1;
constexpr int ROWS = 32;  // of a tile of `assemble`: a lane a row

// x may be out: each thread reads its value before it writes it
template <class T, bool LOG>
__global__ void number(const T* x, float* out, i64 n, float fill, float low, float high, float shift, float scale) {
  for (i64 i = position(); i < n; i += stride()) {
    float v = (float)x[i];
    v = v != v ? fill : v;
    v = v < low ? low : v;
    v = v > high ? high : v;
    if (LOG) v = (float)copysign(log(1.0 + fabs((double)v)), (double)v);
    out[i] = (v - shift) / scale;
  }
}

template <class T, bool LOG>
__global__ void centred(const T* __restrict__ x, float* __restrict__ out, i64 n, double centre) {
  for (i64 i = position(); i < n; i += stride()) {
    double v = (double)x[i];
    if (LOG) v = copysign(log(1.0 + fabs(v)), v);
    out[i] = (float)(v - centre);
  }
}

__global__ void seconds(const i64* __restrict__ x, float* __restrict__ out, i64 n, double unit, double origin) {
  for (i64 i = position(); i < n; i += stride())
    out[i] = x[i] == (i64)(1ull << 63) ? __uint_as_float(0x7fc00000u) : (float)((double)x[i] / unit - origin);
}

template <class T>
__global__ void missing(const T* __restrict__ x, float* __restrict__ out, i64 n) {
  for (i64 i = position(); i < n; i += stride()) out[i] = is_nan(x[i]) ? 1.0f : 0.0f;
}

__global__ void bucket(const float* __restrict__ x, const float* __restrict__ edges, int count, int first, int* __restrict__ out, i64 n) {
  for (i64 i = position(); i < n; i += stride()) {
    float v = x[i];
    int below = 0, above = count;  // edges[:below] <= v < edges[above:]
    while (below < above) {
      int middle = (below + above) / 2;
      if (v >= edges[middle]) below = middle + 1; else above = middle;
    }
    out[i] = is_nan(v) ? NONE : first + below;
  }
}

template <class T, class V>
__global__ void lookup(const T* __restrict__ x, i64 first, const V* __restrict__ table, i64 size, V outside, V* __restrict__ out, u64* __restrict__ count, i64 n) {
  u64 mine = 0;
  for (i64 i = position(); i < n; i += stride()) {
    u64 k = (u64)(i64)x[i] - (u64)first;  // one comparison: what is below 0 is very large
    bool inside = k < (u64)size;
    out[i] = inside ? table[k] : outside;
    mine += !inside;
  }
  mine = block_sum(mine);
  if (threadIdx.x == 0 && mine) atomicAdd(count, mine);
}

__global__ void assemble(const float* __restrict__ numbers, const i64* __restrict__ at, int n, const int* __restrict__ places, int m,
                         float* __restrict__ out, i64 rows, int width, int chunk) {
  DYNAMIC_SHARED(memory);
  float* tile = reinterpret_cast<float*>(memory);
  int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  int pitch = chunk | 1;  // odd: the lanes of a column lie in 32 different banks
  for (i64 row = (i64)blockIdx.x * ROWS; row < rows; row += (i64)gridDim.x * ROWS)
    for (int left = 0; left < width; left += chunk) {
      int wide = min(chunk, width - left), high = (int)min((i64)ROWS, rows - row);
      for (int i = threadIdx.x; i < ROWS * pitch; i += blockDim.x) tile[i] = 0;
      __syncthreads();
      if (lane < high)
        for (int j = warp; j < n; j += warps) {
          i64 column = at[j] - left;
          if (column >= 0 && column < wide) tile[lane * pitch + column] = numbers[(i64)j * rows + row + lane];
        }
      __syncthreads();
      if (lane < high)
        for (int j = warp; j < m; j += warps) {
          int column = places[(i64)j * rows + row + lane] - left;
          if (column >= 0 && column < wide) tile[lane * pitch + column] = 1;
        }
      __syncthreads();
      for (int r = warp; r < high; r += warps)
        for (int c = lane; c < wide; c += WARP) out[(row + r) * width + left + c] = tile[r * pitch + c];
      __syncthreads();
    }
}
