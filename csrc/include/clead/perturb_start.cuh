// Random starts on the GPU. Torch-free; bits as perturb/draws.py and philox.py. Every product that meets an addition is
// spelt out, so that the compiler does not fuse them.
#pragma once

#include "clead/perturb_linf.h"
#include "clead/perturb_start.h"
#include "clead/sample.cuh"

namespace clead::cuda {

// Samples, and the random stream of each. eps of linf may vary within a sample: its strides follow those of Samples.
template <class T>
struct Starts {
  Samples<T> samples;
  uint64_t key;
  const int64_t* ids;  // null: the position
  int64_t ids_stride;
  uint32_t step;
  const Wide<T>* eps;  // linf; null: samples.eps
  int eps_dims, eps_dim[kSampleDims];
  int64_t eps_sample_stride, eps_stride[kSampleDims];
};

struct Words {
  uint32_t at[4];
};

// Words 4 · block, … of a stream.
__device__ inline Words philox4x32(const Stream& s, uint64_t block) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = s.sample, c2 = s.view, c3 = s.step;
  uint32_t k0 = static_cast<uint32_t>(s.key), k1 = static_cast<uint32_t>(s.key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
    const uint32_t high1 = __umulhi(c2, 0xCD9E8D57u), low1 = c2 * 0xCD9E8D57u;
    c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

template <class T>
__device__ Stream stream_of_sample(const Starts<T>& s, int64_t index) {
  const uint64_t id = static_cast<uint64_t>(s.ids != nullptr ? s.ids[index * s.ids_stride] : index);
  return {s.key, static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32), s.step};
}

template <int kTerms>
__device__ double horner(const double (&coefficients)[kTerms], double x) {
  double value = coefficients[0];
#pragma unroll
  for (int i = 1; i < kTerms; ++i) value = __dadd_rn(__dmul_rn(value, x), coefficients[i]);
  return value;
}

// ln(n · 2^-32) for integers n in [1, 2^32].
__device__ inline double log_fraction(uint64_t n) {
  int exponent;
  double mantissa = frexp(static_cast<double>(n), &exponent);
  if (mantissa < 0.70710678118654757) mantissa *= 2.0, --exponent;  // the float64 nearest √½
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  constexpr double kSeries[] = {1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1.0};
  const double series = horner(kSeries, __dmul_rn(s, s));
  return __dadd_rn(__dmul_rn(static_cast<double>(exponent - 32), 0.69314718055994529), __dmul_rn(2.0 * s, series));
}

// cos and sin of 2π · word · 2^-32.
__device__ inline void cos_sin(uint32_t word, double& cos, double& sin) {
  constexpr double kCos[] = {-1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320,
                             -1.0 / 720,         1.0 / 24,        -1.0 / 2,       1.0};
  constexpr double kSin[] = {1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880, -1.0 / 5040,
                             1.0 / 120,        -1.0 / 6,        1.0};
  const double angle = __dmul_rn(static_cast<double>(word & 0x3FFFFFFFu), 1.5707963267948966 * 0x1p-30);
  const double square = __dmul_rn(angle, angle), c = horner(kCos, square), s = __dmul_rn(angle, horner(kSin, square));
  const uint32_t quadrant = word >> 30;
  cos = quadrant & 1 ? -s : c, sin = quadrant & 1 ? c : s;
  if (quadrant >= 2) cos = -cos, sin = -sin;
}

// Numbers 4 · block, … of a sample: normal ones in units of 2^-16, or exponential ones in units of 2^-32 with a sign.
struct Gaussian {
  static constexpr int kExtra = 2;
  __device__ static void numbers(const Words& words, int64_t (&z)[4]) {
#pragma unroll
    for (int pair = 0; pair < 4; pair += 2) {
      const double radius = __dsqrt_rn(-2.0 * log_fraction(static_cast<uint64_t>(words.at[pair]) + 1));
      double cos, sin;
      cos_sin(words.at[pair + 1], cos, sin);
      z[pair] = static_cast<int64_t>(floor(__dadd_rn(__dmul_rn(__dmul_rn(radius, cos), 65536.0), 0.5)));
      z[pair + 1] = static_cast<int64_t>(floor(__dadd_rn(__dmul_rn(__dmul_rn(radius, sin), 65536.0), 0.5)));
    }
  }
  __device__ static int64_t share(int64_t z) { return z * z; }
  __device__ static double length(int64_t total) { return __dsqrt_rn(static_cast<double>(total < 1 ? 1 : total)); }
};

struct Exponential {
  static constexpr int kExtra = 1;
  __device__ static void numbers(const Words& words, int64_t (&e)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double log = log_fraction(static_cast<uint64_t>(words.at[i] | 1) + 1);
      const int64_t size = static_cast<int64_t>(floor(__dadd_rn(__dmul_rn(log, -0x1p32), 0.5)));
      e[i] = words.at[i] & 1 ? -size : size;
    }
  }
  __device__ static int64_t share(int64_t e) { return e < 0 ? -e : e; }
  __device__ static double length(int64_t total) { return static_cast<double>(total < 1 ? 1 : total); }
};

