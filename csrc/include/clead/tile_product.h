// C (+)= A B for tiles that fit a cache: a register tile of kVectorRows x 2 vectors, for *.isa.cpp only. Or minus the
// squared distances of A's rows to B's columns, which a product could only give as differences of large numbers.
#pragma once

#include "clead/lanes.h"

namespace clead {
namespace {

// A is read at a[i * row_step + k * step], B at b[k * b_step + j], for kVectorRows rows and Vectors * kLanes columns.
template <class T, bool Distance, int Vectors>
CLEAD_INLINE void register_tile(const T* a, int64_t row_step, int64_t step, const T* b, int64_t b_step, int64_t depth,
                                T* c, int64_t c_step, bool add) {
  Vec<T> sum[kVectorRows][Vectors] = {};
  for (int64_t k = 0; k < depth; ++k, a += step, b += b_step) {
    Vec<T> right[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) right[v] = load(b + v * kLanes<T>);
#pragma GCC unroll 12
    for (int i = 0; i < kVectorRows; ++i) {
      const Vec<T> left = all(a[i * row_step]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        const Vec<T> difference = left - right[v];
        sum[i][v] = Distance ? fma(difference, difference, sum[i][v]) : fma(left, right[v], sum[i][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kVectorRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      T* out = c + i * c_step + v * kLanes<T>;
      const Vec<T> part = Distance ? -sum[i][v] : sum[i][v];
      store(out, add ? load(out) + part : part);
    }
}

// Whole register tiles: rows and columns are rounded up to them, so all operands must be readable, and C writable, there.
template <class T, bool Distance = false>
static __attribute__((noinline)) void tile_product(const T* a, int64_t row_step, int64_t step, const T* b,
                                                   int64_t b_step, int64_t b_panel, T* c, int64_t c_step, int64_t rows,
                                                   int64_t columns, int64_t depth, bool add) {
  constexpr int kWide = 2 * kLanes<T>;
  for (int64_t j = 0; j < columns; j += kWide) {
    const T* right = b + j / kWide * b_panel;
    const bool wide = columns - j > kLanes<T>;
    for (int64_t i = 0; i < rows; i += kVectorRows) {
      T* out = c + i * c_step + j;
      if (wide)
        register_tile<T, Distance, 2>(a + i * row_step, row_step, step, right, b_step, depth, out, c_step, add);
      else
        register_tile<T, Distance, 1>(a + i * row_step, row_step, step, right, b_step, depth, out, c_step, add);
    }
  }
}

}  // namespace
}  // namespace clead
