// One element, and one run of elements, of the linf step. Torch-free.
#pragma once

#include "clead/isa.h"
#include "clead/pixel.h"

namespace clead {

// x_adv on [x - eps, x + eps], then on [low, high].
template <class Wide>
CLEAD_FN Wide linf_project(Wide x_adv, Wide x, Wide eps, Wide low, Wide high) {
  const Wide least = x - eps, most = x + eps;
  x_adv = x_adv < least ? least : x_adv;
  x_adv = x_adv > most ? most : x_adv;
  x_adv = least == least ? x_adv : least;  // NaN stays NaN
  x_adv = most == most ? x_adv : most;
  x_adv = x_adv < low ? low : x_adv;
  return x_adv > high ? high : x_adv;
}

// x_adv + step · sign(grad), projected; a NaN gradient does not move. Descent is a negative step. The product is
// exact, so contraction into a multiply-add changes nothing.
template <class Wide>
CLEAD_FN Wide linf_step(Wide x_adv, Wide grad, Wide x, Wide eps, Wide step, Wide low, Wide high) {
  const Wide sign = static_cast<Wide>((grad > 0) - (grad < 0));
  return linf_project<Wide>(x_adv + step * sign, x, eps, low, high);
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
  void pgd_step_linf(const LinfRun<Half, float>&);    \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE

}  // namespace clead
