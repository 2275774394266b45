// What launchers need from tensors; the only shared header that sees torch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

#include "clead/pixel.h"

namespace clead {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Where the elements are. A tensor may have lost its storage, which what shards parameters frees and brings back.
template <class T>
T* mutable_data(const Tensor& t) {
  void* const data = t.mutable_data_ptr();
  STD_TORCH_CHECK(data != nullptr || t.numel() == 0, "a tensor has no storage");
  return static_cast<T*>(data);
}

template <class T>
const T* const_data(const Tensor& t) {
  const void* const data = t.const_data_ptr();
  STD_TORCH_CHECK(data != nullptr || t.numel() == 0, "a tensor has no storage");
  return static_cast<const T*>(data);
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes(t.dim());
  for (int64_t d = 0; d < t.dim(); ++d) sizes[d] = t.size(d);
  return sizes;
}

// The first address of t and, of no element, the one after the last.
inline std::pair<const char*, const char*> addresses(const Tensor& t) {
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * (t.size(d) > 1 ? t.stride(d) : 0);
  const auto* const first = const_data<char>(t);
  return {first, first + (last + 1) * t.element_size()};
}

// That images can be written in place: every element is there once, and none of the others, which may be null, is there.
inline void check_written(const Tensor& t, const char* name, std::initializer_list<const Tensor*> others) {
  STD_TORCH_CHECK(t.dim() > 0, name, " must be [B, ...], not 0-d");
  if (t.numel() == 0) return;
  std::vector<std::pair<int64_t, int64_t>> steps;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1) steps.emplace_back(t.stride(d), t.size(d));
  std::sort(steps.begin(), steps.end());
  int64_t reach = 0;
  for (const auto& [step, size] : steps) {
    STD_TORCH_CHECK(step > reach, name, " must not have elements that share memory");
    reach += (size - 1) * step;
  }
  const auto own = addresses(t);
  for (const Tensor* other : others) {
    if (other == nullptr || other->numel() == 0) continue;
    const auto its = addresses(*other);
    STD_TORCH_CHECK(own.second <= its.first || its.second <= own.first, name, " must not share memory with the others");
  }
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
    tensor = const_data<Wide>(*t);
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
    (wide ? doubles_ : floats_) = const_data<void>(*t);
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
