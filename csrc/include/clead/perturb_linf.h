// One element, and one run of elements, of the linf step. Torch-free.
#pragma once

#include "clead/isa.h"
#include "clead/pixel.h"

namespace clead {

// x_adv + step · sign(grad), projected on [x - eps, x + eps], then on [low, high]; a NaN gradient does not move.
// Descent is a negative step. The product is exact, so contraction into a multiply-add changes nothing.
template <class Wide>
CLEAD_FN Wide linf_step(Wide x_adv, Wide grad, Wide x, Wide eps, Wide step, Wide low, Wide high) {
  const Wide sign = static_cast<Wide>((grad > 0) - (grad < 0));
  const Wide least = x - eps, most = x + eps;
  Wide moved = x_adv + step * sign;
  moved = moved < least ? least : moved;
  moved = moved > most ? most : moved;
  moved = x == x ? moved : x;  // NaN stays NaN
  moved = moved < low ? low : moved;
  return moved > high ? high : moved;
}

// size elements; the strides are in elements, eps and step may have stride 0.
template <class T, class Wide>
struct LinfRun {
  T* x_adv;
  const T* grad;
  const T* x;
  const Wide* eps;
  const Wide* step;
  int64_t x_adv_stride, grad_stride, x_stride, eps_stride, step_stride;
  int64_t size;
  Wide sign, low, high;  // sign: 1 ascends, -1 descends
};

#define CLEAD_DECLARE(isa)                           \
  namespace isa {                                    \
  void pgd_step_linf(const LinfRun<double, double>&); \
  void pgd_step_linf(const LinfRun<float, float>&);   \
  void pgd_step_linf(const LinfRun<Bf16, float>&);    \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE

}  // namespace clead
