// Vectors of the instruction set a file is compiled for, and the operations that compilers do not find by themselves.
// Torch-free, internal linkage; see clead/isa.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 trips over its own _mm512_undefined_pd
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace clead {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif

typedef double F64 __attribute__((vector_size(8 * kLanes)));
typedef float F32 __attribute__((vector_size(4 * kLanes)));
typedef int64_t I64 __attribute__((vector_size(8 * kLanes)));
typedef int32_t I32 __attribute__((vector_size(4 * kLanes)));
typedef uint64_t U64 __attribute__((vector_size(8 * kLanes)));

template <class V, class T>
inline V load(const T* from) {
  V value;
  memcpy(&value, from, sizeof value);
  return value;
}

template <class V, class T>
inline void store(T* to, V value) {
  memcpy(to, &value, sizeof value);
}

inline F64 to_f64(F32 value) {
#if defined(__AVX512F__)
  return (F64)_mm512_cvtps_pd((__m256)value);
#elif defined(__AVX2__)
  return (F64)_mm256_cvtps_pd((__m128)value);
#else
  return __builtin_convertvector(value, F64);
#endif
}

// kLanes numbers in float64.
inline F64 load_f64(const double* from) { return load<F64>(from); }
inline F64 load_f64(const float* from) { return to_f64(load<F32>(from)); }
inline F64 load_f64(const int32_t* from) {
#if defined(__AVX512F__)
  return (F64)_mm512_cvtepi32_pd((__m256i)load<I32>(from));
#elif defined(__AVX2__)
  return (F64)_mm256_cvtepi32_pd((__m128i)load<I32>(from));
#else
  return __builtin_convertvector(load<I32>(from), F64);
#endif
}

// value where it is NaN.
inline F64 at_least(F64 value, double low) {
#if defined(__AVX512F__)
  return (F64)_mm512_max_pd(_mm512_set1_pd(low), (__m512d)value);
#elif defined(__AVX2__)
  return (F64)_mm256_max_pd(_mm256_set1_pd(low), (__m256d)value);
#else
  return value < low ? F64{} + low : value;
#endif
}

inline F64 at_most(F64 value, double high) {
#if defined(__AVX512F__)
  return (F64)_mm512_min_pd(_mm512_set1_pd(high), (__m512d)value);
#elif defined(__AVX2__)
  return (F64)_mm256_min_pd(_mm256_set1_pd(high), (__m256d)value);
#else
  return value > high ? F64{} + high : value;
#endif
}

inline F64 square_root(F64 value) {
#if defined(__AVX512F__)
  return (F64)_mm512_sqrt_pd((__m512d)value);
#elif defined(__AVX2__)
  return (F64)_mm256_sqrt_pd((__m256d)value);
#else
  for (int i = 0; i < kLanes; ++i) value[i] = sqrt(value[i]);
  return value;
#endif
}

// The 64-bit products of the low halves.
inline U64 product(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// Stores a[0], b[0], a[1], b[1], …
inline void store_interleaved(uint64_t* to, U64 a, U64 b) {
#if defined(__AVX512F__)
  store(to, __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11));
  store(to + kLanes, __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15));
#elif defined(__AVX2__)
  store(to, __builtin_shufflevector(a, b, 0, 4, 1, 5));
  store(to + kLanes, __builtin_shufflevector(a, b, 2, 6, 3, 7));
#else
  store(to, __builtin_shufflevector(a, b, 0, 2));
  store(to + kLanes, __builtin_shufflevector(a, b, 1, 3));
#endif
}

// Masks of half the width.
inline I32 halved(I64 mask) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256 wide = (__m256)mask;
  return (I32)_mm_shuffle_ps(_mm256_castps256_ps128(wide), _mm256_extractf128_ps(wide, 1), _MM_SHUFFLE(2, 0, 2, 0));
#else
  return __builtin_convertvector(mask, I32);
#endif
}

// Of the neighbours of value the one on the side of x.
inline void store_towards(F64 value, F64, double* to) { store(to, value); }
inline void store_towards(F64 value, F64 x, float* to) {
#if defined(__AVX512F__)
  constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC, kUp = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;
  const __m256 down = _mm512_cvt_roundpd_ps((__m512d)value, kDown), up = _mm512_cvt_roundpd_ps((__m512d)value, kUp);
  const __mmask8 above = _mm512_cmp_pd_mask((__m512d)value, (__m512d)x, _CMP_GT_OQ);
  _mm256_storeu_ps(to, _mm256_mask_blend_ps(above, up, down));
#else
#if defined(__AVX2__)
  const F32 nearest = (F32)_mm256_cvtpd_ps((__m256d)value);
#else
  const F32 nearest = __builtin_convertvector(value, F32);
#endif
  const F64 back = to_f64(nearest);
  const I64 above = value > x;
  const I32 past = halved((above & (back > value)) | (~above & (back < value)));
  // Floats are sign and magnitude: the magnitude grows where x lies further from zero than value does.
  const I32 bits = (I32)nearest, grow = ~(halved(above) ^ (bits >> 31));
  store(to, bits - (past & (grow | 1)));
#endif
}

}  // namespace
}  // namespace clead
