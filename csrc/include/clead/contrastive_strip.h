// From dot products to exponentials, sums and gradients: the elementwise passes over a strip, for *.isa.cpp only.
#pragma once

#include "clead/contrastive_rules.h"

namespace clead {
namespace {

// Per-column sums of one tile. Where exponents range too far, with the largest exponent so far.
template <class T>
struct ColumnSums {
  ColumnSums(T* memory, int64_t block)
      : negatives(memory), positives(memory + block), negative_max(memory + 2 * block),
        positive_max(memory + 3 * block), block(block) {}

  void clear() const {
    std::fill(negatives, negatives + 2 * block, T(0));
    std::fill(negative_max, negative_max + 2 * block, kLowest<T>);
  }

  void add_to(Rows<T>& x, int64_t j0, bool bounded) const;

  T *negatives, *positives, *negative_max, *positive_max;
  int64_t block;
};

// sums[i] += sum * 2^max.
template <class T>
inline void merge(const Sums<T>& sums, int64_t i, double sum, T max) {
  const T common = std::max(sums.max[i], max);
  sums.sum[i] = sums.sum[i] * std::exp2(static_cast<double>(sums.max[i] - common)) +
                sum * std::exp2(static_cast<double>(max - common));
  sums.max[i] = common;
}

template <class T>
void ColumnSums<T>::add_to(Rows<T>& x, int64_t j0, bool bounded) const {
  const int64_t columns = std::min(block, x.size - j0);
  for (int64_t c = 0; c < columns; ++c) {
    if (bounded) {
      x.negatives.sum[j0 + c] += static_cast<double>(negatives[c]);
      x.positives.sum[j0 + c] += static_cast<double>(positives[c]);
    } else {
      merge(x.negatives, j0 + c, negatives[c], negative_max[c]);
      merge(x.positives, j0 + c, positives[c], positive_max[c]);
    }
  }
}

// One exponential for row and column: all are relative to the bound of the exponents.
template <class T, class R>
void forward_bounded(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t columns, const T* strip,
                     const ColumnSums<T>& sums) {
  const Vec<T> k = all(p.k_negatives), top = all(p.top), weight = all(p.weight), zero{};
  for (int64_t r = 0; r < rows; ++r) {
    const auto pick = Pick<T, R>::of(p, i0 + r);
    Vec<T> negatives{}, positives{};
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const Vec<T> dot = load(strip + r * p.block + c), e = exp2<T>(fma(dot, k, -top));
      Vec<T> of_row = e, of_column = e;
      if constexpr (R::kFalse != FalseNegative::none) {
        of_row = pick.for_row(p, dot, j0 + c) ? e * weight : e;
        if constexpr (R::kBoth) of_column = pick.for_column(p, dot, j0 + c) ? e * weight : e;
      }
      if constexpr (R::kGrouped) {
        const Mask<T> positive = pick.positive(p, j0 + c);
        const Vec<T> kept = positive ? e : zero;
        of_row = positive ? zero : of_row;
        of_column = positive ? zero : of_column;
        positives += kept;
        if constexpr (R::kBoth) store(sums.positives + c, load(sums.positives + c) + kept);
      }
      negatives += of_row;
      if constexpr (R::kBoth) store(sums.negatives + c, load(sums.negatives + c) + of_column);
    }
    p.a->negatives.sum[i0 + r] += static_cast<double>(total<T>(negatives));
    if constexpr (R::kGrouped) p.a->positives.sum[i0 + r] += static_cast<double>(total<T>(positives));
  }
}

// Every row, and every column, relative to its own largest exponent so far.
template <class T, class R>
void forward_unbounded(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t columns, const T* strip,
                       const ColumnSums<T>& sums) {
  const Vec<T> log = log_weight(p), lowest = all(kLowest<T>);
  for (int64_t r = 0; r < rows; ++r) {
    const auto pick = Pick<T, R>::of(p, i0 + r);
    const T* row = strip + r * p.block;
    Vec<T> negative_max = lowest, positive_max = lowest, negatives{}, positives{};
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const auto x = exponents<T, R, true>(p, pick, row + c, j0 + c, log);
      negative_max = larger<T>(negative_max, x.negative);
      positive_max = larger<T>(positive_max, x.positive);
    }
    const Vec<T> negative_top = all(largest<T>(negative_max)), positive_top = all(largest<T>(positive_max));
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const auto x = exponents<T, R, true>(p, pick, row + c, j0 + c, log, negative_top, positive_top);
      negatives += exp2<T>(x.negative);
      if constexpr (R::kGrouped) positives += exp2<T>(x.positive);
    }
    merge(p.a->negatives, i0 + r, total<T>(negatives), negative_top[0]);
    if constexpr (R::kGrouped) merge(p.a->positives, i0 + r, total<T>(positives), positive_top[0]);
  }
  if constexpr (!R::kBoth) return;
  for (int64_t c = 0; c < columns; c += kLanes<T>) {
    const Vec<T> negative_old = load(sums.negative_max + c), positive_old = load(sums.positive_max + c);
    Vec<T> negative_max = negative_old, positive_max = positive_old;
    for (int64_t r = 0; r < rows; ++r) {
      const auto x = exponents<T, R, false>(p, Pick<T, R>::of(p, i0 + r), strip + r * p.block + c, j0 + c, log);
      negative_max = larger<T>(negative_max, x.negative);
      positive_max = larger<T>(positive_max, x.positive);
    }
    Vec<T> negatives = load(sums.negatives + c) * exp2<T>(negative_old - negative_max);
    Vec<T> positives = load(sums.positives + c) * exp2<T>(positive_old - positive_max);
    for (int64_t r = 0; r < rows; ++r) {
      const auto x = exponents<T, R, false>(p, Pick<T, R>::of(p, i0 + r), strip + r * p.block + c, j0 + c, log,
                                            negative_max, positive_max);
      negatives += exp2<T>(x.negative);
      if constexpr (R::kGrouped) positives += exp2<T>(x.positive);
    }
    store(sums.negative_max + c, negative_max);
    store(sums.positive_max + c, positive_max);
    store(sums.negatives + c, negatives);
    store(sums.positives + c, positives);
  }
}

