#include "clead/perturb_l1.cuh"

#include "torch_samples.cuh"

namespace clead {
namespace {

void pgd_step_l1_(Tensor x_adv, Tensor grad, Tensor x, double eps, double step_size, double sparsity,
                  std::optional<Tensor> eps_tensor, std::optional<Tensor> step_tensor,
                  std::optional<Tensor> sparsity_tensor, double low, double high, bool targeted) {
  const auto dtype = x_adv.scalar_type();
  STD_TORCH_CHECK(grad.scalar_type() == dtype && x.scalar_type() == dtype, "all images must have one dtype");
  check_written(x_adv, "x_adv", {&grad, &x});
  if (x_adv.numel() == 0) return;
  for_pixels(dtype, "pgd_step_l1_", [&]<class T>() {
    auto s = samples_of<T>(x_adv, &grad, &x);
    s.eps = per_sample<T>(eps_tensor, eps, x_adv, "eps");
    s.step = per_sample<T>(step_tensor, step_size, x_adv, "step_size");
    s.sparsity = per_sample<T>(sparsity_tensor, sparsity, x_adv, "l1_sparsity");
    s.low = low, s.high = high, s.down = targeted;
    run_samples(&cuda::pgd_step_l1_kernel<T>, s, x_adv, 3);
  });
}

void project_l1_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, double low, double high) {
  STD_TORCH_CHECK(x.scalar_type() == x_adv.scalar_type(), "all images must have one dtype");
  check_written(x_adv, "x_adv", {&x});
  if (x_adv.numel() == 0) return;
  for_pixels(x_adv.scalar_type(), "project_l1_", [&]<class T>() {
    auto s = samples_of<T>(x_adv, nullptr, &x);
    s.eps = per_sample<T>(eps_tensor, eps, x_adv, "eps");
    s.low = low, s.high = high;
    run_samples(&cuda::pgd_step_l1_kernel<T>, s, x_adv, 2);
  });
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CUDA, m) {
  m.impl("pgd_step_l1_", TORCH_BOX(&clead::pgd_step_l1_));
  m.impl("project_l1_", TORCH_BOX(&clead::project_l1_));
}
