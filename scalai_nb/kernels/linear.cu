// Twins: linear.py. A warp takes ROWS rows at a time: their features stay in its registers between the dot product and the pull on the gradient.
#include "common.cuh"

enum Family { SQUARED = 0, LOGISTIC = 1, POISSON = 2 };
constexpr int ROWS = 4;    // of a warp at a time
constexpr int RUN = 64;    // steps whose pulls are summed in the type of X before they join the float64 sums

struct Slope { double loss, slope, curvature; };

// the loss of a margin, its slope and its curvature
__device__ inline Slope slope_of(double z, double y, int family) {
  if (family == LOGISTIC) {
    double q = exp(-fabs(z)), upper = 1.0 / (1.0 + q);
    return {fmax(z, 0.0) - y * z + log1p(q), (z >= 0 ? upper : q * upper) - y, q * upper * upper};
  }
  if (family == POISSON) {
    double m = exp(z);
    return {m - y * z, m - y, m};
  }
  double e = z - y;
  return {0.5 * e * e, e, 1.0};
}
__device__ inline Slope weighted(Slope s, double w) {
  if (w == 0) return {0, 0, 0};  // not 0 times infinity
  return {s.loss * w, s.slope * w, s.curvature * w};
}

// X (rows, features), 32·K features at most; partial (blocks, features + 2): of each block the gradient, the intercept's, the loss
template <class T, int K>
__global__ void __launch_bounds__(256, 1) gradient(const T* __restrict__ X, const double* __restrict__ y, const double* __restrict__ weight,
                                                const T* __restrict__ W, int features, i64 rows, int family, double* __restrict__ partial) {
  int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  T w[K], g[K];
  double total[K];
#pragma unroll
  for (int k = 0; k < K; k++) {
    w[k] = lane + k * WARP < features ? W[lane + k * WARP] : T(0);
    g[k] = 0; total[k] = 0;
  }
  T intercept = W[features];
  double loss = 0, pull = 0;
  int run = 0;
  for (i64 row = ((i64)blockIdx.x * warps + warp) * ROWS; row < rows; row += (i64)gridDim.x * warps * ROWS) {
    T x[ROWS][K], dot[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      dot[r] = 0;
#pragma unroll
      for (int k = 0; k < K; k++) {
        int j = lane + k * WARP;
        x[r][k] = row + r < rows && j < features ? X[(row + r) * features + j] : T(0);
        dot[r] += x[r][k] * w[k];
      }
    }
#pragma unroll
    for (int by = WARP / 2; by > 0; by /= 2)
#pragma unroll
      for (int r = 0; r < ROWS; r++) dot[r] += __shfl_xor_sync(ALL, dot[r], by);
    T mine = 0;  // lane r takes the slope of row r
#pragma unroll
    for (int r = 0; r < ROWS; r++) if (lane == r) mine = dot[r];
    Slope s = {0, 0, 0};
    if (lane < ROWS && row + lane < rows) {
      s = slope_of((double)(mine + intercept), y[row + lane], family);
      if (weight) s = weighted(s, weight[row + lane]);
      loss += s.loss; pull += s.slope;
    }
    T slope = (T)s.slope;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      T of_row = __shfl_sync(ALL, slope, r);
#pragma unroll
      for (int k = 0; k < K; k++) g[k] += of_row * x[r][k];
    }
    if (++run == RUN) {
      run = 0;
#pragma unroll
      for (int k = 0; k < K; k++) { total[k] += g[k]; g[k] = 0; }
    }
  }
  SHARED(double, sums, 32 * K + 2);
  for (int j = threadIdx.x; j < 32 * K + 2; j += blockDim.x) sums[j] = 0;
  __syncthreads();
  for (int turn = 0; turn < warps; turn++) {  // warp after warp, so that the sum has one order
    if (turn == warp) {
#pragma unroll
      for (int k = 0; k < K; k++) sums[lane + k * WARP] += total[k] + g[k];
    }
    __syncthreads();
  }
  double all_loss = block_sum(loss), all_pull = block_sum(pull);
  double* out = partial + (i64)blockIdx.x * (features + 2);
  for (int j = threadIdx.x; j < features; j += blockDim.x) out[j] = sums[j];
  if (threadIdx.x == 0) { out[features] = all_pull; out[features + 1] = all_loss; }
}

// of margins (rows,): slope and root of the curvature of each row, in the type of X; partial (blocks, 2): the intercept's gradient and the loss
template <class T>
__global__ void margins(const T* __restrict__ eta, const double* __restrict__ y, const double* __restrict__ weight, i64 rows, int family,
                        T* __restrict__ slope, T* __restrict__ root, double* __restrict__ partial) {
  double loss = 0, pull = 0;
  for (i64 i = position(); i < rows; i += stride()) {
    Slope s = slope_of((double)eta[i], y[i], family);
    if (weight) s = weighted(s, weight[i]);
    loss += s.loss; pull += s.slope;
    slope[i] = (T)s.slope; root[i] = (T)sqrt(s.curvature);
  }
  loss = block_sum(loss); pull = block_sum(pull);
  if (threadIdx.x == 0) { partial[2 * blockIdx.x] = pull; partial[2 * blockIdx.x + 1] = loss; }
}

// of margins (rows, classes), which become the share of each class; slope (rows, classes): shares less one at class y, weighted; partial (blocks,): the loss
template <class T>
__global__ void shares(T* __restrict__ eta, const i64* __restrict__ y, const double* __restrict__ weight, i64 rows, int classes,
                       T* __restrict__ slope, double* __restrict__ partial) {
  double loss = 0;
  for (i64 i = position(); i < rows; i += stride()) {
    T* e = eta + i * classes;
    double top = (double)e[0], total = 0, w = weight ? weight[i] : 1.0;
    for (int k = 1; k < classes; k++) top = fmax(top, (double)e[k]);
    double own = (double)e[y[i]] - top;
    for (int k = 0; k < classes; k++) total += exp((double)e[k] - top);
    if (w != 0) loss += w * (log(total) - own);
    for (int k = 0; k < classes; k++) {
      double p = exp((double)e[k] - top) / total;
      e[k] = (T)p;
      slope[i * classes + k] = w != 0 ? (T)((p - (k == y[i] ? 1.0 : 0.0)) * w) : T(0);
    }
  }
  loss = block_sum(loss);
  if (threadIdx.x == 0) partial[blockIdx.x] = loss;
}
