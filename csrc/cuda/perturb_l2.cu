#include "clead/perturb_l2.cuh"

#include "torch_samples.cuh"

namespace clead {
namespace {

void step(const char* op, const Tensor& x_adv, const Tensor* grad, const Tensor& x, double eps, double step_size,
          const std::optional<Tensor>& eps_tensor, const std::optional<Tensor>& step_tensor, double low, double high,
          bool targeted) {
  const auto dtype = x_adv.scalar_type();
  STD_TORCH_CHECK((grad == nullptr || grad->scalar_type() == dtype) && x.scalar_type() == dtype,
                  "all images must have one dtype");
  check_written(x_adv, "x_adv", {grad, &x});
  if (x_adv.numel() == 0) return;
  for_pixels(dtype, op, [&]<class T>() {
    auto s = samples_of<T>(x_adv, grad, &x);
    s.eps = per_sample<T>(eps_tensor, eps, x_adv, "eps");
    s.step = per_sample<T>(step_tensor, step_size, x_adv, "step_size");
    s.low = low, s.high = high, s.down = targeted;
    run_samples(&cuda::pgd_step_l2_kernel<T>, s, x_adv, grad != nullptr ? 3 : 2);
  });
}

void pgd_step_l2_(Tensor x_adv, Tensor grad, Tensor x, double eps, double step_size, std::optional<Tensor> eps_tensor,
                  std::optional<Tensor> step_tensor, double low, double high, bool targeted) {
  step("pgd_step_l2_", x_adv, &grad, x, eps, step_size, eps_tensor, step_tensor, low, high, targeted);
}

void project_l2_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, double low, double high) {
  step("project_l2_", x_adv, nullptr, x, eps, 0.0, eps_tensor, std::nullopt, low, high, false);
}

void momentum_(Tensor buffer, Tensor grad, double momentum) {
  STD_TORCH_CHECK(buffer.scalar_type() == grad.scalar_type(), "buffer and grad must have one dtype");
  check_written(buffer, "buffer", {&grad});
  if (buffer.numel() == 0) return;
  for_pixels(buffer.scalar_type(), "momentum_", [&]<class T>() {
    auto s = samples_of<T>(buffer, &grad, nullptr);
    s.eps = {nullptr, 0, momentum};
    run_samples(&cuda::momentum_kernel<T>, s, buffer, 3);
  });
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CUDA, m) {
  m.impl("pgd_step_l2_", TORCH_BOX(&clead::pgd_step_l2_));
  m.impl("project_l2_", TORCH_BOX(&clead::project_l2_));
  m.impl("momentum_", TORCH_BOX(&clead::momentum_));
}
