// What the operations of our own share: loops that are compiled for several instruction sets, their
// arithmetic, and checks of tensors.
//
// Work is cut into units by the shapes alone and every sum is made in the order of its units, so
// results have the same bits for any number of threads.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "guard.h"

// Part of the function that it is called from, and so compiled for its instruction set.
#define FWP_PART static inline __attribute__((always_inline))

namespace {

// Elements that a thread of its own is worth.
constexpr int64_t kGrain = 16384;

// `NAME(operation, begin, end)` runs `BODY<T>` over a range of its units, compiled for the best instruction set that this machine has.
// Not target_clones: its `arch=` compares the name of a processor in gcc 12, and a newer one gets the least.
#if defined(__x86_64__)
#define FWP_AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")))
#define FWP_AVX2 __attribute__((target("avx2,fma")))
#define FWP_KERNEL(NAME, BODY, OPERATION)                                                                \
  template <typename T>                                                                                  \
  FWP_AVX512 void NAME##_avx512(const OPERATION<T>& o, int64_t begin, int64_t end) {                     \
    BODY<T>(o, begin, end);                                                                              \
  }                                                                                                      \
  template <typename T>                                                                                  \
  FWP_AVX2 void NAME##_avx2(const OPERATION<T>& o, int64_t begin, int64_t end) {                         \
    BODY<T>(o, begin, end);                                                                              \
  }                                                                                                      \
  template <typename T>                                                                                  \
  void NAME(const OPERATION<T>& o, int64_t begin, int64_t end) {                                         \
    static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && \
                               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"); \
    static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");            \
    if (avx512 && avx2) return NAME##_avx512<T>(o, begin, end);                                          \
    if (avx2) return NAME##_avx2<T>(o, begin, end);                                                      \
    BODY<T>(o, begin, end);                                                                              \
  }
#else
#define FWP_KERNEL(NAME, BODY, OPERATION)                              \
  template <typename T>                                                \
  void NAME(const OPERATION<T>& o, int64_t begin, int64_t end) {       \
    BODY<T>(o, begin, end);                                            \
  }
#endif

// ---- numbers ----

template <typename T>
struct Real;

template <>
struct Real<float> {
  using Bits = int32_t;
  static constexpr int mantissa = 23, bias = 127, terms = 7;
  // Between these, 2^n and its product with a number from 1/sqrt(2) to sqrt(2) are normal numbers.
  static constexpr float least = -87, most = 88;
  static constexpr float magic = 12582912;  // 1.5 * 2^23: adding it rounds to a whole number
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};

template <>
struct Real<double> {
  using Bits = int64_t;
  static constexpr int mantissa = 52, bias = 1023, terms = 13;
  static constexpr double least = -708, most = 709;
  static constexpr double magic = 6755399441055744;  // 1.5 * 2^52
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
};

// 1/0! to 1/13!
constexpr double kTaylor[] = {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040,
                              1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800,
                              1.0 / 479001600, 1.0 / 6227020800};

// e^x; of smaller x than `least` that of `least`. NaN stays NaN.
// x = n ln 2 + r with |r| <= ln(2)/2, where Taylor's series ends below the last place.
template <typename T>
FWP_PART T exponential(T given) {
  using R = Real<T>;
  T x = given < R::least ? R::least : given;
  x = x > R::most ? R::most : x;
  const T shifted = x * T(1.4426950408889634) + R::magic;
  const T n = shifted - R::magic;
  const T r = (x - n * R::ln2_high) - n * R::ln2_low;
  T sum = T(kTaylor[R::terms]);
#pragma GCC unroll 16
  for (int i = R::terms - 1; i >= 0; --i) sum = sum * r + T(kTaylor[i]);
  // The lowest bits of `shifted` are n as a whole number.
  typename R::Bits bits;
  std::memcpy(&bits, &shifted, sizeof(T));
  bits = static_cast<typename R::Bits>(
      static_cast<std::make_unsigned_t<typename R::Bits>>(bits + R::bias) << R::mantissa);
  T power;
  std::memcpy(&power, &bits, sizeof(T));
  return given > R::most ? std::numeric_limits<T>::infinity() : sum * power;
}

