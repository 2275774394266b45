// One sample of the l1 step and projection. Torch-free; arithmetic as in perturb/reference_l1.py.
#pragma once

#include <type_traits>

#include "clead/isa.h"
#include "clead/pixel.h"

namespace clead {

// The bits of a magnitude, in its order.
template <class T>
using Magnitude = std::conditional_t<sizeof(Wide<T>) == sizeof(double), uint64_t, uint32_t>;

// size ≥ 1 elements in C order; the scratch holds whole pieces of 128.
template <class T>
struct L1Row {
  T* x_adv;
  const T* grad;  // null: projection only
  const T* x;
  double* moved;
  int64_t *outer, *inner;
  Magnitude<T>*keys, *candidates;
  int64_t size, wanted;  // wanted: coordinates to move, at least
  double eps, step, low, high;
  bool down;  // descend
};

// Bits of the largest distance in a sample of this size, such that a sum of distances fits in 63.
CLEAD_FN int l1_bits(int64_t size) {
  int length = 0;
  for (; size > 0; size >>= 1) ++length;
  return length < 10 ? 52 : 62 - length;
}

// A budget in whole units; a negative one would have no end.
CLEAD_FN int64_t l1_units(double budget) {
  if (!(budget < 0x1p62)) return int64_t{1} << 62;
  return budget > 0 ? static_cast<int64_t>(budget) : 0;
}

// Σ min(max(distance - λ, 0), room) at λ and at λ - 1, all in whole units.
struct L1Sums {
  int64_t at, before;
};

// The least λ in [0, largest] whose sum is at most the budget; sums(λ) for λ ≥ 1 gives the above, 0 at λ = largest.
// Newton's steps, which end where the sum is straight, inside an interval that every fourth one halves.
template <class Sums>
CLEAD_FN int64_t l1_shrinkage(int64_t budget, int64_t largest, const Sums& sums) {
  int64_t low = 0, high = largest, shrinkage = 1;
  for (int turn = 1;; ++turn) {
    const L1Sums sum = sums(shrinkage);
    if (sum.at > budget) {
      low = shrinkage;
    } else if (sum.before > budget) {
      return shrinkage;
    } else {
      high = shrinkage - 1;
      if (high == 0) return 0;
    }
    const int64_t slope = sum.before - sum.at, excess = sum.at - budget;
    int64_t next = low;
    if (slope > 0) next = shrinkage + (excess > 0 ? (excess - 1) / slope + 1 : -(-excess / slope));
    if (next <= low || next > high || turn % 4 == 0) next = low + (high - low + 1) / 2;
    shrinkage = next;
  }
}

#define CLEAD_DECLARE(isa)                \
  namespace isa {                         \
  void pgd_step_l1(const L1Row<double>&); \
  void pgd_step_l1(const L1Row<float>&);  \
  void pgd_step_l1(const L1Row<Bf16>&);   \
  void pgd_step_l1(const L1Row<Half>&);   \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE

}  // namespace clead
