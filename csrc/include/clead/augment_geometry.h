// Where the pixels of one image come from: boxes, affine maps, windows, mirrors. Torch-free, internal linkage.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "clead/lanes.h"

namespace clead {
namespace {

template <class T>
struct Canvas {
  int64_t channels, height, width;
  T* weights;       // two rows
  int32_t* places;  // two rows
};

// A pixel and the one behind it, with their weights.
template <class T>
struct Taps {
  int32_t first;
  T of_first, of_second;
};

template <class T>
CLEAD_INLINE T clamped(T x, T low, T high) {  // low where it is NaN
  x = x > low ? x : low;
  return x < high ? x : high;
}

// a b + c, fused where the instruction set can: there torch's compiler fuses these products in grid_sample too.
#if defined(__FMA__)
CLEAD_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
CLEAD_INLINE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
template <class T>
CLEAD_INLINE T fused(T a, T b, T c) {
  return a * b + c;
}
#endif

// Four pixels, the upper ones first, by the weights of columns and rows.
template <class T>
CLEAD_INLINE T mixed(T nw, T ne, T sw, T se, T left, T right, T upper, T lower) {
  const T above = fused(ne, right * upper, nw * (left * upper));
  return fused(se, right * lower, fused(sw, left * lower, above));
}

// As grid_sample finds them, with x on its way through the units of the grid. Clamped, so that the conversion to an
// integer is defined: to the image if the edge repeats, else to where nothing of it counts.
template <class T>
CLEAD_INLINE Taps<T> taps(T x, int64_t size, bool repeat) {
  const T grid = (T(2) * x + T(1)) / static_cast<T>(size) - T(1);
  const T back = fused(grid + T(1), static_cast<T>(size) / T(2), T(-0.5));
  const T place = repeat ? clamped(back, T(0), static_cast<T>(size - 1)) : clamped(back, T(-2), static_cast<T>(size + 1));
  const T whole = std::floor(place), of_second = place - whole;
  return {static_cast<int32_t>(whole), T(1) - of_second, of_second};
}

// Of pixel i of `size`, which show the box; beyond its outer centres the edge is repeated.
template <class T>
CLEAD_INLINE Taps<T> boxed(int64_t i, T start, T length, int64_t size) {
  const T inside = (static_cast<T>(i) + T(0.5)) * (length / static_cast<T>(size)) - T(0.5);
  return taps<T>(start + clamped(inside, T(0), length - T(1)), size, true);
}

template <class T>
void resized_crop(const Canvas<T>& canvas, const T* from, T* to, T top, T left, T height, T width) {
  const int64_t h = canvas.height, w = canvas.width;
  T* __restrict of_left = canvas.weights;
  T* __restrict of_right = of_left + w;
  int32_t* __restrict lefts = canvas.places;
  int32_t* __restrict rights = lefts + w;
  for (int64_t i = 0; i < w; ++i) {
    const Taps<T> x = boxed(i, left, width, w);
    lefts[i] = x.first, of_left[i] = x.of_first, of_right[i] = x.of_second;
    rights[i] = x.first + 1 < w ? x.first + 1 : x.first;
  }
  for (int64_t row = 0; row < h; ++row) {
    const Taps<T> y = boxed(row, top, height, h);
    const int64_t lower = y.first + 1 < h ? y.first + 1 : y.first;
    for (int64_t c = 0; c < canvas.channels; ++c) {
      const T* __restrict above = from + (c * h + y.first) * w;
      const T* __restrict below = from + (c * h + lower) * w;
      T* __restrict out = to + (c * h + row) * w;
      for (int64_t i = 0; i < w; ++i)
        out[i] = mixed(above[lefts[i]], above[rights[i]], below[lefts[i]], below[rights[i]], of_left[i], of_right[i],
                       y.of_first, y.of_second);
    }
  }
}

template <class T>
void affine(const Canvas<T>& canvas, const T* from, T* to, double right, double down, double degrees, double scale) {
  const int64_t h = canvas.height, w = canvas.width, plane = h * w;
  const double angle = degrees * (M_PI / 180);
  const T cos = static_cast<T>(std::cos(angle) / scale), sin = static_cast<T>(std::sin(angle) / scale);
  const T middle_x = static_cast<T>((w - 1) / 2.0), middle_y = static_cast<T>((h - 1) / 2.0);
  const T shift_x = static_cast<T>(right), shift_y = static_cast<T>(down);
  T* __restrict of_beside = canvas.weights;
  T* __restrict of_below = of_beside + w;
  int32_t* __restrict columns = canvas.places;
  int32_t* __restrict rows = columns + w;
  for (int64_t row = 0; row < h; ++row) {
    const T down_y = (static_cast<T>(row) - middle_y) - shift_y;
    for (int32_t i = 0; i < static_cast<int32_t>(w); ++i) {
      const T right_x = (static_cast<T>(i) - middle_x) - shift_x;
      const Taps<T> x = taps<T>(cos * right_x - sin * down_y + middle_x, w, false);
      const Taps<T> y = taps<T>(sin * right_x + cos * down_y + middle_y, h, false);
      columns[i] = x.first, of_beside[i] = x.of_second;
      rows[i] = y.first, of_below[i] = y.of_second;
    }
    for (int64_t i = 0; i < w; ++i) {
      const int64_t x = columns[i], y = rows[i];
      const bool left = x >= 0 && x < w, beside = x >= -1 && x < w - 1;
      const bool upper = y >= 0 && y < h, below = y >= -1 && y < h - 1;
      const T of_left = T(1) - of_beside[i], of_upper = T(1) - of_below[i];
      const T* at = from + y * w + x;
      T* out = to + row * w + i;
      for (int64_t c = 0; c < canvas.channels; ++c, at += plane, out += plane) {
        const T nw = upper && left ? at[0] : T(0), ne = upper && beside ? at[1] : T(0);
        const T sw = below && left ? at[w] : T(0), se = below && beside ? at[w + 1] : T(0);
        *out = mixed(nw, ne, sw, se, of_left, of_beside[i], of_upper, of_below[i]);
      }
    }
  }
}

// The window that starts at (top, left), black beyond the image.
template <class T>
void crop(const Canvas<T>& canvas, const T* from, T* to, double top, double left) {
  const int64_t h = canvas.height, w = canvas.width;
  const auto down = static_cast<int64_t>(clamped<double>(top, static_cast<double>(-h), static_cast<double>(h)));
  const auto right = static_cast<int64_t>(clamped<double>(left, static_cast<double>(-w), static_cast<double>(w)));
  const int64_t first = right < 0 ? -right : 0, last = right < 0 ? w : w - right;
  for (int64_t line = 0; line < canvas.channels * h; ++line) {
    const int64_t row = line % h + down;
    T* const out = to + line * w;
    for (int64_t i = 0; i < w; ++i) out[i] = T(0);
    if (row >= 0 && row < h && first < last)
      memcpy(out + first, from + (line + down) * w + first + right, sizeof(T) * static_cast<size_t>(last - first));
  }
}

template <class T>
void flip(const Canvas<T>& canvas, T* values) {
  for (int64_t line = 0; line < canvas.channels * canvas.height; ++line) {
    T* const row = values + line * canvas.width;
    for (int64_t i = 0, j = canvas.width - 1; i < j; ++i, --j) {
      const T left = row[i];
      row[i] = row[j], row[j] = left;
    }
  }
}

}  // namespace
}  // namespace clead