// Drawn twice rather than kept: once for their length, once for their place.
template <class T, class Numbers>
__global__ void __launch_bounds__(kTeamThreads, 1) random_start_ball_kernel(const __grid_constant__ Starts<T> s) {
  extern __shared__ __align__(16) unsigned char memory[];
  const Sample<T> sample(s.samples, memory);
  const Stream stream = stream_of_sample(s, sample.index);
  const int drawn = s.samples.size + Numbers::kExtra;
  int64_t total = 0, numbers[4];
  for (int block = threadIdx.x; 4 * block < drawn; block += kTeamThreads) {
    Numbers::numbers(philox4x32(stream, block), numbers);
#pragma unroll
    for (int i = 0; i < 4; ++i) total += 4 * block + i < drawn ? Numbers::share(numbers[i]) : 0;
  }
  const double length = Numbers::length(sample.sum(total)), eps = s.samples.eps.at(sample.index);
  for (int block = threadIdx.x; 4 * block < sample.count; block += kTeamThreads) {
    Numbers::numbers(philox4x32(stream, block), numbers);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int e = 4 * block + i;
      if (e >= sample.count) continue;
      const double centre = sample.x(e);
      const double value = __dadd_rn(centre, __dmul_rn(eps, static_cast<double>(numbers[i]) / length));
      sample.write(e, clamped(value, s.samples.low, s.samples.high), centre);
    }
  }
}

__device__ inline float times(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double times(double a, double b) { return __dmul_rn(a, b); }

template <class T>
__global__ void __launch_bounds__(kTeamThreads, 1) random_start_linf_kernel(const __grid_constant__ Starts<T> s) {
  extern __shared__ __align__(16) unsigned char memory[];
  using W = Wide<T>;
  const Sample<T> sample(s.samples, memory);
  const Stream stream = stream_of_sample(s, sample.index);
  for (int block = threadIdx.x; 4 * block < sample.count; block += kTeamThreads) {
    const Words words = philox4x32(stream, block);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int e = 4 * block + i;
      if (e >= sample.count) continue;
      W eps = static_cast<W>(s.samples.eps.scalar);
      if (s.eps != nullptr) {
        int64_t at = sample.index * s.eps_sample_stride;
        int rest = e;
#pragma unroll 1
        for (int d = 0; d < s.eps_dims; rest /= s.eps_dim[d++]) at += rest % s.eps_dim[d] * s.eps_stride[d];
        eps = s.eps[at];
      }
      const W centre = sample.x(e), unit = static_cast<W>(words.at[i] >> 8) * W(0x1p-23) - W(1);
      const W value = centre + times(unit, eps);
      sample.store(e, linf_project<W>(value, centre, eps, static_cast<W>(s.samples.low), static_cast<W>(s.samples.high)),
                   centre);
    }
  }
}

// One block per sample; the sample is read once and stays where it is.
template <class T>
void launch_starts(void (*kernel)(Starts<T>), Starts<T> s, cudaStream_t stream) {
  s.samples.pieces = (s.samples.size + kBlockPiece - 1) / kBlockPiece;
  s.samples.staged = false;
  kernel<<<static_cast<unsigned>(s.samples.count), kTeamThreads, 0, stream>>>(s);
}

}  // namespace clead::cuda
