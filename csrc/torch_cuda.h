// The current stream of a tensor's device. The symbols are weak so that one module also loads in a CPU-only torch.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg

namespace clead {

inline cudaStream_t stream_of(const torch::stable::Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// A kernel that is handed a host address takes the device from the whole process.
inline void check_beside(const torch::stable::Tensor& t, const torch::stable::Tensor& x_adv, const char* name) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == x_adv.get_device_index(), name,
                  " must be on the device of x_adv");
}

inline void check_beside(const std::optional<torch::stable::Tensor>& t, const torch::stable::Tensor& x_adv,
                         const char* name) {
  if (t) check_beside(*t, x_adv, name);
}

}  // namespace clead
