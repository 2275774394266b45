#include "clead/perturb_l2.h"

#include "clean_rows.h"
#include "parallel.h"
#include "torch_operands.h"

namespace clead {
namespace {

constexpr int64_t kGrain = 16384;  // elements a thread is worth waking for

template <class T>
void launch(const Tensor& x_adv, const Tensor* grad, const Tensor& x, const PerSample& eps, const PerSample& step,
            double low, double high, bool targeted) {
  const auto sizes = sizes_of(x_adv);
  const auto rows = [&](const Tensor& t, const char* name) {
    return Rows<const T>(const_data<T>(t), sizes, strides_against(t, sizes, name));
  };
  const Rows<T> images(mutable_data<T>(x_adv), sizes, strides_against(x_adv, sizes, "x_adv"));
  const Rows<const T> ascent = grad == nullptr ? rows(x_adv, "x_adv") : rows(*grad, "grad");
  const CleanRows<T> centres(x, sizes);
  const int64_t size = images.size();
  isa();  // may throw, which must not happen on a worker thread
  parallel_for(sizes[0], std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    std::vector<T> image(images.buffer_size(size)), gradient(ascent.buffer_size(size)),
        centre(centres.buffer_size(size));
    for (int64_t row = begin; row < end; ++row) {
      L2Row<T> r{};
      r.x_adv = images.read(row, 0, size, image.data());
      r.grad = grad == nullptr ? nullptr : ascent.read(row, 0, size, gradient.data());
      r.x = centres.read(row, 0, size, centre.data());
      r.size = size;
      r.eps = eps.at(row), r.step = targeted ? -step.at(row) : step.at(row);
      r.low = low, r.high = high;
      CLEAD_ISA_CALL(pgd_step_l2(r));
      images.write(row, 0, size, r.x_adv);
    }
  });
}

void step(const char* op, const Tensor& x_adv, const Tensor* grad, const Tensor& x, double eps, double step_size,
          const std::optional<Tensor>& eps_tensor, const std::optional<Tensor>& step_tensor, double low, double high,
          bool targeted) {
  const auto dtype = x_adv.scalar_type();
  STD_TORCH_CHECK(grad == nullptr || grad->scalar_type() == dtype, "x_adv and grad must have one dtype");
  are_bytes(x, dtype);
  check_written(x_adv, "x_adv", {grad, &x});
  if (x_adv.numel() == 0) return;
  const PerSample radius(eps_tensor, eps, x_adv, "eps"), length(step_tensor, step_size, x_adv, "step_size");
  for_pixels(dtype, op, [&]<class T>() { launch<T>(x_adv, grad, x, radius, length, low, high, targeted); });
}

void pgd_step_l2_(Tensor x_adv, Tensor grad, Tensor x, double eps, double step_size, std::optional<Tensor> eps_tensor,
                  std::optional<Tensor> step_tensor, double low, double high, bool targeted) {
  step("pgd_step_l2_", x_adv, &grad, x, eps, step_size, eps_tensor, step_tensor, low, high, targeted);
}

void project_l2_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, double low, double high) {
  step("project_l2_", x_adv, nullptr, x, eps, 0.0, eps_tensor, std::nullopt, low, high, false);
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) {
  m.impl("pgd_step_l2_", TORCH_BOX(&clead::pgd_step_l2_));
  m.impl("project_l2_", TORCH_BOX(&clead::project_l2_));
}