// The strip becomes the gradient of the loss by s_ij, plus that by s_ji where the tile serves both.
template <class T, class R>
void backward_bounded(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t columns, T* strip) {
  const Vec<T> k = all(p.k), top = all(p.top), weight = all(p.weight), zero{};
  for (int64_t r = 0; r < rows; ++r) {
    const auto pick = Pick<T, R>::of(p, i0 + r);
    const Vec<T> alpha = all(p.a->alpha[i0 + r]), lowered = alpha * weight;
    Vec<T> gamma{}, rho{};
    if constexpr (R::kGrouped) gamma = all(p.a->gamma[i0 + r]), rho = all(p.a->rho[i0 + r]);
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      T* const at = strip + r * p.block + c;
      const Vec<T> dot = load(at), e = exp2<T>(fma(dot, k, -top));
      Vec<T> factor = alpha;
      if constexpr (R::kFalse != FalseNegative::none) factor = pick.for_row(p, dot, j0 + c) ? lowered : alpha;
      if constexpr (R::kBoth) {
        const Vec<T> other = load(p.b->alpha + j0 + c);
        if constexpr (R::kFalse != FalseNegative::none)
          factor += pick.for_column(p, dot, j0 + c) ? other * weight : other;
        else
          factor += other;
      }
      if constexpr (R::kGrouped) {
        const Mask<T> positive = pick.positive(p, j0 + c);
        Vec<T> of_positive = gamma, constant = rho;
        if constexpr (R::kBoth) of_positive += load(p.b->gamma + j0 + c), constant += load(p.b->rho + j0 + c);
        store(at, fma(e, positive ? of_positive : factor, positive ? -constant : zero));
      } else {
        store(at, e * factor);
      }
    }
  }
}

// What is not selected may exceed its row's maximum; rows without a positive have no shift that would bound it.
template <class T>
CLEAD_INLINE Vec<T> capped_exp2(Vec<T> x) {
  const Vec<T> ceiling = all<T>(4);
  return exp2<T>(x > ceiling ? ceiling : x);
}

template <class T, class R, bool OfRow>
CLEAD_INLINE Vec<T> shifted_gradient(const Contrast<T>& p, const Pick<T, R>& pick, const T* at, int64_t j, Vec<T> log,
                                     Vec<T> alpha, Vec<T> gamma, Vec<T> rho, Vec<T> shift, Vec<T> positive_shift) {
  const auto x = exponents<T, R, OfRow>(p, pick, at, j, log, shift, positive_shift);
  Vec<T> gradient = capped_exp2<T>(x.negative) * alpha;
  if constexpr (R::kGrouped) {
    const Vec<T> of_positive = fma(capped_exp2<T>(x.positive), gamma, -rho);
    gradient = pick.positive(p, j) ? of_positive : gradient;
  }
  return gradient;
}

template <class T, class R>
void backward_unbounded(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t columns, T* strip) {
  const Vec<T> log = log_weight(p);
  const auto& a = *p.a;
  const auto& b = *p.b;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = i0 + r;
    const auto pick = Pick<T, R>::of(p, i);
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      T* const at = strip + r * p.block + c;
      const int64_t j = j0 + c;
      Vec<T> gradient = shifted_gradient<T, R, true>(p, pick, at, j, log, all(a.alpha[i]), all(a.gamma[i]),
                                                     all(a.rho[i]), all(a.shift[i]), all(a.positive_shift[i]));
      if constexpr (R::kBoth)
        gradient += shifted_gradient<T, R, false>(p, pick, at, j, log, load(b.alpha + j), load(b.gamma + j),
                                                  load(b.rho + j), load(b.shift + j), load(b.positive_shift + j));
      store(at, gradient);
    }
  }
}

// Negatives with the gradient of two exponentials.
template <class T, class R>
void backward_soft(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t columns, T* strip) {
  const Vec<T> log = log_weight(p);
  const auto& a = *p.a;
  const auto& b = *p.b;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = i0 + r;
    const auto pick = Pick<T, R>::of(p, i);
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      T* const at = strip + r * p.block + c;
      const int64_t j = j0 + c;
      const auto of = [&]<bool OfRow>(Vec<T> alpha, Vec<T> shift) {
        return capped_exp2<T>(exponents<T, R, OfRow, true>(p, pick, at, j, log, shift).negative) * alpha;
      };
      Vec<T> gradient = shifted_gradient<T, R, true>(p, pick, at, j, log, all(a.alpha[i]), all(a.gamma[i]),
                                                     all(a.rho[i]), all(a.shift[i]), all(a.positive_shift[i]));
      gradient += of.template operator()<true>(all(a.soft_alpha[i]), all(a.soft_shift[i]));
      if constexpr (R::kBoth) {
        gradient += shifted_gradient<T, R, false>(p, pick, at, j, log, load(b.alpha + j), load(b.gamma + j),
                                                  load(b.rho + j), load(b.shift + j), load(b.positive_shift + j));
        gradient += of.template operator()<false>(load(b.soft_alpha + j), load(b.soft_shift + j));
      }
      store(at, gradient);
    }
  }
}

}  // namespace
}  // namespace clead
