// The term -sum log(1 - p_ij) over the negatives of a row, in strips: for *.isa.cpp only.
#pragma once

#include "clead/contrastive_strip.h"

namespace clead {
namespace {

// -log(1 - p) for 0 <= p <= kDominant: 2 artanh(p / (2 - p)) by its series, which is shorter than 2^-24 and 2^-53.
template <class T>
CLEAD_INLINE Vec<T> minus_log_of_complement(Vec<T> p) {
  constexpr int kTerms = sizeof(T) == 4 ? 9 : 21;
  const Vec<T> z = p / (all<T>(2) - p), square = z * z;
  Vec<T> sum = all<T>(T(1) / (2 * kTerms + 1));
  for (int n = kTerms - 1; n >= 0; --n) sum = fma(sum, square, all<T>(T(1) / (2 * n + 1)));
  return (z + z) * sum;
}

template <class T, class R>
void forward_spread(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t columns, const T* strip) {
  const Spread<T>& sums = p.a->spread;
  const Vec<T> log = log_weight(p), dominant = all(static_cast<T>(kDominant)), lowest = all(kLowest<T>);
  const Vec<T> one = all<T>(1), zero{};
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = i0 + r;
    const auto pick = Pick<T, R>::of(p, i);
    const Vec<T> scale = all(sums.share[i]), shift = all(p.a->shift[i]);
    const auto exponent = [&](int64_t c) {
      return exponents<T, R, true>(p, pick, strip + r * p.block + c, j0 + c, log, shift).negative;
    };
    Vec<T> logs{}, odds{}, found{}, max = lowest;
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const Vec<T> x = exponent(c), share = capped_exp2<T>(x) * scale;
      const Vec<T> other = share > dominant ? zero : share;
      found = share > dominant ? one : found;
      max = larger<T>(max, share > dominant ? lowest : x);
      logs += minus_log_of_complement<T>(other);
      odds += other / (one - other);
    }
    const Vec<T> top = all(largest<T>(max));
    Vec<T> others{};
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const Vec<T> x = exponent(c);
      others += exp2<T>(capped_exp2<T>(x) * scale > dominant ? lowest : x - top);
    }
    sums.logs[i] += static_cast<double>(total<T>(logs));
    sums.odds[i] += static_cast<double>(total<T>(odds));
    merge(sums.others, i, total<T>(others), top[0]);
    if (largest<T>(found) > 0) sums.dominant[i] = true;
  }
}

// The strip becomes the gradient of the loss, with this term, by s_ij.
template <class T, class R>
void backward_spread(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t columns, T* strip) {
  const Vec<T> log = log_weight(p), dominant = all(static_cast<T>(kDominant)), one = all<T>(1);
  const auto& a = *p.a;
  const Spread<T>& spread = a.spread;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = i0 + r;
    const auto pick = Pick<T, R>::of(p, i);
    const Vec<T> factor = all(spread.factor[i]);
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      T* const at = strip + r * p.block + c;
      const int64_t j = j0 + c;
      const auto exponent = [&](T shift) { return exponents<T, R, true>(p, pick, at, j, log, all(shift)).negative; };
      const Vec<T> share = capped_exp2<T>(exponent(a.shift[i])) * spread.share[i];
      Vec<T> other = share * (factor + share / (one - share));
      if (spread.scale[i] != 0) other -= capped_exp2<T>(exponent(spread.shift[i])) * spread.scale[i];
      store(at, shifted_gradient<T, R, true>(p, pick, at, j, log, all(a.alpha[i]), all(a.gamma[i]), all(a.rho[i]),
                                             all(a.shift[i]), all(a.positive_shift[i])) +
                    spread.weight[i] * (share > dominant ? share * factor : other));
    }
  }
}

}  // namespace
}  // namespace clead
