#include "clead/perturb_linf.cuh"

#include "clead/strided.h"
#include "torch_cuda.h"
#include "torch_operands.h"

namespace clead {
namespace {

template <class T, class Wide>
void typed(const Tensor& x_adv, const Tensor& grad, const Tensor& x, double eps, double step_size,
           const std::optional<Tensor>& eps_tensor, const std::optional<Tensor>& step_tensor, double low, double high,
           bool targeted) {
  const auto sizes = sizes_of(x_adv);
  const Scalars<Wide> radius(eps_tensor, eps, sizes, "eps"), length(step_tensor, step_size, sizes, "step_size");
  const Strided<5> shape(sizes, {strides_against(x_adv, sizes, "x_adv"), strides_against(grad, sizes, "grad"),
                                 strides_against(x, sizes, "x"), radius.strides, length.strides});
  STD_TORCH_CHECK(shape.dims().size() <= cuda::kMaxDims, "pgd_step_linf_ takes at most ", cuda::kMaxDims,
                  " dimensions that do not merge");
  cuda::LinfGrid<T, Wide> grid{};
  grid.numel = shape.numel();
  for (const auto& dim : shape.dims()) {
    grid.size[grid.dims] = dim.size;
    std::copy(dim.step.begin(), dim.step.end(), grid.stride[grid.dims++]);
  }
  grid.x_adv = mutable_data<T>(x_adv);
  grid.grad = const_data<T>(grad);
  grid.x = const_data<T>(x);
  grid.eps = radius.tensor, grid.step = length.tensor;
  grid.eps_scalar = radius.scalar, grid.step_scalar = length.scalar;
  grid.sign = targeted ? Wide(-1) : Wide(1);
  grid.low = static_cast<Wide>(low), grid.high = static_cast<Wide>(high);
  const torch::stable::accelerator::DeviceGuard guard(x_adv.get_device_index());
  cuda::pgd_step_linf(grid, stream_of(x_adv));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void step(const char* op, const Tensor& x_adv, const Tensor& grad, const Tensor& x, double eps, double step_size,
          const std::optional<Tensor>& eps_tensor, const std::optional<Tensor>& step_tensor, double low, double high,
          bool targeted) {
  const auto dtype = x_adv.scalar_type();
  STD_TORCH_CHECK(grad.scalar_type() == dtype && x.scalar_type() == dtype, "all images must have one dtype");
  check_written(x_adv, "x_adv", {&grad, &x});
  check_beside(grad, x_adv, "grad"), check_beside(x, x_adv, "x");
  check_beside(eps_tensor, x_adv, "eps"), check_beside(step_tensor, x_adv, "step_size");
  if (x_adv.numel() == 0) return;
  for_pixels(dtype, op, [&]<class T>() {
    typed<T, Wide<T>>(x_adv, grad, x, eps, step_size, eps_tensor, step_tensor, low, high, targeted);
  });
}

void pgd_step_linf_(Tensor x_adv, Tensor grad, Tensor x, double eps, double step_size, std::optional<Tensor> eps_tensor,
                    std::optional<Tensor> step_tensor, double low, double high, bool targeted) {
  step("pgd_step_linf_", x_adv, grad, x, eps, step_size, eps_tensor, step_tensor, low, high, targeted);
}

// A step of length 0, whatever the gradient.
void project_linf_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, double low, double high) {
  step("project_linf_", x_adv, x, x, eps, 0.0, eps_tensor, std::nullopt, low, high, false);
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CUDA, m) {
  m.impl("pgd_step_linf_", TORCH_BOX(&clead::pgd_step_linf_));
  m.impl("project_linf_", TORCH_BOX(&clead::project_linf_));
}
