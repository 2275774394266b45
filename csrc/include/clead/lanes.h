// Vectors as wide as the instruction set of the translation unit, for *.isa.cpp only: all of it has internal linkage.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#define CLEAD_INLINE static inline __attribute__((always_inline))

namespace clead {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kVectorRows = 12;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kVectorRows = 6;
#else
constexpr int kVectorBytes = 16, kVectorRows = 6;
#endif

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
  typedef float Loose __attribute__((vector_size(kVectorBytes), aligned(4)));
  typedef int32_t Integers;
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  static constexpr int kMantissa = 23, kBias = 127;
};

template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef int64_t I __attribute__((vector_size(kVectorBytes)));
  typedef double Loose __attribute__((vector_size(kVectorBytes), aligned(8)));
  typedef int64_t Integers;
  static constexpr double kMagic = 6755399441055744.0;
  static constexpr int kMantissa = 52, kBias = 1023;
};

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <class T>
using Vec = typename Lanes<T>::V;
template <class T>
using Mask = typename Lanes<T>::I;

template <class T>
CLEAD_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Lanes<T>::Loose*>(p);
}

template <class T>
CLEAD_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Lanes<T>::Loose*>(p) = v;
}

template <class T>
CLEAD_INLINE Vec<T> all(T x) {
  return x - Vec<T>{};
}

// Ids of neighbouring columns, as wide as T.
CLEAD_INLINE Mask<float> ids(const int32_t* p, float) {
  Mask<float> v;
  memcpy(&v, p, sizeof v);
  return v;
}
CLEAD_INLINE Mask<double> ids(const int32_t* p, double) {
  Mask<double> v;
  for (int i = 0; i < kLanes<double>; ++i) v[i] = p[i];
  return v;
}

#if defined(__AVX512F__)
CLEAD_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a, b, c); }
CLEAD_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__AVX2__)
CLEAD_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a, b, c); }
CLEAD_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm256_fmadd_pd(a, b, c); }
#else
CLEAD_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return a * b + c; }
CLEAD_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return a * b + c; }
#endif

template <class T>
CLEAD_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {  // a where it is NaN
  return a < b ? b : a;
}

template <class T>
CLEAD_INLINE T total(Vec<T> v) {
  T parts[kLanes<T>];
  memcpy(parts, &v, sizeof v);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

template <class T>
CLEAD_INLINE T largest(Vec<T> v) {
  T parts[kLanes<T>];
  memcpy(parts, &v, sizeof v);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) parts[i] = parts[i] < parts[i + half] ? parts[i + half] : parts[i];
  return parts[0];
}

// 2^f for |f| <= 1/2: minimax of degree 6, and the series of degree 13.
CLEAD_INLINE Vec<float> power_of_fraction(Vec<float> f) {
  Vec<float> y = fma(f, all(1.535336188319500e-4f), all(1.339887440266574e-3f));
  y = fma(y, f, all(9.618437357674640e-3f));
  y = fma(y, f, all(5.550332471162809e-2f));
  y = fma(y, f, all(2.402264791363012e-1f));
  y = fma(y, f, all(6.931472028550421e-1f));
  return fma(y, f, all(1.0f));
}
CLEAD_INLINE Vec<double> power_of_fraction(Vec<double> f) {
  constexpr double series[] = {1.3691488853904128e-12, 2.5678435993488206e-11, 4.4455382718708116e-10,
                               7.0549116208011233e-09, 1.0178086009239699e-07, 1.3215486790144309e-06,
                               1.5252733804059841e-05, 1.5403530393381610e-04, 1.3333558146428444e-03,
                               9.6181291076284772e-03, 5.5504108664821580e-02, 2.4022650695910072e-01,
                               6.9314718055994531e-01, 1.0};
  Vec<double> y = all(series[0]);
  for (int i = 1; i < 14; ++i) y = fma(y, f, all(series[i]));
  return y;
}

// 2^x for x below the largest exponent; exactly 0 below the smallest normal number, NaN for NaN.
template <class T>
CLEAD_INLINE Vec<T> exp2(Vec<T> x) {
  using L = Lanes<T>;
  x = larger<T>(x, all<T>(-L::kBias));
  const Vec<T> shifted = x + L::kMagic, rounded = shifted - L::kMagic;
  Mask<T> exponent;
  memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent + L::kBias) << L::kMantissa;
  Vec<T> scale;
  memcpy(&scale, &exponent, sizeof scale);
  return power_of_fraction(x - rounded) * scale;
}

}  // namespace
}  // namespace clead
