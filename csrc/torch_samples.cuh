// Samples of tensors for the kernels of clead/sample.cuh.
#pragma once

#include "clead/sample.cuh"
#include "clead/strided.h"
#include "torch_cuda.h"
#include "torch_operands.h"

namespace clead {

template <class T>
cuda::PerSampleNumber<T> per_sample(const std::optional<Tensor>& t, double value, const Tensor& x_adv,
                                    const char* name) {
  if (!t) return {nullptr, 0, value};
  check_beside(*t, x_adv, name);
  const auto sizes = sizes_of(x_adv);
  const Scalars<Wide<T>> numbers(t, value, sizes, name);
  for (int64_t d = 1; d < t->dim(); ++d) STD_TORCH_CHECK(t->size(d) == 1, name, " must be one number per sample");
  return {numbers.tensor, numbers.strides[0], 0.0};
}

// grad may be null; x as well, and stands for x_adv then.
template <class T>
cuda::Samples<T> samples_of(const Tensor& x_adv, const Tensor* grad, const Tensor* x) {
  const auto sizes = sizes_of(x_adv);
  const Tensor& along = grad != nullptr ? *grad : x_adv;
  const Tensor& centre = x != nullptr ? *x : x_adv;
  check_beside(along, x_adv, "grad");
  check_beside(centre, x_adv, "x");
  const std::array<std::vector<int64_t>, 3> strides = {strides_against(x_adv, sizes, "x_adv"),
                                                       strides_against(along, sizes, "grad"),
                                                       strides_against(centre, sizes, "x")};
  cuda::Samples<T> s{};
  std::array<std::vector<int64_t>, 3> inner;
  for (int k = 0; k < 3; ++k) {
    s.sample_stride[k] = strides[k][0];
    inner[k].assign(strides[k].begin() + 1, strides[k].end());
  }
  const Strided<3> row({sizes.begin() + 1, sizes.end()}, inner, Order::logical);
  STD_TORCH_CHECK(row.dims().size() <= cuda::kSampleDims, "samples have at most ", cuda::kSampleDims,
                  " dimensions that do not merge");
  STD_TORCH_CHECK(row.numel() <= cuda::kMaxSample, "samples have at most ", cuda::kMaxSample, " elements on CUDA");
  for (const auto& dim : row.dims()) {
    s.dim[s.dims] = static_cast<int>(dim.size);
    std::copy(dim.step.begin(), dim.step.end(), s.stride[s.dims++]);
  }
  s.count = sizes[0], s.size = static_cast<int>(row.numel());
  s.x_adv = mutable_data<T>(x_adv);
  s.grad = grad != nullptr ? const_data<T>(*grad) : nullptr;
  s.x = const_data<T>(centre);
  return s;
}

template <class T>
void run_samples(void (*kernel)(cuda::Samples<T>), const cuda::Samples<T>& s, const Tensor& x_adv, int operands) {
  const torch::stable::accelerator::DeviceGuard guard(x_adv.get_device_index());
  STD_CUDA_CHECK(cuda::launch_samples(kernel, s, operands, stream_of(x_adv)));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace clead
