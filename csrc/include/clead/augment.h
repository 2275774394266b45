// Augmentation of one image at a time, all its steps while it is in the cache. Torch-free.
#pragma once

#include <cstdint>

#include "clead/isa.h"

namespace clead {

// In the order of kernels/clead_kernels/augment/steps.py, with as many parameters.
enum class AugmentStep { resized_crop, affine, crop, flip, brightness, jitter, grayscale, blur };
constexpr int64_t kAugmentSteps = 8;
constexpr int kAugmentParameters[kAugmentSteps] = {4, 4, 2, 1, 1, 5, 1, 1};
constexpr int kMostParameters = 5;

// One image [channels, height, width], dense. The numbers are those of all steps, one behind the other.
template <class T>
struct Augmented {
  const T* image;  // may be `spare`
  T* out;
  T* spare;  // an image
  const T *columns, *rows;  // of the pixels of a plane, and of as many more as fill a vector
  const int64_t* steps;
  int64_t count;
  const double* numbers;
  int64_t stride;  // of the numbers
  int64_t channels, height, width;
  bool clip;
};

#define CLEAD_DECLARE(isa)                \
  namespace isa {                         \
  void augment(const Augmented<float>&);  \
  void augment(const Augmented<double>&); \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE

}  // namespace clead
