#include "clead/contrastive.h"

#include <algorithm>
#include <cmath>

#include "clead/contrastive_strip.h"
#include "clead/tile_product.h"

namespace clead::CLEAD_ISA {
namespace {

template <class T>
struct Tile {
  int64_t i0, j0, rows, columns;
};

// The logits' dot products of a strip, with a very negative number at pairs that are no negatives or no pairs at all.
template <class T>
void dots(const Contrast<T>& p, const Tile<T>& t, T* strip) {
  constexpr int64_t kPanel = 2 * kLanes<T>;
  constexpr int64_t kDepth = 256;  // summed in parts: long rows would collect rounding errors
  for (int64_t k = 0; k < p.d; k += kDepth)
    tile_product<T>(p.a->unit + t.i0 * p.ld + k, p.ld, 1, p.b->panels + t.j0 * p.d + k * kPanel, kPanel, p.d * kPanel,
                    strip, p.block, t.rows, t.columns, std::min(kDepth, p.d - k), k > 0);
  const int64_t padded = (t.columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  for (int64_t r = 0; r < t.rows; ++r) {
    T* row = strip + r * p.block;
    const int64_t i = t.i0 + r;
    std::fill(row + t.columns, row + padded, kNever<T>);
    if (p.self_offset >= 0 && i + p.self_offset >= t.j0 && i + p.self_offset < t.j0 + t.columns)
      row[i + p.self_offset - t.j0] = kNever<T>;
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
  if (p.self_offset < 0 || p.list_start != nullptr) return;
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t j = t.i0 + r + p.self_offset - t.j0;
    if (j >= 0 && j < t.columns) strip[r * p.block + j] = 0;
  }
}

template <class T, class Visit>
void for_each_strip(const Contrast<T>& p, int64_t row_block, int64_t column_block, Visit&& visit) {
  const int64_t j0 = column_block * p.block, columns = std::min(p.block, p.b->size - j0);
  const int64_t end = std::min((row_block + 1) * p.block, p.a->size);
  for (int64_t i0 = row_block * p.block; i0 < end; i0 += kStrip)
    visit(Tile<T>{i0, j0, std::min(kStrip, end - i0), columns});
}

template <class T>
void forward(const Contrast<T>& p, int64_t row_block, int64_t column_block, T* strip) {
  const bool both = p.symmetric && row_block != column_block;
  const ColumnSums<T> sums{strip + kStrip * p.block, p.block};
  sums.clear();
  for_each_strip(p, row_block, column_block, [&](const Tile<T>& t) {
    dots(p, t, strip);
    with_rules<T>(p, both, [&](auto rules) {
      if (p.bounded)
        forward_bounded<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip, sums);
      else
        forward_unbounded<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip, sums);
    });
  });
  if (both) sums.add_to(*p.b, column_block * p.block, p.bounded);
}

template <class T>
void backward(const Contrast<T>& p, int64_t row_block, int64_t column_block, T* strip) {
  const bool diagonal = p.symmetric && row_block == column_block;
  for_each_strip(p, row_block, column_block, [&](const Tile<T>& t) {
    dots(p, t, strip);
    with_rules<T>(p, p.symmetric, [&](auto rules) {
      if (p.bounded)
        backward_bounded<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip);
      else
        backward_unbounded<T, decltype(rules)>(p, t.i0, t.rows, t.j0, t.columns, strip);
    });
    clear_self(p, t, strip);
    constexpr int64_t kPanel = 2 * kLanes<T>;
    if (p.need_a)
      tile_product<T>(strip, p.block, 1, p.b->unit + t.j0 * p.ld, p.ld, kPanel, p.a->gradient_sum + t.i0 * p.ld, p.ld,
                      t.rows, p.d, t.columns, true);
    if (p.need_b && !diagonal)
      tile_product<T>(strip, 1, p.block, p.a->unit + t.i0 * p.ld, p.ld, kPanel, p.b->gradient_sum + t.j0 * p.ld, p.ld,
                      t.columns, p.d, t.rows, true);
  });
}

// Rows [begin, end) of x.unit, a multiple of the panel, into x.panels.
template <class T>
void pack(const Contrast<T>& p, Rows<T>& x, int64_t begin, int64_t end) {
  constexpr int64_t kPanel = 2 * kLanes<T>;
  for (int64_t first = begin; first < end; first += kPanel) {
    T* panel = x.panels + first * p.d;
    for (int64_t c = 0; c < kPanel; ++c) {
      const T* row = x.unit + (first + c) * p.ld;
      for (int64_t k = 0; k < p.d; ++k) panel[k * kPanel + c] = row[k];
    }
  }
}

