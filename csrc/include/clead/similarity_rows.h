// Rows on their way into a matrix product, and gradients on their way out. Torch-free.
#pragma once

#include <cstdint>

#include "clead/contrastive.h"
#include "clead/isa.h"
#include "clead/pixel.h"

namespace clead {

// What a row was divided by.
struct Norm {
  double inverse;  // 1 / max(norm, tiny)
  bool gradient;   // norm >= tiny
};

#define CLEAD_DECLARE_LOAD(T, S) \
  void unit_row(const S* x, int64_t stride, int64_t d, bool normalize, double scale, T* out, Norm&);
// out of unit_row: scale * x, or scale * x / max(norm, tiny). unit_row_backward takes the gradient by that row with
// scale 1, times scale, to the gradient by x; radial is the inner product of scale * grad with the row.
#define CLEAD_DECLARE_FOR(T)                                                                             \
  CLEAD_DECLARE_LOAD(T, double)                                                                          \
  CLEAD_DECLARE_LOAD(T, float)                                                                           \
  CLEAD_DECLARE_LOAD(T, Bf16)                                                                            \
  CLEAD_DECLARE_LOAD(T, Half)                                                                            \
  void unit_row_backward(const T* grad, const T* unit, int64_t d, bool normalize, double scale, const Norm&, T* out, \
                         double& radial);
#define CLEAD_DECLARE(isa)  \
  namespace isa {           \
  CLEAD_DECLARE_FOR(float)  \
  CLEAD_DECLARE_FOR(double) \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE
#undef CLEAD_DECLARE_FOR
#undef CLEAD_DECLARE_LOAD

}  // namespace clead
