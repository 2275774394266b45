// What launchers need from tensors; the only shared header that sees torch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "clead/pixel.h"

namespace clead {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes(t.dim());
  for (int64_t d = 0; d < t.dim(); ++d) sizes[d] = t.size(d);
  return sizes;
}

// Strides of t against a shape that it equals or, dimension by dimension, broadcasts to.
inline std::vector<int64_t> strides_against(const Tensor& t, const std::vector<int64_t>& sizes, const char* name) {
  STD_TORCH_CHECK(t.dim() == static_cast<int64_t>(sizes.size()), name, " must have ", sizes.size(), " dimensions");
  std::vector<int64_t> strides(sizes.size());
  for (size_t d = 0; d < sizes.size(); ++d) {
    STD_TORCH_CHECK(t.size(d) == sizes[d] || t.size(d) == 1, name, " does not broadcast to x_adv");
    strides[d] = t.size(d) == 1 ? 0 : t.stride(d);
  }
  return strides;
}

// Calls body<T>() for the element type of images.
template <class Body>
void for_pixels(ScalarType dtype, const char* op, Body&& body) {
  switch (dtype) {
    case ScalarType::Float: return body.template operator()<float>();
    case ScalarType::Double: return body.template operator()<double>();
    case ScalarType::BFloat16: return body.template operator()<Bf16>();
    case ScalarType::Half: return body.template operator()<Half>();
    default: STD_TORCH_CHECK(false, "the native ", op, " has float32, float64, bfloat16 and float16");
  }
}

// Whether the clean images are bytes; otherwise they have the dtype of x_adv.
inline bool are_bytes(const Tensor& x, ScalarType dtype) {
  STD_TORCH_CHECK(x.scalar_type() == dtype || x.scalar_type() == ScalarType::Byte,
                  "all images must have one dtype, only x may be uint8");
  return x.scalar_type() != dtype;
}

// A number per element: a tensor of dtype Wide where given, else one scalar for all.
template <class Wide>
struct Scalars {
  Scalars(const std::optional<Tensor>& t, double value, const std::vector<int64_t>& sizes, const char* name)
      : scalar(static_cast<Wide>(value)), strides(sizes.size(), 0) {
    if (!t) return;
    const auto wanted = sizeof(Wide) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(t->scalar_type() == wanted, name, " must be ", sizeof(Wide) == 8 ? "float64" : "float32");
    strides = strides_against(*t, sizes, name);
    tensor = static_cast<const Wide*>(t->const_data_ptr());
  }

  // For host code; where tensor is null, kernels take the scalar by value.
  const Wide* data() const { return tensor != nullptr ? tensor : &scalar; }

  Wide scalar;
  const Wide* tensor = nullptr;
  std::vector<int64_t> strides;
};

// A number per sample in float64: from a tensor [B or 1, 1, …] where given, as Scalars takes it, else one for all.
class PerSample {
 public:
  PerSample(const std::optional<Tensor>& t, double value, const Tensor& x_adv, const char* name) : value_(value) {
    if (!t) return;
    const bool wide = x_adv.scalar_type() == ScalarType::Double;
    STD_TORCH_CHECK(t->scalar_type() == (wide ? ScalarType::Double : ScalarType::Float), name, " must be ",
                    wide ? "float64" : "float32");
    const auto sizes = sizes_of(x_adv);
    stride_ = strides_against(*t, sizes, name)[0];
    for (int64_t d = 1; d < t->dim(); ++d) STD_TORCH_CHECK(t->size(d) == 1, name, " must be one number per sample");
    (wide ? doubles_ : floats_) = t->const_data_ptr();
  }

  double at(int64_t sample) const {
    if (doubles_ != nullptr) return static_cast<const double*>(doubles_)[sample * stride_];
    return floats_ != nullptr ? static_cast<const float*>(floats_)[sample * stride_] : value_;
  }

 private:
  double value_;
  int64_t stride_ = 0;
  const void *doubles_ = nullptr, *floats_ = nullptr;
};

}  // namespace clead
