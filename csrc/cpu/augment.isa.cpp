#include "clead/augment.h"

#include "clead/augment_blur.h"
#include "clead/augment_color.h"
#include "clead/augment_geometry.h"

namespace clead::CLEAD_ISA {
namespace {

template <class T>
struct Image {
  const Augmented<T>& a;
  const Canvas<T> canvas{a.channels, a.height, a.width, a.columns, a.rows};
  const int64_t pixels = a.height * a.width, size = a.channels * pixels;
  const T* values = a.image;

  // Where it may be changed.
  T* own() {
    if (values != a.out && values != a.spare) {
      memcpy(a.out, values, sizeof(T) * static_cast<size_t>(size));
      values = a.out;
    }
    return values == a.out ? a.out : a.spare;
  }

  void step(AugmentStep name, const double* n) {
    T* const other = values == a.out ? a.spare : a.out;
    switch (name) {
      case AugmentStep::resized_crop:
        resized_crop(canvas, values, other, T(n[0]), T(n[1]), T(n[2]), T(n[3]));
        values = other;
        break;
      case AugmentStep::affine:
        affine(canvas, values, other, n[0], n[1], n[2], n[3]);
        values = other;
        break;
      case AugmentStep::crop:
        crop(canvas, values, other, n[0], n[1]);
        values = other;
        break;
      case AugmentStep::flip:
        if (n[0] != 0) flip(canvas, own());
        break;
      case AugmentStep::brightness:
        brighten(own(), size, T(n[0]));
        break;
      case AugmentStep::jitter:
        if (n[0] != 0) jitter(own(), pixels, T(n[1]), T(n[2]), T(n[3]), T(n[4]));
        break;
      case AugmentStep::grayscale:
        if (n[0] != 0) grayscale(own(), pixels);
        break;
      case AugmentStep::blur:
        if (n[0] > 0) {
          T* const last = other == a.out ? a.spare : a.out;
          blur(values, other, last, a.channels, a.height, a.width, n[0]);
          values = last;
        }
        break;
    }
  }

  void finish() {
    if (a.clip)
      clip(values, a.out, size);
    else if (values != a.out)
      memcpy(a.out, values, sizeof(T) * static_cast<size_t>(size));
  }
};

template <class T>
void run(const Augmented<T>& a) {
  Image<T> image{a};
  const double* next = a.numbers;
  for (int64_t k = 0; k < a.count; ++k) {
    double numbers[kMostParameters];
    for (int i = 0; i < kAugmentParameters[a.steps[k]]; ++i, next += a.stride) numbers[i] = *next;
    image.step(static_cast<AugmentStep>(a.steps[k]), numbers);
  }
  image.finish();
}

}  // namespace

void augment(const Augmented<float>& a) { run(a); }
void augment(const Augmented<double>& a) { run(a); }

}  // namespace clead::CLEAD_ISA
