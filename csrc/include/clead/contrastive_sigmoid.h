// The sigmoid loss in strips, of pairs that do not belong together: for *.isa.cpp only.
#pragma once

#include "clead/contrastive_spread.h"

namespace clead {
namespace {

// In powers of two: the logit x, and 2^-|x|, which is 0 for what is left out.
template <class T>
struct Logit {
  CLEAD_INLINE Logit of(const Contrast<T>& p, const T* at) {
    const Vec<T> x = fma(load(at), all(p.k), all(p.bias));
    return {x, exp2<T>(-larger<T>(x, -x))};
  }
  Vec<T> x, e;
};

// log(1 + e^s) = max(s, 0) + log(1 + e^-|s|).
template <class T>
void forward_sigmoid(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t columns, const T* strip) {
  for (int64_t r = 0; r < rows; ++r) {
    Vec<T> above{}, logs{};
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const auto logit = Logit<T>::of(p, strip + r * p.block + c);
      above += larger<T>(logit.x, Vec<T>{});
      logs -= minus_log_of_complement<T>(-logit.e);
    }
    p.a->negatives.sum[i0 + r] += static_cast<double>(total<T>(above)) / kLog2e + static_cast<double>(total<T>(logs));
  }
}

// The strip becomes alpha times the derivative, 1 / (1 + e^-s).
template <class T>
void backward_sigmoid(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t columns, T* strip) {
  const Vec<T> one = all<T>(1), zero{};
  for (int64_t r = 0; r < rows; ++r) {
    const Vec<T> alpha = all(p.a->alpha[i0 + r]);
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      T* const at = strip + r * p.block + c;
      const auto logit = Logit<T>::of(p, at);
      store(at, alpha * (logit.x > zero ? one : logit.e) / (one + logit.e));
    }
  }
}

}  // namespace
}  // namespace clead
