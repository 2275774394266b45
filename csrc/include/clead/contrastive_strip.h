// From dot products to exponentials, sums and gradients: the elementwise passes over a strip, for *.isa.cpp only.
#pragma once

#include "clead/contrastive_rules.h"

namespace clead {
namespace {

// Per-column sums of one tile. Where exponents range too far, with the largest exponent so far.
template <class T>
struct ColumnSums {
  ColumnSums(T* memory, int64_t block)
      : negatives(memory), positives(memory + block), attracted(memory + 2 * block), dots(memory + 3 * block),
        negative_max(memory + 4 * block), positive_max(memory + 5 * block), block(block) {}

  void clear() const {
    std::fill(negatives, negatives + 4 * block, T(0));
    std::fill(negative_max, negative_max + 2 * block, kLowest<T>);
  }

  void add_to(Rows<T>& x, int64_t j0, bool bounded) const;

  T *negatives, *positives, *attracted, *dots, *negative_max, *positive_max;
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
    if (x.attracted.count != nullptr) {
      x.attracted.count[j0 + c] += static_cast<double>(attracted[c]);
      x.attracted.dots[j0 + c] += static_cast<double>(dots[c]);
    }
  }
}

template <class T>
CLEAD_INLINE void add(T* sums, Vec<T> x) {
  store(sums, load(sums) + x);
}

// How many positives some pairs attracted, and their dot products.
template <class T>
struct Found {
  CLEAD_INLINE Found of(Mask<T> attracted, Vec<T> dot) {
    const Vec<T> zero{};
    return {attracted ? all<T>(1) : zero, attracted ? dot : zero};
  }

  void add_to(const Attracted& sums, int64_t i) const {
    sums.count[i] += static_cast<double>(total<T>(count));
    sums.dots[i] += static_cast<double>(total<T>(dots));
  }

  Vec<T> count, dots;
};

// One exponential for row and column: all are relative to the bound of the exponents.
template <class T, class R>
void forward_bounded(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t columns, const T* strip,
                     const ColumnSums<T>& sums) {
  const Vec<T> k = all(p.k_negatives), top = all(p.top), weight = all(p.weight), zero{};
  for (int64_t r = 0; r < rows; ++r) {
    const auto pick = Pick<T, R>::of(p, i0 + r);
    Vec<T> negatives{}, positives{};
    Found<T> found{};
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const Vec<T> dot = load(strip + r * p.block + c), e = exp2<T>(fma(dot, k, -top));
      const auto negative = [&](const Kind<T>& kind) {
        Vec<T> x = e;
        if constexpr (R::kWeighs) x = kind.lowered ? e * weight : e;
        if constexpr (R::kGrouped) x = kind.positive ? zero : x;
        return x;
      };
      const Kind<T> of_row = pick.template kind<true>(p, dot, j0 + c);
      if constexpr (R::kBoth) {
        const Kind<T> of_column = pick.template kind<false>(p, dot, j0 + c);
        add(sums.negatives + c, negative(of_column));
        if constexpr (R::kGrouped) add(sums.positives + c, of_column.positive ? e : zero);
        if constexpr (R::kAttract) {
          const auto here = Found<T>::of(of_column.attracted, dot);
          add(sums.attracted + c, here.count), add(sums.dots + c, here.dots);
        }
      }
      negatives += negative(of_row);
      if constexpr (R::kGrouped) positives += of_row.positive ? e : zero;
      if constexpr (R::kAttract) {
        const auto here = Found<T>::of(of_row.attracted, dot);
        found.count += here.count, found.dots += here.dots;
      }
    }
    p.a->negatives.sum[i0 + r] += static_cast<double>(total<T>(negatives));
    if constexpr (R::kGrouped) p.a->positives.sum[i0 + r] += static_cast<double>(total<T>(positives));
    if constexpr (R::kAttract) found.add_to(p.a->attracted, i0 + r);
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
    Found<T> found{};
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const auto x = exponents<T, R, true>(p, pick, row + c, j0 + c, log);
      negative_max = larger<T>(negative_max, x.negative);
      positive_max = larger<T>(positive_max, x.positive);
      if constexpr (R::kAttract) {
        const auto here = Found<T>::of(x.kind.attracted, load(row + c));
        found.count += here.count, found.dots += here.dots;
      }
    }
    const Vec<T> negative_top = all(largest<T>(negative_max)), positive_top = all(largest<T>(positive_max));
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const auto x = exponents<T, R, true>(p, pick, row + c, j0 + c, log, negative_top, positive_top);
      negatives += exp2<T>(x.negative);
      if constexpr (R::kGrouped) positives += exp2<T>(x.positive);
    }
    merge(p.a->negatives, i0 + r, total<T>(negatives), negative_top[0]);
    if constexpr (R::kGrouped) merge(p.a->positives, i0 + r, total<T>(positives), positive_top[0]);
    if constexpr (R::kAttract) found.add_to(p.a->attracted, i0 + r);
  }
  if constexpr (!R::kBoth) return;
  for (int64_t c = 0; c < columns; c += kLanes<T>) {
    const Vec<T> negative_old = load(sums.negative_max + c), positive_old = load(sums.positive_max + c);
    Vec<T> negative_max = negative_old, positive_max = positive_old;
    for (int64_t r = 0; r < rows; ++r) {
      const T* const at = strip + r * p.block + c;
      const auto x = exponents<T, R, false>(p, Pick<T, R>::of(p, i0 + r), at, j0 + c, log);
      negative_max = larger<T>(negative_max, x.negative);
      positive_max = larger<T>(positive_max, x.positive);
      if constexpr (R::kAttract) {
        const auto here = Found<T>::of(x.kind.attracted, load(at));
        add(sums.attracted + c, here.count), add(sums.dots + c, here.dots);
      }
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
      const Kind<T> of_row = pick.template kind<true>(p, dot, j0 + c);
      Vec<T> factor = alpha, constant{};
      if constexpr (R::kWeighs) factor = of_row.lowered ? lowered : alpha;
      if constexpr (R::kGrouped) factor = of_row.positive ? gamma : factor, constant = of_row.positive ? rho : zero;
      if constexpr (R::kBoth) {
        const Kind<T> of_column = pick.template kind<false>(p, dot, j0 + c);
        Vec<T> other = load(p.b->alpha + j0 + c);
        if constexpr (R::kWeighs) other = of_column.lowered ? other * weight : other;
        if constexpr (R::kGrouped) {
          other = of_column.positive ? load(p.b->gamma + j0 + c) : other;
          constant += of_column.positive ? load(p.b->rho + j0 + c) : zero;
        }
        factor += other;
      }
      if constexpr (R::kGrouped)
        store(at, fma(e, factor, -constant));
      else
        store(at, e * factor);
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
    gradient = x.kind.positive ? of_positive : gradient;
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
