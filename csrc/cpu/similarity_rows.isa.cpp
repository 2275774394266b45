#include "clead/similarity_rows.h"

#include <cmath>

#include "clead/lanes.h"
#include "clead/norms.h"

namespace clead::CLEAD_ISA {
namespace {

// In four parts, which also keeps rounding errors down.
template <class T>
T dot(const T* x, const T* y, int64_t d) {
  Vec<T> parts[4] = {};
  int64_t k = 0;
  for (; k + 4 * kLanes<T> <= d; k += 4 * kLanes<T>)
    for (int part = 0; part < 4; ++part) {
      const int64_t at = k + part * kLanes<T>;
      parts[part] = fma(load(x + at), load(y + at), parts[part]);
    }
  T rest = 0;
  for (; k < d; ++k) rest += x[k] * y[k];
  return total<T>((parts[0] + parts[1]) + (parts[2] + parts[3])) + rest;
}

template <class T>
double sum_squares(const T* x, int64_t d, double factor) {
  double squares = 0;
  for (int64_t k = 0; k < d; ++k) squares += static_cast<double>(x[k]) * factor * (static_cast<double>(x[k]) * factor);
  return squares;
}

template <class T>
Norm norm_of(const T* x, int64_t d) {
  double squares = static_cast<double>(dot(x, x, d));
  if (!(squares > 1e-25 && squares < 1e37))  // beyond the range of float32, or near it
    squares = sum_squares(x, d, 1.0);
  double factor = 1;
  if (!(squares < kHugeSquares)) factor = kOfHuge, squares = sum_squares(x, d, kOfHuge);
  const double norm = std::sqrt(squares);
  const bool tiny = norm < kTinyNorm;
  return {factor / (tiny ? kTinyNorm : norm), !tiny};
}

template <class S, class T>
void load_row(const S* x, int64_t stride, int64_t d, bool normalize, double scale, T* out, Norm& norm) {
  if (stride == 1)
    for (int64_t k = 0; k < d; ++k) out[k] = static_cast<T>(widen(x[k]));
  else
    for (int64_t k = 0; k < d; ++k) out[k] = static_cast<T>(widen(x[k * stride]));
  if (normalize) {
    norm = norm_of(out, d);
    scale *= norm.inverse;
  }
  if (scale == 1) return;
  const T factor = static_cast<T>(scale);
  for (int64_t k = 0; k < d; ++k) out[k] *= factor;
}

template <class T>
void project(const T* grad, const T* unit, int64_t d, bool normalize, double scale, const Norm& norm, T* out,
             double& radial) {
  const T along = dot(grad, unit, d);
  radial = scale * static_cast<double>(along);
  const T factor = static_cast<T>(normalize ? scale * norm.inverse : scale);
  if (!normalize)
    for (int64_t k = 0; k < d; ++k) out[k] = factor * grad[k];
  else
    for (int64_t k = 0; k < d; ++k) out[k] = norm.gradient ? factor * (grad[k] - unit[k] * along) : T(0);
}

}  // namespace

#define CLEAD_DEFINE_LOAD(T, S)                                                                        \
  void unit_row(const S* x, int64_t stride, int64_t d, bool normalize, double scale, T* out, Norm& norm) { \
    load_row(x, stride, d, normalize, scale, out, norm);                                               \
  }
#define CLEAD_DEFINE(T)                                                                                           \
  CLEAD_DEFINE_LOAD(T, double)                                                                                    \
  CLEAD_DEFINE_LOAD(T, float)                                                                                     \
  CLEAD_DEFINE_LOAD(T, Bf16)                                                                                      \
  CLEAD_DEFINE_LOAD(T, Half)                                                                                      \
  void unit_row_backward(const T* grad, const T* unit, int64_t d, bool normalize, double scale, const Norm& norm, \
                         T* out, double& radial) {                                                                \
    project(grad, unit, d, normalize, scale, norm, out, radial);                                                  \
  }
CLEAD_DEFINE(float)
CLEAD_DEFINE(double)

}  // namespace clead::CLEAD_ISA
