#include "clead/contrastive.h"

#include <algorithm>
#include <cmath>

#include "clead/contrastive_tile.h"
#include "clead/norms.h"
#include "clead/tile_product.h"

namespace clead::CLEAD_ISA {
namespace {

template <class T>
void dots(const Contrast<T>& p, const Tile<T>& t, T* strip) {
  constexpr int64_t kPanel = 2 * kLanes<T>, kDepth = 256;  // summed in parts: long rows would collect rounding errors
  const auto product = p.euclidean ? tile_product<T, true> : tile_product<T>;
  for (int64_t k = 0; k < p.d; k += kDepth)
    product(p.a->unit + t.i0 * p.ld + k, p.ld, 1, p.b->panels + t.j0 * p.d + k * kPanel, kPanel, p.d * kPanel, strip,
            p.block, t.rows, t.columns, std::min(kDepth, p.d - k), k > 0);
}

template <class T>
void forward(const Contrast<T>& p, int64_t row_block, int64_t column_block, T* strip) {
  forward_tile(p, row_block, column_block, strip, [&](const Tile<T>& t) { dots(p, t, strip); });
}

template <class T>
void backward(const Contrast<T>& p, int64_t row_block, int64_t column_block, T* strip) {
  constexpr int64_t kPanel = 2 * kLanes<T>;
  const bool diagonal = p.symmetric && row_block == column_block;
  const auto accumulate = [&](const Tile<T>& t) {
    if (p.need_a)
      tile_product<T>(strip, p.block, 1, p.b->unit + t.j0 * p.ld, p.ld, kPanel, p.a->gradient_sum + t.i0 * p.ld, p.ld,
                      t.rows, p.d, t.columns, true);
    if (p.need_b && !diagonal)
      tile_product<T>(strip, 1, p.block, p.a->unit + t.i0 * p.ld, p.ld, kPanel, p.b->gradient_sum + t.j0 * p.ld, p.ld,
                      t.columns, p.d, t.rows, true);
  };
  backward_tile(p, row_block, column_block, strip, [&](const Tile<T>& t) { dots(p, t, strip); }, accumulate);
}

// Rows [begin, end) of x.unit, a multiple of the panel, into x.panels.
template <class T>
void pack(const Contrast<T>& p, Rows<T>& x, int64_t begin, int64_t end) {
  constexpr int64_t kPanel = 2 * kLanes<T>, kDepth = 64;  // a part of a panel that stays in the cache
  for (int64_t first = begin; first < std::min(end, x.size); first += kPanel) {  // beyond, nobody reads
    T* panel = x.panels + first * p.d;
    for (int64_t k0 = 0; k0 < p.d; k0 += kDepth)
      for (int64_t c = 0; c < kPanel; ++c) {
        const T* row = x.unit + (first + c) * p.ld;
        for (int64_t k = k0; k < std::min(p.d, k0 + kDepth); ++k) panel[k * kPanel + c] = row[k];
      }
  }
}

inline double number(double x) { return x; }
inline double number(float x) { return x; }
inline double number(Bf16 x) { return widen(x); }
inline double number(Half x) { return widen(x); }

template <class S>
double sum_squares(const S* x, int64_t stride, int64_t d, double factor) {
  constexpr int kParts = 16;
  double parts[kParts] = {};
  int64_t k = 0;
  for (; k + kParts <= d; k += kParts)
    for (int c = 0; c < kParts; ++c) {
      const double value = number(x[(k + c) * stride]) * factor;
      parts[c] += value * value;
    }
  for (; k < d; ++k) parts[0] += number(x[k * stride]) * factor * (number(x[k * stride]) * factor);
  double squares = 0;
  for (double part : parts) squares += part;
  return squares;
}

template <class S, class T>
void load_row(const S* x, int64_t stride, T* out, double* inverse, bool* gradient, bool normalize, int64_t d) {
  double factor = 1, squares = sum_squares(x, stride, d, 1.0);
  if (sizeof(S) == sizeof(double) && !(squares < kHugeSquares))
    factor = kOfHuge, squares = sum_squares(x, stride, d, kOfHuge);
  const double norm = std::sqrt(squares);
  *gradient = !(norm < kTinyNorm);
  *inverse = factor / (norm < kTinyNorm ? kTinyNorm : norm);
  const double scale = normalize ? *inverse : 1;
  if (stride == 1)
    for (int64_t k = 0; k < d; ++k) out[k] = static_cast<T>(number(x[k]) * scale);
  else
    for (int64_t k = 0; k < d; ++k) out[k] = static_cast<T>(number(x[k * stride]) * scale);
}

// The sum of term(x, y) over a row.
template <class X, class Y, class Term>
double sum_terms(const X* x, const Y* y, int64_t d, const Term& term) {
  constexpr int kParts = 16;
  double parts[kParts] = {};
  int64_t k = 0;
  for (; k + kParts <= d; k += kParts)
    for (int c = 0; c < kParts; ++c) parts[c] += term(static_cast<double>(x[k + c]), static_cast<double>(y[k + c]));
  for (; k < d; ++k) parts[0] += term(static_cast<double>(x[k]), static_cast<double>(y[k]));
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
  const double radial = scale * sum_terms(sum, unit, d, [](double u, double v) { return u * v; });
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
  void contrast_spread(const Contrast<T>& p, int64_t i, int64_t j, T* strip) {                               \
    spread_tile(p, i, j, strip, [&](const Tile<T>& t) { dots(p, t, strip); });                               \
  }                                                                                                          \
  void contrast_own(const Contrast<T>& p, int64_t i, int64_t j, T* strip) {                                  \
    own_tile(p, i, j, strip, [&](const Tile<T>& t) { dots(p, t, strip); });                                  \
  }                                                                                                          \
  void contrast_search(const Contrast<T>& p, int64_t i, int64_t j, T* strip, const Search<T>& search) {      \
    search_tile(p, i, j, strip, search, [&](const Tile<T>& t) { dots(p, t, strip); });                       \
  }                                                                                                          \
  void contrast_pack(const Contrast<T>& p, Rows<T>& x, int64_t begin, int64_t end) { pack(p, x, begin, end); } \
  void contrast_set(double& value, const T* x, const T* y, int64_t d) {                                      \
    value = sum_terms(x, y, d, [](double u, double v) { return u * v; });                                    \
  }                                                                                                          \
  void contrast_distance(double& value, const T* x, const T* y, int64_t d) {                                 \
    value = sum_terms(x, y, d, [](double u, double v) { return (u - v) * (u - v); });                        \
  }                                                                                                          \
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
