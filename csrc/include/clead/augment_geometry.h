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
  const T *columns, *rows;  // of the pixels of a plane, and of as many more as fill a vector
};

template <class T>
CLEAD_INLINE Vec<T> between(Vec<T> x, T low, T high) {  // low where it is NaN
  x = x > low ? x : all(low);
  return x < high ? x : all(high);
}

template <class T>
CLEAD_INLINE Vec<T> gathered(const T* from, Mask<T> places) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_mask_i32gather_ps(__m512{}, 0xFFFF, (__m512i)places, from, 4);
  if constexpr (sizeof(T) == 8) return _mm512_mask_i64gather_pd(__m512d{}, 0xFF, (__m512i)places, from, 8);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return _mm256_i32gather_ps(from, (__m256i)places, 4);
  if constexpr (sizeof(T) == 8) return _mm256_i64gather_pd(from, (__m256i)places, 8);
#else
  Vec<T> values;
  for (int k = 0; k < kLanes<T>; ++k) values[k] = from[places[k]];
  return values;
#endif
}

// Two neighbours in a row or column, and their weights, 0 outside.
template <class T>
struct Taps {
  Mask<T> first, second;
  Vec<T> of_first, of_second;
};

// As grid_sample finds them, with x on its way through the units of the grid; its compiler fuses these products too.
// Beyond the image the edge is repeated, or all is 0.
template <class T>
CLEAD_INLINE Taps<T> taps(Vec<T> x, int64_t size, bool repeat) {
  const T length = static_cast<T>(size), low = repeat ? T(0) : T(-2), high = repeat ? length - T(1) : length + T(1);
  const Vec<T> grid = (T(2) * x + T(1)) / length - T(1);
  const Vec<T> place = between<T>(fma(grid + T(1), all(length / T(2)), all(T(-0.5))), low, high);
  const Vec<T> near = (place + Lanes<T>::kMagic) - Lanes<T>::kMagic, whole = near > place ? near - T(1) : near;
  const Mask<T> last = Mask<T>{} + static_cast<typename Lanes<T>::Integers>(size - 1);
  Taps<T> t;
  t.first = __builtin_convertvector(whole, Mask<T>), t.second = t.first + 1;
  t.of_second = place - whole, t.of_first = T(1) - t.of_second;
  t.of_first = ((t.first >= 0) & (t.first <= last)) ? t.of_first : all(T(0));
  t.of_second = ((t.second >= 0) & (t.second <= last)) ? t.of_second : all(T(0));
  t.first = t.first < 0 ? Mask<T>{} : t.first > last ? last : t.first;
  t.second = t.second < 0 ? Mask<T>{} : t.second > last ? last : t.second;
  return t;
}

// Bilinear, a vector of pixels at a time; source(x, y) turns their places into those they show.
template <class T, class Source>
CLEAD_INLINE void interpolated(const Canvas<T>& canvas, const T* from, T* to, bool repeat, const Source& source) {
  const int64_t plane = canvas.height * canvas.width;
  for (int64_t i = 0; i < plane; i += kLanes<T>) {
    Vec<T> place_x = load(canvas.columns + i), place_y = load(canvas.rows + i);
    source(place_x, place_y);
    const Taps<T> x = taps<T>(place_x, canvas.width, repeat), y = taps<T>(place_y, canvas.height, repeat);
    const auto width = static_cast<typename Lanes<T>::Integers>(canvas.width);
    const Mask<T> upper = y.first * width, lower = y.second * width;
    const Mask<T> nw = upper + x.first, ne = upper + x.second, sw = lower + x.first, se = lower + x.second;
    const Vec<T> of_nw = x.of_first * y.of_first, of_ne = x.of_second * y.of_first;
    const Vec<T> of_sw = x.of_first * y.of_second, of_se = x.of_second * y.of_second;
    for (int64_t c = 0; c < canvas.channels; ++c) {
      const T* const image = from + c * plane;
      Vec<T> value = fma(gathered<T>(image, ne), of_ne, gathered<T>(image, nw) * of_nw);
      value = fma(gathered<T>(image, sw), of_sw, value);
      value = fma(gathered<T>(image, se), of_se, value);
      const int64_t left = plane - i, count = left < kLanes<T> ? left : kLanes<T>;
      memcpy(to + c * plane + i, &value, sizeof(T) * static_cast<size_t>(count));
    }
  }
}

// Beyond its outer centres the edge of the box is repeated.
template <class T>
struct Boxed {
  T top, left, height, width, tall, wide;  // the last two: of the box's pixels to the image's

  static inline __attribute__((always_inline)) Vec<T> stretched(Vec<T> place, T start, T length, T ratio) {
    return start + between<T>((place + T(0.5)) * ratio - T(0.5), T(0), length - T(1));
  }

  inline __attribute__((always_inline)) void operator()(Vec<T>& x, Vec<T>& y) const {
    x = stretched(x, left, width, wide), y = stretched(y, top, height, tall);
  }
};

template <class T>
struct Affine {
  T right, down, cos, sin, middle_x, middle_y;

  inline __attribute__((always_inline)) void operator()(Vec<T>& x, Vec<T>& y) const {
    const Vec<T> from_x = (x - middle_x) - right, from_y = (y - middle_y) - down;
    x = cos * from_x - sin * from_y + middle_x;
    y = sin * from_x + cos * from_y + middle_y;
  }
};

template <class T>
void resized_crop(const Canvas<T>& canvas, const T* from, T* to, T top, T left, T height, T width) {
  const T tall = height / static_cast<T>(canvas.height), wide = width / static_cast<T>(canvas.width);
  interpolated(canvas, from, to, true, Boxed<T>{top, left, height, width, tall, wide});
}

template <class T>
void affine(const Canvas<T>& canvas, const T* from, T* to, double right, double down, double degrees, double scale) {
  const double angle = degrees * (M_PI / 180);
  const T cos = static_cast<T>(std::cos(angle) / scale), sin = static_cast<T>(std::sin(angle) / scale);
  const double middle_x = static_cast<double>(canvas.width - 1) / 2;
  const double middle_y = static_cast<double>(canvas.height - 1) / 2;
  interpolated(canvas, from, to, false, Affine<T>{T(right), T(down), cos, sin, T(middle_x), T(middle_y)});
}

CLEAD_INLINE int64_t clamped(double x, int64_t low, int64_t high) {  // low where it is NaN
  return x > static_cast<double>(low) ? x < static_cast<double>(high) ? static_cast<int64_t>(x) : high : low;
}

// The window that starts at (top, left), black beyond the image.
template <class T>
void crop(const Canvas<T>& canvas, const T* from, T* to, double top, double left) {
  const int64_t h = canvas.height, w = canvas.width;
  const int64_t down = clamped(top, -h, h), right = clamped(left, -w, w);
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
