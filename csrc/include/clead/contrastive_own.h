// Positives in the tile with denominators of their own, in strips: for *.isa.cpp only.
#pragma once

#include "clead/contrastive_spread.h"

namespace clead {
namespace {

// The odds 2^y of a pair, its exponential over the sum of its row's negatives; y may have any size.
template <class T>
struct Odds {
  CLEAD_INLINE Odds of(const Contrast<T>& p, Vec<T> dot, Vec<T> shift, Vec<T> rest) {
    const Vec<T> k = all(p.k);
    Odds out;
    out.y = (p.normalized ? fma(dot, k, -shift) : dot * k - shift) - rest;
    out.below = out.y < Vec<T>{};
    out.small = exp2<T>(out.below ? out.y : -out.y);
    out.inverse = all<T>(1) / (all<T>(1) + out.small);
    return out;
  }

  inline __attribute__((always_inline)) Vec<T> complement() const { return below ? inverse : small * inverse; }

  // -log of the probability.
  inline __attribute__((always_inline)) Vec<T> loss() const {
    const Vec<T> zero{}, log1p = minus_log_of_complement<T>(small * inverse);
    return log1p - (below ? y * static_cast<T>(1 / kLog2e) : zero);
  }

  Vec<T> y, small, inverse;  // small: 2^-|y|
  Mask<T> below;
};

// The second forward pass: sums over the positives of each row.
template <class T, class R>
void forward_own(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t columns, const T* strip) {
  const Own<T>& own = p.a->own;
  const Vec<T> lowest = all(kLowest<T>), never = all(kNever<T> / 10), zero{};
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = i0 + r;
    const auto pick = Pick<T, R>::of(p, i);
    const Vec<T> shift = all(own.shift[i]), rest = all(own.rest[i]);
    const auto visit = [&](int64_t c, auto&& use) {
      const Vec<T> dot = load(strip + r * p.block + c);
      const Mask<T> positive = pick.template kind<true>(p, dot, j0 + c).positive & (dot > never);
      use(Odds<T>::of(p, dot, shift, rest), positive);
    };
    Vec<T> logs{}, complements{}, top = lowest;
    for (int64_t c = 0; c < columns; c += kLanes<T>)
      visit(c, [&](const Odds<T>& odds, Mask<T> positive) {
        logs += positive ? odds.loss() : zero;
        complements += positive ? odds.complement() : zero;
        top = larger<T>(top, positive ? (odds.below ? odds.y : zero) : lowest);
      });
    own.logs[i] += static_cast<double>(total<T>(logs));
    own.complements[i] += static_cast<double>(total<T>(complements));
    const Vec<T> max = all(largest<T>(top));
    if (!p.inside || !(max[0] > kLowest<T>)) continue;
    Vec<T> shares{}, products{};
    for (int64_t c = 0; c < columns; c += kLanes<T>)
      visit(c, [&](const Odds<T>& odds, Mask<T> positive) {
        const Vec<T> share = exp2<T>(positive ? (odds.below ? odds.y : zero) - max : lowest) * odds.inverse;
        shares += share;
        products += share * odds.complement();
      });
    merge(own.shares, i, total<T>(shares), max[0]);
    merge(own.products, i, total<T>(products), max[0]);
  }
}

// What the gradient of a row, or of columns, needs.
template <class T>
struct OwnWeights {
  template <class Read>
  CLEAD_INLINE OwnWeights of(const Rows<T>& x, int64_t at, Read&& read) {
    const auto& own = x.own;
    return {read(x.alpha + at),    read(x.shift + at),       read(own.shift + at),      read(own.rest + at),
            read(own.weight + at), read(own.share_shift + at), read(own.share_scale + at), read(own.share + at)};
  }

  Vec<T> alpha, negative_shift, shift, rest, weight, share_shift, share_scale, share;
};

template <class T, class R, bool OfRow>
CLEAD_INLINE Vec<T> own_gradient(const Contrast<T>& p, const Pick<T, R>& pick, const T* at, int64_t j, Vec<T> log,
                                 const OwnWeights<T>& own) {
  const auto x = exponents<T, R, OfRow>(p, pick, at, j, log, own.negative_shift, own.share_shift);
  const Odds<T> odds = Odds<T>::of(p, load(at), own.shift, own.rest);
  Vec<T> of_positive = own.weight * odds.complement();
  if (p.inside) of_positive *= odds.inverse * (odds.below ? capped_exp2<T>(x.positive) * own.share_scale : own.share);
  return x.kind.positive ? of_positive : capped_exp2<T>(x.negative) * own.alpha;
}

// What a reweighted sum of the negatives adds: their second exponential, and what a correction takes from positives.
template <class T, class R, bool OfRow>
CLEAD_INLINE Vec<T> own_correction(const Contrast<T>& p, const Pick<T, R>& pick, const T* at, int64_t j, Vec<T> log,
                                   Vec<T> alpha, Vec<T> shift, Vec<T> gamma, Vec<T> positive_shift) {
  const auto x = exponents<T, R, OfRow, true>(p, pick, at, j, log, shift, positive_shift);
  return x.kind.positive ? capped_exp2<T>(x.positive) * gamma : capped_exp2<T>(x.negative) * alpha;
}

// The strip becomes the gradient of the loss by s_ij, plus that by s_ji where the tile serves both.
template <class T, class R>
void backward_own(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t columns, T* strip) {
  const Vec<T> log = log_weight(p);
  const auto &a = *p.a, &b = *p.b;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = i0 + r;
    const auto pick = Pick<T, R>::of(p, i);
    const auto of_row = OwnWeights<T>::of(*p.a, i0 + r, [](const T* x) { return all(*x); });
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      T* const at = strip + r * p.block + c;
      const int64_t j = j0 + c;
      Vec<T> gradient = own_gradient<T, R, true>(p, pick, at, j, log, of_row);
      if (p.soft)
        gradient += own_correction<T, R, true>(p, pick, at, j, log, all(a.soft_alpha[i]), all(a.soft_shift[i]),
                                               all(a.gamma[i]), all(a.positive_shift[i]));
      if constexpr (R::kBoth) {
        const auto of_columns = OwnWeights<T>::of(*p.b, j, [](const T* x) { return load(x); });
        gradient += own_gradient<T, R, false>(p, pick, at, j, log, of_columns);
        if (p.soft)
          gradient += own_correction<T, R, false>(p, pick, at, j, log, load(b.soft_alpha + j), load(b.soft_shift + j),
                                                  load(b.gamma + j), load(b.positive_shift + j));
      }
      store(at, gradient);
    }
  }
}

}  // namespace
}  // namespace clead
