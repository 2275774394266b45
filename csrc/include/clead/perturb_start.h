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

// A whole sample.
template <class T>
struct L2Start {
  T* x_adv;
  const T* x;
  int32_t* z;  // room for gaussians(size)
  int64_t size;
  Stream stream;
  double eps, low, high;
};

constexpr int64_t kDraws = 1024;  // made at a time

// Room for the d + 2 coordinates of a start, in full batches of draws.
constexpr int64_t gaussians(int64_t d) { return (d + 2 + kDraws - 1) / kDraws * kDraws; }

#define CLEAD_DECLARE_FOR(T)                  \
  void random_start_linf(const LinfStart<T>&); \
  void random_start_l2(const L2Start<T>&);
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
