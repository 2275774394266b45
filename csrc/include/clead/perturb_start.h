// Random starts. Torch-free; the arithmetic is that of perturb/reference.py and philox.py, bit for bit.
#pragma once

#include "clead/isa.h"
#include "clead/pixel.h"

namespace clead {

// The draws of one sample.
struct Stream {
  uint64_t key;
  uint32_t sample, view, step;
};

// Elements [first, first + size) of a sample in C order; first is a multiple of 4.
template <class T>
struct LinfStart {
  T* x_adv;
  const T* x;
  const Wide<T>* eps;
  int64_t eps_stride;  // 0 or 1
  int64_t first, size;
  Stream stream;
  Wide<T> low, high;
};

// A whole sample of T, from numbers whose sum or sum of squares is its length; N holds one of them.
template <class T, class N>
struct BallStart {
  using Number = N;
  T* x_adv;
  const T* x;
  N* numbers;  // room for drawn(size)
  int64_t size;
  Stream stream;
  double eps, low, high;
};

template <class T>
struct L2Start : BallStart<T, int32_t> {};  // normal, in units of 2^-16
template <class T>
struct L1Start : BallStart<T, int64_t> {};  // exponential with a sign, in units of 2^-32

constexpr int64_t kDraws = 1024;  // made at a time

// Room for the d + 1 or d + 2 numbers of a start, in full batches of draws.
constexpr int64_t drawn(int64_t d) { return (d + 2 + kDraws - 1) / kDraws * kDraws; }

#define CLEAD_DECLARE_FOR(T)           \
  void random_start(const LinfStart<T>&); \
  void random_start(const L2Start<T>&);   \
  void random_start(const L1Start<T>&);
#define CLEAD_DECLARE(isa)    \
  namespace isa {             \
  CLEAD_DECLARE_FOR(double)   \
  CLEAD_DECLARE_FOR(float)    \
  CLEAD_DECLARE_FOR(Bf16)     \
  CLEAD_DECLARE_FOR(Half)     \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE
#undef CLEAD_DECLARE_FOR

}  // namespace clead
