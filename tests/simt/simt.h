// CUDA C++ on the host: one fiber a thread, so that a kernel's text runs under AddressSanitizer, UBSan and a race checker.
// What is here: the part of the language that scalai_nb/kernels/*.cu use. A barrier or warp operation that not all threads reach is an error.
// What is not: time, caches, memory consistency weaker than program order, two threads truly at once.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define QUIET __attribute__((no_sanitize("thread")))  // the shim's own memory accesses are not the kernel's

struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) longlong2 { long long x, y; };

extern dim3 threadIdx, blockIdx, blockDim, gridDim;
static constexpr int warpSize = 32;

namespace simt {
void barrier(int line);                                                            // all threads of the block
const unsigned char* exchange(unsigned mask, const void* value, size_t size, int line);  // what each lane of `mask` brought, 16 bytes a lane
void warp_barrier(unsigned mask, int line);
void touch(const volatile void* address, size_t size, bool write, bool atomic);    // tell the race checker
void declare(void* memory, size_t size);                                           // shared memory of this block: garbage at first
unsigned char* dynamic();                                                          // dynamic shared memory
unsigned lane();
[[noreturn]] void fail(const char* what, int line);

template <class T> QUIET T pick(unsigned mask, T value, unsigned source, int line) {
  static_assert(sizeof(T) <= 16);
  const unsigned char* all = exchange(mask, &value, sizeof(T), line);
  if (!(mask >> source & 1)) fail("shuffle reads a lane that is not in the mask", line);
  T result; memcpy(&result, all + 16 * source, sizeof(T)); return result;
}
template <class T, class F> QUIET T atomic(T* address, F change) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T)) fail("misaligned atomic", 0);
  touch(address, sizeof(T), true, true);
  T old = *address; *address = change(old); return old;
}
template <class T> QUIET T peek(const T* address) { touch(address, sizeof(T), false, true); return *address; }
template <class T> struct same { using type = T; };
template <class T> using as = typename same<T>::type;
}

#define SHARED(T, name, n) static T name[n]; simt::declare(name, sizeof(name))  // as kernels/common.cuh defines it for the device
#define DYNAMIC_SHARED(name) unsigned char* name = simt::dynamic()
#define PEEK(p) simt::peek(p)
#define __shared__ static
#define __syncthreads() simt::barrier(__LINE__)
#define __syncwarp(...) simt::warp_barrier(simt_mask(__VA_ARGS__), __LINE__)
#define __shfl_sync(mask, v, source) simt::pick(mask, v, (source) & 31, __LINE__)
#define __shfl_down_sync(mask, v, by) simt::pick(mask, v, simt::lane() + (by) < 32 ? simt::lane() + (by) : simt::lane(), __LINE__)
#define __shfl_xor_sync(mask, v, by) simt::pick(mask, v, simt::lane() ^ (by), __LINE__)
#define __ballot_sync(mask, p) simt_ballot(mask, p, __LINE__)
#define __any_sync(mask, p) (simt_ballot(mask, p, __LINE__) != 0)
#define __all_sync(mask, p) (simt_ballot(mask, p, __LINE__) == (mask))
#define __match_any_sync(mask, v) simt_match(mask, v, __LINE__)

inline unsigned simt_mask(unsigned mask = ~0u) { return mask; }
QUIET inline unsigned simt_ballot(unsigned mask, int p, int line) {
  const unsigned char* all = simt::exchange(mask, &p, sizeof p, line);
  unsigned result = 0;
  for (unsigned l = 0; l < 32; l++) { int q; memcpy(&q, all + 16 * l, sizeof q); if ((mask >> l & 1) && q) result |= 1u << l; }
  return result;
}
template <class T> QUIET unsigned simt_match(unsigned mask, T v, int line) {
  const unsigned char* all = simt::exchange(mask, &v, sizeof v, line);
  unsigned result = 0;
  for (unsigned l = 0; l < 32; l++) if ((mask >> l & 1) && !memcmp(all + 16 * l, &v, sizeof v)) result |= 1u << l;
  return result;
}

template <class T> T atomicAdd(T* a, simt::as<T> v) { return simt::atomic(a, [=](T x) { return static_cast<T>(x + v); }); }
template <class T> T atomicMax(T* a, simt::as<T> v) { return simt::atomic(a, [=](T x) { return x < v ? v : x; }); }
template <class T> T atomicMin(T* a, simt::as<T> v) { return simt::atomic(a, [=](T x) { return v < x ? v : x; }); }
template <class T> T atomicOr(T* a, simt::as<T> v) { return simt::atomic(a, [=](T x) { return static_cast<T>(x | v); }); }
template <class T> T atomicExch(T* a, simt::as<T> v) { return simt::atomic(a, [=](T) { return v; }); }
template <class T> T atomicCAS(T* a, simt::as<T> old, simt::as<T> v) { return simt::atomic(a, [=](T x) { return x == old ? v : x; }); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T> T __ldg(const T* p) { return *p; }
template <class To, class From> inline To simt_bits(From v) { static_assert(sizeof(To) == sizeof(From)); To r; memcpy(&r, &v, sizeof r); return r; }
inline long long __double_as_longlong(double v) { return simt_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return simt_bits<double>(v); }
inline int __float_as_int(float v) { return simt_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return simt_bits<unsigned>(v); }
inline float __int_as_float(int v) { return simt_bits<float>(v); }
inline float __uint_as_float(unsigned v) { return simt_bits<float>(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
using std::isfinite; using std::isinf; using std::isnan; using std::signbit;
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }

// ---- the server that a test talks to: kernels by name, arguments read and checked by type

namespace simt {
struct Argument { char kind; unsigned size; unsigned char* data; };  // kind: i u f of a scalar or of an array's elements; data: value or array
template <class T> char kind() { using V = std::remove_cv_t<T>; return std::is_floating_point_v<V> ? 'f' : std::is_same_v<V, bool> ? 'b' : std::is_unsigned_v<V> ? 'u' : 'i'; }
void check(int position, const Argument& given, bool array, char kind, unsigned size);
template <class T> T argument(int position, const Argument& a) {
  if constexpr (std::is_pointer_v<T>) {
    using V = std::remove_pointer_t<T>;
    check(position, a, true, kind<V>(), sizeof(V));
    if (a.kind == 'u') return nullptr;
    return reinterpret_cast<T>(a.data);
  } else {
    check(position, a, false, kind<T>(), sizeof(T)); T v; memcpy(&v, a.data, sizeof v); return v;
  }
}
using Body = void (*)(const void*);
void run(Body body, const void* call);  // body(call) in every thread of the grid
using Kernel = void (*)(const Argument*, int n);
void add(const char* name, Kernel kernel, int arity);
void count(int given, int wanted);

template <auto F, class... A, size_t... I> void invoke(void (*)(A...), std::index_sequence<I...>, const Argument* a) {
  struct Call { std::tuple<A...> values; } call{{argument<A>(I, a[I])...}};
  run([](const void* c) { std::apply(F, static_cast<const Call*>(c)->values); }, &call);
}
template <auto F, class... A> void entry(const char* name, void (*)(A...)) {
  add(name, [](const Argument* a, int n) {
    count(n, sizeof...(A));
    void (*f)(A...) = F; invoke<F>(f, std::index_sequence_for<A...>{}, a);
  }, sizeof...(A));
}
}
#define KERNEL(name, ...) simt::entry<(__VA_ARGS__)>(name, (__VA_ARGS__))
