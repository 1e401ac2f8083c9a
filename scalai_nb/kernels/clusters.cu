// Twins: clusters.py. A warp a row: its lanes share the centres when the nearest is chosen, and the features when the row joins its cluster.
#include "common.cuh"

// z (rows, features) and C (clusters, features) about the origin; dots (rows, clusters): their products; halves (clusters,): |c|² / 2
// mass (clusters,) and sums (clusters, features) have a copy in shared memory first where that fits; partial (blocks,): inertia
template <class T>
__global__ void nearest(const T* __restrict__ z, const T* __restrict__ C, const T* __restrict__ dots, const T* __restrict__ halves, const double* __restrict__ weight,
                        i64 rows, int features, int clusters, int* __restrict__ labels, double* __restrict__ distances, double* mass, double* sums,
                        double* __restrict__ partial, int near_sums) {
  DYNAMIC_SHARED(memory);
  double* m = near_sums ? reinterpret_cast<double*>(memory) : mass;
  double* s = near_sums ? m + clusters : sums;
  int cells = clusters * (features + 1), lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  if (near_sums) for (int i = threadIdx.x; i < cells; i += blockDim.x) m[i] = 0;
  __syncthreads();
  double inertia = 0;
  for (i64 row = (i64)blockIdx.x * warps + threadIdx.x / WARP; row < rows; row += (i64)gridDim.x * warps) {
    T best = __uint_as_float(0x7f800000u);  // infinity
    int chosen = 0;
    for (int k = lane; k < clusters; k += WARP) {
      T score = halves[k] - dots[row * clusters + k];
      if (score < best) { best = score; chosen = k; }
    }
#pragma unroll
    for (int by = WARP / 2; by > 0; by /= 2) {
      T theirs = __shfl_xor_sync(ALL, best, by);
      int other = __shfl_xor_sync(ALL, chosen, by);
      if (theirs < best || (theirs == best && other < chosen)) { best = theirs; chosen = other; }
    }
    T away = 0;
    for (int j = lane; j < features; j += WARP) {
      T d = z[row * features + j] - C[(i64)chosen * features + j];
      away += d * d;
    }
    away = warp_sum(away);
    double w = weight ? weight[row] : 1.0;
    if (lane == 0) {
      if (labels) labels[row] = chosen;
      if (distances) distances[row] = (double)away;
      if (w != 0) { inertia += w * (double)away; atomicAdd(&m[chosen], w); }
    }
    if (w != 0) for (int j = lane; j < features; j += WARP) atomicAdd(&s[(i64)chosen * features + j], w * (double)z[row * features + j]);
  }
  inertia = block_sum(inertia);
  if (threadIdx.x == 0) partial[blockIdx.x] = inertia;
  __syncthreads();
  if (near_sums) {
    for (int i = threadIdx.x; i < clusters; i += blockDim.x) if (m[i] != 0) atomicAdd(&mass[i], m[i]);
    for (int i = threadIdx.x; i < cells - clusters; i += blockDim.x) if (s[i] != 0) atomicAdd(&sums[i], s[i]);
  }
}