template <typename T>
FWP_PART T sigmoid(T x) {
  return T(1) / (T(1) + exponential<T>(-x));
}

// d/dx of x sigmoid(x), where s = sigmoid(x).
template <typename T>
FWP_PART T silu_slope(T x, T s) {
  return s * (T(1) + x * (T(1) - s));
}

// A whole cache line of numbers. Sums along an axis are made in this many lanes: the order is
// written down, because compilers keep the order of plain sums and so make no vectors of them.
// In halves, which one register of most machines holds: of vectors that need two, gcc makes
// detours through memory.
template <typename T>
struct Line {
  typedef T Half __attribute__((vector_size(32)));
  static constexpr int lanes = 64 / sizeof(T);
  Half low, high;
};

template <typename T>
FWP_PART void read(Line<T>& line, const T* from) {
  std::memcpy(&line.low, from, sizeof(line.low));
  std::memcpy(&line.high, from + Line<T>::lanes / 2, sizeof(line.high));
}

FWP_PART float total_of_half(const Line<float>::Half& v) {
  auto sum = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  sum += __builtin_shufflevector(sum, sum, 2, 3, 0, 1);
  return sum[0] + sum[1];
}

FWP_PART double total_of_half(const Line<double>::Half& v) {
  const auto sum = __builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3);
  return sum[0] + sum[1];
}

template <typename T>
FWP_PART T total(const Line<T>& line) {
  return total_of_half(line.low + line.high);
}

// The sum of a, of a b, or of a b c; b and c are null where they are missing.
template <typename T, bool B, bool C>
FWP_PART T sum_of(const T* a, const T* b, const T* c, int64_t n) {
  Line<T> lanes = {};
  int64_t i = 0;
  for (; i + Line<T>::lanes <= n; i += Line<T>::lanes) {
    Line<T> v, factor;
    read(v, a + i);
    if (B) read(factor, b + i), v.low *= factor.low, v.high *= factor.high;
    if (C) read(factor, c + i), v.low *= factor.low, v.high *= factor.high;
    lanes.low += v.low, lanes.high += v.high;
  }
  T sum = total(lanes);
  for (; i < n; ++i) sum += a[i] * (B ? b[i] : T(1)) * (C ? c[i] : T(1));
  return sum;
}

// ---- tensors ----

// While it lives, libtorch's operations record nothing: neither for a backward pass nor of what is a view of what.
using Below = at::AutoDispatchBelowADInplaceOrView;

inline void expect(const at::Tensor& t, const at::Tensor& like, at::IntArrayRef sizes, const char* what) {
  TORCH_CHECK(t.device().is_cpu() && t.scalar_type() == like.scalar_type() && t.sizes() == sizes, what,
              " of a fused operation: expected ", sizes, " ", like.scalar_type(), ", got ", t.sizes(), " ",
              t.scalar_type(), " on ", t.device());
}

// `t` without gaps and with a dense last axis; the others lie in any order.
inline at::Tensor whole(const at::Tensor& t) {
  return t.is_non_overlapping_and_dense() && (t.dim() == 0 || t.stride(-1) == 1) ? t : t.contiguous();
}

// `t` with these strides, which leave no gaps.
inline at::Tensor placed(const at::Tensor& t, at::IntArrayRef strides) {
  return t.strides() == strides ? t : at::empty_strided(t.sizes(), strides, t.options()).copy_(t);
}

// `t` with every element where `like`, which is whole, has it.
inline at::Tensor placed(const at::Tensor& t, const at::Tensor& like) { return placed(t, like.strides()); }

template <typename F>
void by_type(const at::Tensor& t, F&& f) {
  if (t.scalar_type() == at::kFloat) {
    f(float());
  } else {
    TORCH_CHECK(t.scalar_type() == at::kDouble, "a fused operation on ", t.scalar_type());
    f(double());
  }
}

}  // namespace
