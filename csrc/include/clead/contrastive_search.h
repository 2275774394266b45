// The largest cosines of negatives in each row of a strip, NaN the largest of all: for *.isa.cpp only.
#pragma once

#include "clead/contrastive_rules.h"

namespace clead {
namespace {

template <class T>
bool above(T value, T other) {
  return value > other || (value != value && other == other);
}

template <class T>
void insert(T* best, int32_t* column, int64_t k, T value, int64_t j) {
  int64_t at = k - 1;
  for (; at > 0 && above(value, best[at - 1]); --at) {
    best[at] = best[at - 1];
    if (column != nullptr) column[at] = column[at - 1];
  }
  best[at] = value;
  if (column != nullptr) column[at] = static_cast<int32_t>(j);
}

// The strip, of dot products, becomes one of cosines in which pairs that are no negatives are minus infinity.
template <class T>
void search_strip(const Contrast<T>& p, int64_t i0, int64_t rows, int64_t j0, int64_t columns, T* strip,
                  const Search<T>& found) {
  const Vec<T> none = all(-static_cast<T>(__builtin_inf())), never = all(kNever<T> / 10);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = i0 + r;
    T* const row = strip + r * p.block;
    Vec<T> top = none, nothing{};  // NaN where a cosine is
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const Vec<T> dot = load(row + c);
      Vec<T> cosine = dot;
      if (p.a->cosine_scale != nullptr) {
        const Vec<T> square = p.euclidean ? all(p.a->square[i]) : Vec<T>{};
        cosine = cosines(p, dot, all(p.a->cosine_scale[i]), square, j0 + c);
      }
      if (p.list_start == nullptr)
        cosine = Mask<T>{} + p.a->group[i] == ids(p.b->group + j0 + c, T()) ? none : cosine;
      cosine = dot <= never ? none : cosine;
      nothing += dot * T(0);
      store(row + c, cosine);
      top = larger<T>(top, cosine);
    }
    T* const best = found.best + r * found.k;
    int32_t* const column = found.column == nullptr ? nullptr : found.column + r * found.k;
    if (!(largest<T>(top) > best[found.k - 1]) && total<T>(nothing) == 0) continue;
    for (int64_t c = 0; c < columns; ++c)
      if (above(row[c], best[found.k - 1])) insert(best, column, found.k, row[c], j0 + c);
  }
}

}  // namespace
}  // namespace clead
