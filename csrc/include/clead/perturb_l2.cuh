// The l2 step and projection, and the gradient's running sum, on the GPU. Torch-free; bits as perturb/reference.py.
// Products that meet an addition are spelt __dmul_rn: the compiler would fuse them, and round once less.
#pragma once

#include <type_traits>

#include "clead/sample.cuh"

namespace clead::cuda {

constexpr double kLargest = 0x1.fffffffffffffp1023;

template <class T>
__global__ void __launch_bounds__(kTeamThreads, 1) pgd_step_l2_kernel(const __grid_constant__ Samples<T> s) {
  extern __shared__ __align__(16) unsigned char memory[];
  const Sample<T> sample(s, memory);
  const double eps = s.eps.at(sample.index);
  double power = 1.0, factor = 0.0;
  if (s.grad != nullptr) {
    if constexpr (std::is_same_v<T, double>) {  // in the other types no square over- or underflows
      double most = 0.0;
      sample.each([&](int i) { most = fabs(sample.grad(i)) > most ? fabs(sample.grad(i)) : most; });
      most = sample.largest(most);
      if (most > 0.0 && most <= kLargest) power = power_of_two(most);
    }
    const double squares = sample.ordered_sum([&](int i) {
      const double g = sample.grad(i) / power;
      return __dmul_rn(g, g);
    });
    const double step = s.step.at(sample.index);
    if (squares > 0.0 && squares <= kLargest) factor = (s.down ? -step : step) / __dsqrt_rn(squares);
  }
  const bool moves = factor != 0.0;
  const auto moved = [&](int i) {
    const double start = sample.x_adv(i);
    return moves ? start + __dmul_rn(sample.grad(i) / power, factor) : start;
  };
  const double norm = __dsqrt_rn(sample.ordered_sum([&](int i) {
    const double delta = moved(i) - sample.x(i);
    return __dmul_rn(delta, delta);
  }));
  const double shrink = eps / norm;
  sample.each([&](int i) {
    const double centre = sample.x(i), to = moved(i);
    const double nearest = norm <= eps ? to : centre + __dmul_rn(to - centre, shrink);
    sample.write(i, clamped(nearest, s.low, s.high), centre);
  });
}

// buffer (in the place of x_adv) ← momentum (in the place of eps) · buffer + grad / ‖grad‖₁.
template <class T>
__global__ void __launch_bounds__(kTeamThreads, 1) momentum_kernel(const __grid_constant__ Samples<T> s) {
  extern __shared__ __align__(16) unsigned char memory[];
  const Sample<T> sample(s, memory);
  const double momentum = s.eps.at(sample.index);
  const double length = sample.ordered_sum([&](int i) { return fabs(static_cast<double>(sample.grad(i))); });
  const bool adds = length > 0.0 && length <= kLargest;
  sample.each([&](int i) {
    const double share = adds ? sample.grad(i) / length : 0.0;
    sample.write(i, __dmul_rn(sample.x_adv(i), momentum) + share, 0.0);
  });
}

}  // namespace clead::cuda
