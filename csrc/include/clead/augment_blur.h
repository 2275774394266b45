// A Gaussian blur of one image, along rows and then along columns. Torch-free, internal linkage.
#pragma once

#include <cmath>
#include <cstdint>

#include "clead/lanes.h"

namespace clead {
namespace {

constexpr int64_t kMostRadius = 32;

// As steps.py has it.
CLEAD_INLINE int64_t blur_radius(int64_t height, int64_t width) {
  const int64_t least = height < width ? height : width, wanted = least < 40 ? 1 : least / 20;
  const int64_t fits = wanted < least - 1 ? wanted : least - 1;
  return fits < kMostRadius ? fits : kMostRadius;
}

CLEAD_INLINE int64_t reflected(int64_t place, int64_t size) {
  return place < 0 ? -place : place < size ? place : 2 * (size - 1) - place;
}

// from may be last.
template <class T>
void blur(const T* from, T* between, T* last, int64_t channels, int64_t h, int64_t w, double sigma) {
  const int64_t radius = blur_radius(h, w), taps = 2 * radius + 1;
  double bells[2 * kMostRadius + 1], total = 0;
  for (int64_t k = 0; k < taps; ++k) {
    const double away = static_cast<double>(k - radius);
    bells[k] = std::exp(-(away * away) / (2 * (sigma * sigma)));
    total += bells[k];
  }
  for (int64_t k = 0; k < taps; ++k) {
    const T weight = static_cast<T>(bells[k] / total);
    for (int64_t line = 0; line < channels * h; ++line) {
      const T* __restrict row = from + line * w;
      T* __restrict out = between + line * w;
      const int64_t shift = k - radius, first = shift < 0 ? -shift : 0, end = shift > 0 ? w - shift : w;
      if (k == 0)
        for (int64_t i = 0; i < w; ++i) out[i] = T(0);
      for (int64_t i = 0; i < first; ++i) out[i] += weight * row[reflected(i + shift, w)];
      for (int64_t i = first; i < end; ++i) out[i] += weight * row[i + shift];
      for (int64_t i = end; i < w; ++i) out[i] += weight * row[reflected(i + shift, w)];
    }
  }
  for (int64_t line = 0; line < channels * h; ++line) {
    T* __restrict out = last + line * w;
    for (int64_t k = 0; k < taps; ++k) {
      const T weight = static_cast<T>(bells[k] / total);
      const T* __restrict row = between + (line - line % h + reflected(line % h + k - radius, h)) * w;
      if (k == 0)
        for (int64_t i = 0; i < w; ++i) out[i] = weight * row[i];
      else
        for (int64_t i = 0; i < w; ++i) out[i] += weight * row[i];
    }
  }
}

}  // namespace
}  // namespace clead
