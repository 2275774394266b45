// Which pairs of a strip are negatives, false negatives and positives, and their exponents: for *.isa.cpp only.
#pragma once

#include <algorithm>

#include "clead/contrastive.h"
#include "clead/lanes.h"

namespace clead {
namespace {

template <class T>
constexpr T kNever = static_cast<T>(-1e30);  // a dot product that no threshold counts and whose exponential is 0
template <class T>
constexpr T kLowest = static_cast<T>(-1e33);

enum class FalseNegative { none, threshold, general, attract };

template <bool IsBoth, FalseNegative Is, bool IsGrouped>
struct RulesOf {
  static constexpr bool kBoth = IsBoth;        // the tile also serves the columns, as rows
  static constexpr FalseNegative kFalse = Is;
  static constexpr bool kGrouped = IsGrouped;  // positives are in the tile
  static constexpr bool kAttract = Is == FalseNegative::attract;
  static constexpr bool kGeneral = Is == FalseNegative::general || kAttract;
  static constexpr bool kWeighs = Is != FalseNegative::none && !kAttract;
};

// Calls visit with the rules of p as a type. In float64, which is not tuned, all rules are general ones.
template <bool Both, class T, class Visit>
CLEAD_INLINE void with_rules_of(const Contrast<T>& p, Visit&& visit) {
  constexpr bool kTuned = sizeof(T) == 4;
  const auto grouped = [&]<FalseNegative Is>() {
    if (p.list_start == nullptr)
      visit(RulesOf<Both, Is, true>{});
    else
      visit(RulesOf<Both, Is, false>{});
  };
  if (p.attract)
    visit(RulesOf<Both, FalseNegative::attract, true>{});
  else if (kTuned && p.threshold_only)
    grouped.template operator()<kTuned ? FalseNegative::threshold : FalseNegative::general>();
  else if (!p.false_negatives)
    grouped.template operator()<FalseNegative::none>();
  else
    grouped.template operator()<FalseNegative::general>();
}

// The cosine of pairs with these c_ij, of a row with this scale and squared norm.
template <class T>
CLEAD_INLINE Vec<T> cosines(const Contrast<T>& p, Vec<T> c, Vec<T> scale, Vec<T> square, int64_t j) {
  if (p.euclidean) c = (c + (square + load(p.b->square + j))) * all<T>(0.5);
  return c * (scale * load(p.b->cosine_scale + j));
}

template <class T, class Visit>
CLEAD_INLINE void with_rules(const Contrast<T>& p, bool both, Visit&& visit) {
  if (both)
    with_rules_of<true>(p, visit);
  else
    with_rules_of<false>(p, visit);
}

// What pairs of one row and kLanes columns are to the row, or to the columns.
template <class T>
struct Kind {
  Mask<T> positive;   // in the tile, attracted or not
  Mask<T> attracted;  // false negatives, of this kind
  Mask<T> lowered;    // or of that
};

// Which pairs of one row and kLanes columns are false negatives of the row, or of the columns.
template <class T, class R>
struct Pick {
  CLEAD_INLINE Pick of(const Contrast<T>& p, int64_t i) {
    Pick row;
    row.i = i;
    if constexpr (R::kFalse != FalseNegative::none) row.threshold = all(p.a->threshold[i]);
    if constexpr (R::kGeneral) {
      row.scale = all(p.a->cosine_scale[i]);
      row.square = p.euclidean ? all(p.a->square[i]) : Vec<T>{};
      row.as_row = Mask<T>{} + p.a->cluster_as_row[i];
      row.as_column = Mask<T>{} + p.a->cluster_as_column[i];
    }
    if constexpr (R::kGrouped) row.group = Mask<T>{} + p.a->group[i];
    return row;
  }

  CLEAD_INLINE Mask<T> either(const Contrast<T>& p, Mask<T> above, Mask<T> same) {
    return p.all_rules ? above & same : above | same;
  }

