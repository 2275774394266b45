// A tile of pairs, strip by strip, whatever computes the products: for *.isa.cpp and *.bf16.cpp only.
#pragma once

#include "clead/contrastive_own.h"
#include "clead/contrastive_search.h"
#include "clead/contrastive_sigmoid.h"

namespace clead {
namespace {

template <class T>
struct Tile {
  int64_t i0, j0, rows, columns;
};

// A very negative number where pairs are no negatives in the tile, or no pairs at all.
template <class T>
void leave_out(const Contrast<T>& p, const Tile<T>& t, T* strip) {
  const int64_t padded = (t.columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  for (int64_t r = 0; r < t.rows; ++r) {
    T* row = strip + r * p.block;
    const int64_t i = t.i0 + r;
    std::fill(row + t.columns, row + padded, kNever<T>);
    if (p.self != nullptr && p.self[i] >= t.j0 && p.self[i] < t.j0 + t.columns) row[p.self[i] - t.j0] = kNever<T>;
    if (p.list_start == nullptr) continue;
    for (int64_t at = p.list_start[i]; at < p.list_start[i + 1]; ++at) {
      const int64_t j = p.list[at] - t.j0;
      if (j >= 0 && j < t.columns) row[j] = kNever<T>;
    }
  }
}

// In grouped rows the left-out pair is of its own group and got the positives' constant.
template <class T>
void clear_self(const Contrast<T>& p, const Tile<T>& t, T* strip) {
  if (p.self == nullptr || p.list_start != nullptr) return;
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t j = p.self[t.i0 + r] - t.j0;
    if (j >= 0 && j < t.columns) strip[r * p.block + j] = 0;
  }
}

// Adds the strip of gradients by s_ij to the sums of its rows and columns; scores are its c_ij.
template <class T>
void add_weights(const Contrast<T>& p, const Tile<T>& t, bool diagonal, const T* strip, const T* scores) {
  const int times = p.symmetric && !diagonal ? 2 : 1;
  for (int64_t r = 0; r < t.rows; ++r) {
    const T *const row = strip + r * p.block, *const score = scores + r * p.block;
    Vec<T> weights{}, products{};
    for (int64_t c = 0; c < t.columns; c += kLanes<T>) {
      weights += load(row + c);
      if (p.a->score_sum != nullptr) products = fma(load(row + c), load(score + c), products);
    }
    p.a->weight_sum[t.i0 + r] += static_cast<double>(total<T>(weights));
    if (p.a->score_sum != nullptr) p.a->score_sum[t.i0 + r] += times * static_cast<double>(total<T>(products));
  }
  if (p.b->weight_sum == nullptr || diagonal) return;
  for (int64_t c = 0; c < t.columns; c += kLanes<T>) {
    Vec<T> weights{};
    for (int64_t r = 0; r < t.rows; ++r) weights += load(strip + r * p.block + c);
    const int64_t lanes = std::min<int64_t>(kLanes<T>, t.columns - c);
    for (int64_t lane = 0; lane < lanes; ++lane) p.b->weight_sum[t.j0 + c + lane] += static_cast<double>(weights[lane]);
  }
}

template <class T, class Visit>
void for_each_strip(const Contrast<T>& p, int64_t row_block, int64_t column_block, Visit&& visit) {
  const int64_t j0 = column_block * p.block, columns = std::min(p.block, p.b->size - j0);
  const int64_t end = std::min((row_block + 1) * p.block, p.a->size);
  for (int64_t i0 = row_block * p.block; i0 < end; i0 += kStrip)
    visit(Tile<T>{i0, j0, std::min(kStrip, end - i0), columns});
}

// dots(tile) fills the strip with c_ij.
template <class T, class Dots>
void forward_tile(const Contrast<T>& p, int64_t row_block, int64_t column_block, T* strip, Dots&& dots) {
  const bool both = p.both && !(p.symmetric && row_block == column_block);
  const ColumnSums<T> sums{strip + kStrip * p.block, p.block};
  sums.clear();
  for_each_strip(p, row_block, column_block, [&](const Tile<T>& t) {
    dots(t);
    leave_out(p, t, strip);
    if (p.sigmoid) return forward_sigmoid(p, t.i0, t.rows, t.columns, strip);
    with_rules<T>(p, both, [&](auto rules) {
      if (p.bounded)
        forward_bounded<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip, sums);
      else
        forward_unbounded<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip, sums);
    });
  });
  if (both) sums.add_to(*p.b, column_block * p.block, p.bounded);
}

// The second forward pass of Spread; the tile serves its rows only.
template <class T, class Dots>
void spread_tile(const Contrast<T>& p, int64_t row_block, int64_t column_block, T* strip, Dots&& dots) {
  for_each_strip(p, row_block, column_block, [&](const Tile<T>& t) {
    dots(t);
    leave_out(p, t, strip);
    with_rules_of<false>(p, [&](auto rules) {
      forward_spread<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip);
    });
  });
}

// The second forward pass of Own; the tile serves its rows only.
template <class T, class Dots>
void own_tile(const Contrast<T>& p, int64_t row_block, int64_t column_block, T* strip, Dots&& dots) {
  for_each_strip(p, row_block, column_block, [&](const Tile<T>& t) {
    dots(t);
    leave_out(p, t, strip);
    with_rules_of<false>(p, [&](auto rules) {
      if constexpr (rules.kGrouped) forward_own<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip);
    });
  });
}

template <class T, class Dots>
void search_tile(const Contrast<T>& p, int64_t row_block, int64_t column_block, T* strip, const Search<T>& found,
                 Dots&& dots) {
  const int64_t first = row_block * p.block;
  for_each_strip(p, row_block, column_block, [&](const Tile<T>& t) {
    dots(t);
    leave_out(p, t, strip);
    const Search<T> here{found.k, found.best + (t.i0 - first) * found.k,
                         found.column == nullptr ? nullptr : found.column + (t.i0 - first) * found.k};
    search_strip(p, t.i0, t.rows, t.j0, t.columns, strip, here);
  });
}

// accumulate(tile) adds the strip of gradients, times the other side's rows, to the sums of both sides.
template <class T, class Dots, class Accumulate>
void backward_tile(const Contrast<T>& p, int64_t row_block, int64_t column_block, T* strip, Dots&& dots,
                   Accumulate&& accumulate) {
  T* const scores = strip + (kStrip + kColumnSums) * p.block;
  const auto gradients = [&](const Tile<T>& t) {
    if (p.sigmoid) return backward_sigmoid(p, t.i0, t.rows, t.columns, strip);
    with_rules<T>(p, p.both, [&](auto rules) {
      constexpr auto is = rules;
      if constexpr (is.kGrouped)
        if (p.own) return backward_own<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip);
      if constexpr (!is.kBoth)
        if (p.spread) return backward_spread<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip);
      if (p.soft)
        backward_soft<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip);
      else if (p.bounded)
        backward_bounded<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip);
      else
        backward_unbounded<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip);
    });
    clear_self(p, t, strip);
  };
  for_each_strip(p, row_block, column_block, [&](const Tile<T>& t) {
    dots(t);
    leave_out(p, t, strip);
    if (p.a->score_sum != nullptr) std::copy(strip, strip + t.rows * p.block, scores);
    gradients(t);
    if (p.a->weight_sum != nullptr) add_weights(p, t, p.symmetric && row_block == column_block, strip, scores);
    accumulate(t);
  });
}

}  // namespace
}  // namespace clead
