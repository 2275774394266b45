// One sample of the gradient's running sum. Torch-free; arithmetic and order of sums as in perturb/reference.py.
#pragma once

#include "clead/isa.h"
#include "clead/pixel.h"

namespace clead {

// size ≥ 1 elements in C order.
template <class T>
struct MomentumRow {
  T* buffer;
  const T* grad;
  int64_t size;
  double momentum;
};

#define CLEAD_DECLARE(isa)                     \
  namespace isa {                              \
  void accumulate(const MomentumRow<double>&); \
  void accumulate(const MomentumRow<float>&);  \
  void accumulate(const MomentumRow<Bf16>&);   \
  void accumulate(const MomentumRow<Half>&);   \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE

}  // namespace clead
