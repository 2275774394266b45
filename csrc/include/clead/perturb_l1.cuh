// The l1 step and projection on the GPU. Torch-free; bits as perturb/reference_l1.py.
#pragma once

#include "clead/perturb_l1.h"
#include "clead/sample.cuh"

namespace clead::cuda {

__device__ inline uint32_t magnitude(float value) { return __float_as_uint(value) & 0x7FFFFFFFu; }
__device__ inline uint64_t magnitude(double value) {
  return static_cast<uint64_t>(__double_as_longlong(value)) & 0x7FFFFFFFFFFFFFFFu;
}

// |grad| of a coordinate that is free to move, in the order of its bits; 0 of any other.
template <class T>
__device__ Magnitude<T> free_magnitude(const Sample<T>& sample, int i) {
  const Wide<T> g = sample.grad(i);
  const double start = sample.x_adv(i);
  const bool up = sample.s.down ? g < 0 : g > 0, back = sample.s.down ? g > 0 : g < 0;
  return (up && start < sample.s.high) || (back && start > sample.s.low) ? magnitude(g) : 0;
}

// The wanted-th largest of them, bit by bit: the largest number that so many reach.
template <class T>
__device__ Magnitude<T> nth_largest(const Sample<T>& sample, int64_t wanted) {
  Magnitude<T> nth = 0;
  for (int bit = 8 * sizeof(nth) - 2; bit >= 0; --bit) {
    const Magnitude<T> candidate = nth | Magnitude<T>{1} << bit;
    int64_t reached = 0;
    sample.each([&](int i) { reached += free_magnitude(sample, i) >= candidate; });
    if (sample.sum(reached) >= wanted) nth = candidate;
  }
  return nth;
}

template <class T>
__global__ void __launch_bounds__(kTeamThreads, 1) pgd_step_l1_kernel(const __grid_constant__ Samples<T> s) {
  extern __shared__ __align__(16) unsigned char memory[];
  const Sample<T> sample(s, memory);
  Magnitude<T> least = 0;
  double length = 0.0;
  if (s.grad != nullptr) {
    const double part = floor(__dmul_rn(s.sparsity.at(sample.index), static_cast<double>(s.size)) + 0.5);
    const int64_t count = part >= static_cast<double>(s.size) ? s.size : static_cast<int64_t>(part);
    least = nth_largest(sample, count < 1 ? 1 : count);
    if (least == 0) least = 1;
    int64_t chosen = 0;
    sample.each([&](int i) { chosen += free_magnitude(sample, i) >= least; });
    chosen = sample.sum(chosen);
    length = s.step.at(sample.index) / static_cast<double>(chosen > 0 ? chosen : 1);
    if (s.down) length = -length;
  }
  const auto moved = [&](int i) {
    const double start = sample.x_adv(i);
    if (s.grad == nullptr || free_magnitude(sample, i) < least) return start;
    return start + (sample.grad(i) < 0 ? -length : length);
  };
  double most = 0.0;
  int64_t bad = 0;
  sample.each([&](int i) {
    const double distance = fabs(moved(i) - sample.x(i));
    bad += !(distance <= 0x1.fffffffffffffp1023);
    most = distance > most ? distance : most;
  });
  most = sample.largest(most);
  double shrinkage = sample.sum(bad) > 0 ? __longlong_as_double(0x7FF8000000000000) : 0.0;
  if (shrinkage == 0.0 && most > 0.0) {
    const double power = power_of_two(most), scale = ldexp(1.0, l1_bits(s.size) - 1);
    const double budget = floor(s.eps.at(sample.index) / power * scale);
    const int64_t units = l1_shrinkage(
        l1_units(budget),
        static_cast<int64_t>(ceil(most / power * scale)), [&](int64_t candidate) {
          int64_t at = 0, slope = 0;
          sample.each([&](int i) {
            const double centre = sample.x(i), delta = moved(i) - centre, distance = fabs(delta);
            const double space = delta < 0.0 ? centre - s.low : s.high - centre, room = space > 0.0 ? space : 0.0;
            const int64_t outer = static_cast<int64_t>(ceil(distance / power * scale));
            const int64_t inner =
                outer - static_cast<int64_t>(ceil((room < distance ? room : distance) / power * scale));
            at += (outer > candidate ? outer - candidate : 0) - (inner > candidate ? inner - candidate : 0);
            slope += (outer >= candidate) - (inner >= candidate);
          });
          const int64_t total = sample.sum(at);
          return L1Sums{total, total + sample.sum(slope)};
        });
    shrinkage = static_cast<double>(units) / scale * power;
  }
  sample.each([&](int i) {
    const double centre = sample.x(i), to = moved(i), delta = to - centre, left = fabs(delta) - shrinkage;
    const double shrunk = left < 0.0 ? 0.0 : left;  // NaN stays
    const double nearest = shrinkage == 0.0 ? to : centre + (delta < 0.0 ? -shrunk : shrunk);
    sample.write(i, clamped(nearest, s.low, s.high), centre);
  });
}

}  // namespace clead::cuda
