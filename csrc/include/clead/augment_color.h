// What the pixels of one image look like: red, green and blue planes, in place. Torch-free, internal linkage.
#pragma once

#include <cstdint>
#include <cstring>

#include "clead/lanes.h"

namespace clead {
namespace {

template <class T>
CLEAD_INLINE Vec<T> smaller(Vec<T> a, Vec<T> b) {
  return a > b ? b : a;
}

template <class T>
CLEAD_INLINE Vec<T> clipped(Vec<T> x) {
  return smaller<T>(larger<T>(x, all(T(0))), all(T(1)));
}

// Of small numbers.
template <class T>
CLEAD_INLINE Vec<T> floored(Vec<T> x) {
  const Vec<T> near = (x + Lanes<T>::kMagic) - Lanes<T>::kMagic;
  return near > x ? near - T(1) : near;
}

template <class T>
CLEAD_INLINE Vec<T> luma(Vec<T> red, Vec<T> green, Vec<T> blue) {
  return red * T(0.299) + green * T(0.587) + blue * T(0.114);
}

template <class T>
CLEAD_INLINE Vec<T> blended(Vec<T> x, Vec<T> other, T weight) {
  return clipped<T>(x * weight + other * (T(1) - weight));
}

// A channel is full within one sextant of its own hue, falls to nothing at two, and is nothing beyond.
template <class T>
CLEAD_INLINE Vec<T> channel(Vec<T> value, Vec<T> chroma, Vec<T> sextant, T offset) {
  Vec<T> distance = sextant + offset;
  distance = distance - T(6) * floored<T>(distance / T(6));
  return clipped<T>(value - chroma * clipped<T>(smaller<T>(distance, T(4) - distance)));
}

// c: red, green, blue; the hue is turned by sixths of a circle.
template <class T>
CLEAD_INLINE void turn(Vec<T>* c, T sixths) {
  const Vec<T> value = larger<T>(larger<T>(c[0], c[1]), c[2]), least = smaller<T>(smaller<T>(c[0], c[1]), c[2]);
  const Vec<T> chroma = value - least, divisor = chroma == T(0) ? all(T(1)) : chroma;
  const Vec<T> of_red = (c[1] - c[2]) / divisor, of_green = (c[2] - c[0]) / divisor + T(2);
  const Vec<T> of_blue = (c[0] - c[1]) / divisor + T(4), of_others = value == c[1] ? of_green : of_blue;
  const Vec<T> sextant = (value == c[0] ? of_red : of_others) + sixths;
  c[0] = channel<T>(value, chroma, sextant, T(5));
  c[1] = channel<T>(value, chroma, sextant, T(3));
  c[2] = channel<T>(value, chroma, sextant, T(1));
}

template <class T>
struct Jitter {
  T mean, contrast, saturation, sixths;

  inline __attribute__((always_inline)) void operator()(Vec<T>* c) const {
    for (int k = 0; k < 3; ++k) c[k] = blended<T>(c[k], all(mean), contrast);
    const Vec<T> grey = luma<T>(c[0], c[1], c[2]);
    for (int k = 0; k < 3; ++k) c[k] = blended<T>(c[k], grey, saturation);
    turn<T>(c, sixths);
  }
};

template <class T>
struct Grey {
  inline __attribute__((always_inline)) void operator()(Vec<T>* c) const { c[0] = c[1] = c[2] = luma<T>(c[0], c[1], c[2]); }
};

// body(red, green, blue) on all pixels, a vector at a time.
template <class T, class Body>
CLEAD_INLINE void for_colors(T* values, int64_t pixels, const Body& body) {
  constexpr int64_t n = kLanes<T>;
  Vec<T> c[3];
  int64_t i = 0;
  for (; i + n <= pixels; i += n) {
    for (int k = 0; k < 3; ++k) c[k] = load(values + k * pixels + i);
    body(c);
    for (int k = 0; k < 3; ++k) store<T>(values + k * pixels + i, c[k]);
  }
  if (i == pixels) return;
  T rest[3 * n] = {};
  const size_t bytes = sizeof(T) * static_cast<size_t>(pixels - i);
  for (int k = 0; k < 3; ++k) memcpy(rest + k * n, values + k * pixels + i, bytes);
  for (int k = 0; k < 3; ++k) c[k] = load(rest + k * n);
  body(c);
  for (int k = 0; k < 3; ++k) store<T>(rest + k * n, c[k]);
  for (int k = 0; k < 3; ++k) memcpy(values + k * pixels + i, rest + k * n, bytes);
}

// The mean luma, summed as integers as the reference does; NaN counts as 0.
template <class T>
T mean_luma(const T* red, int64_t pixels) {
  const T *const green = red + pixels, *const blue = green + pixels;
  int64_t total = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    const T grey = red[i] * T(0.299) + green[i] * T(0.587) + blue[i] * T(0.114);
    const T known = grey == grey ? grey : T(0);
    total += static_cast<typename Lanes<T>::Integers>(known * T(0x1p24));
  }
  return static_cast<T>(static_cast<double>(total) / (0x1p24 * static_cast<double>(pixels)));
}

template <class T>
CLEAD_INLINE T clipped_one(T x) {  // NaN stays NaN
  x = x < T(0) ? T(0) : x;
  return x > T(1) ? T(1) : x;
}

template <class T>
void clip(const T* values, T* out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) out[i] = clipped_one(values[i]);
}

template <class T>
void brighten(T* values, int64_t size, T factor) {
  for (int64_t i = 0; i < size; ++i) values[i] = clipped_one(values[i] * factor);
}

template <class T>
void jitter(T* values, int64_t pixels, T brightness, T contrast, T saturation, T hue) {
  brighten(values, 3 * pixels, brightness);
  for_colors(values, pixels, Jitter<T>{mean_luma(values, pixels), contrast, saturation, T(6) * hue});
}

template <class T>
void grayscale(T* values, int64_t pixels) {
  for_colors(values, pixels, Grey<T>{});
}

}  // namespace
}  // namespace clead
