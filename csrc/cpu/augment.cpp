#include "clead/augment.h"

#include <vector>

#include "clead/buffer.h"
#include "parallel.h"
#include "torch_operands.h"

namespace clead {
namespace {

constexpr int64_t kGrain = 8192;  // values a thread is worth waking for
constexpr int64_t kMostLanes = 16;  // of any instruction set

// Images, or bytes that become images, by number.
template <class T>
struct Images {
  Images(const Tensor& images, double max_value)
      : size(images.numel() / images.size(0)),
        bytes(images.scalar_type() == ScalarType::Byte ? const_data<uint8_t>(images) : nullptr),
        values(bytes == nullptr ? const_data<T>(images) : nullptr) {
    if (bytes != nullptr)
      for (int byte = 0; byte < 256; ++byte) pixels[byte] = static_cast<T>(byte) / static_cast<T>(max_value);
  }

  const T* read(int64_t image, T* buffer) const {
    if (bytes == nullptr) return values + image * size;
    for (int64_t i = 0; i < size; ++i) buffer[i] = pixels[bytes[image * size + i]];
    return buffer;
  }

  int64_t size;
  const uint8_t* bytes;
  const T* values;
  T pixels[256];
};

template <class T>
void launch(const Tensor& images, const Tensor& parameters, const std::vector<int64_t>& steps, double max_value,
            bool clip, const Tensor& out) {
  const Images<T> source(images, max_value);
  const int64_t batch = images.size(0), width = images.size(3), plane = images.size(2) * width;
  const double* const numbers = const_data<double>(parameters);
  T* const written = mutable_data<T>(out);
  const Buffer<T> columns(plane + kMostLanes, T(0)), rows(plane + kMostLanes, T(0));
  for (int64_t i = 0; i < plane; ++i) columns[i] = static_cast<T>(i % width), rows[i] = static_cast<T>(i / width);
  isa();  // may throw, which must not happen on a worker thread
  parallel_for(out.size(0), std::max<int64_t>(1, kGrain / source.size), [&](int64_t begin, int64_t end) {
    const Buffer<T> spare(source.size);
    for (int64_t i = begin; i < end; ++i) {
      Augmented<T> a{};
      a.image = source.read(i % batch, spare.data());
      a.out = written + i * source.size;
      a.spare = spare.data(), a.columns = columns.data(), a.rows = rows.data();
      a.steps = steps.data(), a.count = static_cast<int64_t>(steps.size());
      a.numbers = numbers + i, a.stride = out.size(0);
      a.channels = images.size(1), a.height = images.size(2), a.width = width;
      a.clip = clip;
      CLEAD_ISA_CALL(augment(a));
    }
  });
}

void augment_native_(Tensor images, Tensor parameters, std::vector<int64_t> steps, double max_value, bool clip,
                     Tensor out) {
  const auto dtype = out.scalar_type();
  STD_TORCH_CHECK(images.dim() == 4 && images.is_contiguous() && out.is_contiguous() && parameters.is_contiguous() &&
                      parameters.dim() == 2 && parameters.scalar_type() == ScalarType::Double,
                  "images and out must be contiguous [B, C, H, W], parameters contiguous float64 [rows, V * B]");
  STD_TORCH_CHECK(images.scalar_type() == dtype ||
                      (images.scalar_type() == ScalarType::Byte && dtype == ScalarType::Float),
                  "out must have the dtype of images, or float32 for bytes");
  int64_t rows = 0;
  for (const int64_t step : steps) {
    STD_TORCH_CHECK(step >= 0 && step < kAugmentSteps, "no step has number ", step);
    const auto name = static_cast<AugmentStep>(step);
    const bool of_color = name == AugmentStep::jitter || name == AugmentStep::grayscale;
    STD_TORCH_CHECK(!of_color || images.size(1) == 3, "steps of colour need 3 channels");
    rows += kAugmentParameters[step];
  }
  STD_TORCH_CHECK(parameters.size(0) == rows && parameters.size(1) == out.size(0), "parameters must be [", rows, ", ",
                  out.size(0), "]");
  for (int64_t d = 1; d < 4; ++d) STD_TORCH_CHECK(images.size(d) == out.size(d), "out must have the images' shape");
  if (out.numel() == 0) return;
  STD_TORCH_CHECK(images.size(0) > 0 && images.size(2) < (1 << 20) && images.size(3) < (1 << 20) &&
                      images.size(2) * images.size(3) < (1 << 30), "planes are too large");
  if (dtype == ScalarType::Double) return launch<double>(images, parameters, steps, max_value, clip, out);
  STD_TORCH_CHECK(dtype == ScalarType::Float, "out must be float32 or float64");
  launch<float>(images, parameters, steps, max_value, clip, out);
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) { m.impl("augment_native_", TORCH_BOX(&clead::augment_native_)); }
