// What launchers need from tensors; the only shared header that sees torch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

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

}  // namespace clead
