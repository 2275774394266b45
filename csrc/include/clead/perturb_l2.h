// One sample of the l2 step and projection. Torch-free; arithmetic and order of sums as in perturb/reference.py.
#pragma once

#include "clead/isa.h"
#include "clead/pixel.h"

namespace clead {

// size ≥ 1 elements in C order.
template <class T>
struct L2Row {
  T* x_adv;
  const T* grad;  // null: projection only
  const T* x;
  int64_t size;
  double eps, step;  // a negative step descends
  double low, high;
};

#define CLEAD_DECLARE(isa)                \
  namespace isa {                         \
  void pgd_step_l2(const L2Row<double>&); \
  void pgd_step_l2(const L2Row<float>&);  \
  void pgd_step_l2(const L2Row<Bf16>&);   \
  void pgd_step_l2(const L2Row<Half>&);   \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE

}  // namespace clead