inline double number(double x) { return x; }
inline double number(float x) { return x; }
inline double number(Bf16 x) { return widen(x); }
inline double number(Half x) {
  const uint64_t sign = static_cast<uint64_t>(x.bits & 0x8000u) << 48, magnitude = x.bits & 0x7FFFu;
  const uint64_t bits = sign | magnitude << 42 | (magnitude >= 0x7C00u ? 0x7FF0000000000000u : 0u);
  // Re-biases the exponent, subnormal numbers included.
  return __builtin_bit_cast(double, bits) * (magnitude >= 0x7C00u ? 1.0 : 0x1p1008);
}

template <class S, class T>
void load_row(const S* x, int64_t stride, T* out, double* inverse, bool* gradient, bool normalize, int64_t d) {
  constexpr int kParts = 16;
  double parts[kParts] = {};
  int64_t k = 0;
  for (; k + kParts <= d; k += kParts)
    for (int c = 0; c < kParts; ++c) {
      const double value = number(x[(k + c) * stride]);
      parts[c] += value * value;
    }
  for (; k < d; ++k) parts[0] += number(x[k * stride]) * number(x[k * stride]);
  double squares = 0;
  for (double part : parts) squares += part;
  const double norm = std::sqrt(squares);
  *gradient = !(norm < kTinyNorm);
  *inverse = 1 / (norm < kTinyNorm ? kTinyNorm : norm);
  const double scale = normalize ? *inverse : 1;
  if (stride == 1)
    for (k = 0; k < d; ++k) out[k] = static_cast<T>(number(x[k]) * scale);
  else
    for (k = 0; k < d; ++k) out[k] = static_cast<T>(number(x[k * stride]) * scale);
}

template <class T>
double dot(const T* x, const T* y, int64_t d) {
  constexpr int kParts = 16;
  double parts[kParts] = {};
  int64_t k = 0;
  for (; k + kParts <= d; k += kParts)
    for (int c = 0; c < kParts; ++c) parts[c] += static_cast<double>(x[k + c]) * static_cast<double>(y[k + c]);
  for (; k < d; ++k) parts[0] += static_cast<double>(x[k]) * static_cast<double>(y[k]);
  double sum = 0;
  for (double part : parts) sum += part;
  return sum;
}

template <class T>
void add(const T* x, double scale, double* sum, int64_t d) {
  for (int64_t k = 0; k < d; ++k) sum[k] += scale * static_cast<double>(x[k]);
}

// The gradient by a row of x from scale * sum, the one by the row that was multiplied; returns their inner product with
// the latter, from which the temperature's gradient comes.
template <class T>
double project(const double* sum, double scale, const T* unit, double inverse, bool gradient, bool normalize, T* out,
               int64_t d) {
  double parts[16] = {};
  for (int64_t k = 0; k < d; ++k) parts[k % 16] += sum[k] * static_cast<double>(unit[k]);
  double radial = 0;
  for (double part : parts) radial += part;
  radial *= scale;
  if (!normalize)
    for (int64_t k = 0; k < d; ++k) out[k] = static_cast<T>(scale * sum[k]);
  else if (gradient)
    for (int64_t k = 0; k < d; ++k)
      out[k] = static_cast<T>(inverse * (scale * sum[k] - static_cast<double>(unit[k]) * radial));
  else
    std::fill(out, out + d, T(0));
  return radial;
}

}  // namespace

#define CLEAD_DEFINE_LOAD(T, S)                                                                              \
  void contrast_load(const S* x, int64_t stride, T* out, double* inverse, bool* gradient, bool normalize, int64_t d) { \
    load_row(x, stride, out, inverse, gradient, normalize, d);                                               \
  }
#define CLEAD_DEFINE(T)                                                                                      \
  int64_t contrast_panel(T) { return 2 * kLanes<T>; }                                                        \
  void contrast_forward(const Contrast<T>& p, int64_t i, int64_t j, T* strip) { forward(p, i, j, strip); }   \
  void contrast_backward(const Contrast<T>& p, int64_t i, int64_t j, T* strip) { backward(p, i, j, strip); } \
  void contrast_pack(const Contrast<T>& p, Rows<T>& x, int64_t begin, int64_t end) { pack(p, x, begin, end); } \
  void contrast_set(double& value, const T* x, const T* y, int64_t d) { value = dot(x, y, d); }             \
  void contrast_add(const T* x, double scale, double* sum, int64_t d) { add(x, scale, sum, d); }             \
  void contrast_project_to(double& radial, const double* sum, double scale, const T* unit, double inverse,   \
                           bool gradient, bool normalize, T* out, int64_t d) {                               \
    radial = project(sum, scale, unit, inverse, gradient, normalize, out, d);                                  \
  }                                                                                                          \
  CLEAD_DEFINE_LOAD(T, double)                                                                               \
  CLEAD_DEFINE_LOAD(T, float)                                                                                \
  CLEAD_DEFINE_LOAD(T, Bf16)                                                                                 \
  CLEAD_DEFINE_LOAD(T, Half)
CLEAD_DEFINE(float)
CLEAD_DEFINE(double)

}  // namespace clead::CLEAD_ISA