  // Whether the labels of the row and of columns agree, as those of the row or of the columns see it.
  template <bool OfRow>
  inline __attribute__((always_inline)) Mask<T> same(const Contrast<T>& p, int64_t j) const {
    const int32_t* const of_row = OfRow ? p.a->cluster_as_row : p.a->cluster_as_column;
    const int32_t* const of_columns = OfRow ? p.b->cluster_as_column : p.b->cluster_as_row;
    Mask<T> found = (OfRow ? as_row : as_column) == ids(of_columns + j, T());
    for (int64_t level = 1; level < p.levels; ++level)
      found |= Mask<T>{} + of_row[level * p.a->cluster_step + i] == ids(of_columns + level * p.b->cluster_step + j, T());
    return found;
  }

  inline __attribute__((always_inline)) Mask<T> for_row(const Contrast<T>& p, Vec<T> dot, int64_t j) const {
    if constexpr (R::kFalse == FalseNegative::threshold) return dot > threshold;
    const Vec<T> cosine = cosines(p, dot, scale, square, j);
    return either(p, cosine > threshold, same<true>(p, j));
  }

  inline __attribute__((always_inline)) Mask<T> for_column(const Contrast<T>& p, Vec<T> dot, int64_t j) const {
    const Vec<T> cut = load(p.b->threshold + j);
    if constexpr (R::kFalse == FalseNegative::threshold) return dot > cut;
    const Vec<T> cosine = cosines(p, dot, scale, square, j);
    return either(p, cosine > cut, same<false>(p, j));
  }

  template <bool OfRow>
  inline __attribute__((always_inline)) Kind<T> kind(const Contrast<T>& p, Vec<T> dot, int64_t j) const {
    Kind<T> out{};
    if constexpr (R::kGrouped) out.positive = group == ids(p.b->group + j, T());
    if constexpr (R::kFalse != FalseNegative::none) {
      Mask<T> is_false;
      if constexpr (OfRow)
        is_false = for_row(p, dot, j);
      else
        is_false = for_column(p, dot, j);
      if constexpr (R::kAttract) {  // pairs that are left out or listed are neither
        out.attracted = is_false & ~out.positive & (dot > all(kNever<T> / 10));
        out.positive |= out.attracted;
      } else {
        out.lowered = is_false;
      }
    }
    return out;
  }

  int64_t i;
  Vec<T> threshold, scale, square;
  Mask<T> as_row, as_column, group;
};

// log2 of k_ij e^s_ij, less an offset: of a pair as a negative of its row or column, and as a positive.
template <class T>
struct Exponents {
  Vec<T> negative, positive;
  Kind<T> kind;
};

// Rounded once if their size is bounded; a huge exponent less its own rounded value would leave a large rest.
template <class T, class R, bool OfRow, bool Soft = false>
CLEAD_INLINE Exponents<T> exponents(const Contrast<T>& p, const Pick<T, R>& pick, const T* at, int64_t j, Vec<T> log,
                                    Vec<T> negative_offset = Vec<T>{},
                                    Vec<T> positive_offset = Vec<T>{}) {
  const Vec<T> dot = load(at), lowest = all(kLowest<T>);
  const auto less = [&](Vec<T> k, Vec<T> offset) {
    return larger<T>(p.normalized ? fma(dot, k, -offset) : dot * k - offset, lowest);
  };
  const Vec<T> x = less(all(Soft ? p.k_soft : p.k_negatives), negative_offset);
  Exponents<T> out{x, lowest, pick.template kind<OfRow>(p, dot, j)};
  if constexpr (R::kWeighs) out.negative = out.kind.lowered ? x + log : x;
  if constexpr (R::kGrouped) {
    out.positive = out.kind.positive ? less(all(p.k), positive_offset) : lowest;
    out.negative = out.kind.positive ? lowest : out.negative;
  }
  return out;
}

template <class T>
CLEAD_INLINE Vec<T> log_weight(const Contrast<T>& p) {
  return all(p.weight > 0 ? static_cast<T>(__builtin_log2(static_cast<double>(p.weight))) : kLowest<T>);
}

}  // namespace
}  // namespace clead
