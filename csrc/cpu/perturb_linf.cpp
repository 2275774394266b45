#include "clead/perturb_linf.h"

#include "clead/strided.h"
#include "clean_rows.h"
#include "parallel.h"

namespace clead {
namespace {

constexpr int64_t kGrain = 32768;  // elements a thread is worth waking for
constexpr int64_t kPixels = 1024;  // made from bytes at a time

// A run whose clean images are bytes, a piece at a time.
template <class T, class Wide>
void from_bytes(LinfRun<T, Wide> r, const uint8_t* bytes, const T* pixels) {
  T centres[kPixels];
  const int64_t stride = r.x_stride, size = r.size;
  r.x = centres, r.x_stride = 1;
  if (r.grad == nullptr) r.grad = centres, r.grad_stride = 0;  // a step of length 0
  for (int64_t done = 0; done < size; done += kPixels) {
    r.size = std::min(size - done, kPixels);
    for (int64_t i = 0; i < r.size; ++i) centres[i] = pixels[bytes[(done + i) * stride]];
    CLEAD_ISA_CALL(pgd_step_linf(r));
    r.x_adv += kPixels * r.x_adv_stride, r.grad += kPixels * r.grad_stride;
    r.eps += kPixels * r.eps_stride, r.step += kPixels * r.step_stride;
  }
}

template <class T, class Wide>
void launch(const Tensor& x_adv, const Tensor* grad, const Tensor& x, const Scalars<Wide>& eps,
            const Scalars<Wide>& step, double low, double high, bool targeted) {
  const auto sizes = sizes_of(x_adv);
  const Strided<5> shape(sizes, {strides_against(x_adv, sizes, "x_adv"),
                                 strides_against(grad != nullptr ? *grad : x, sizes, "grad"),
                                 strides_against(x, sizes, "x"), eps.strides, step.strides});
  LinfRun<T, Wide> run{};
  const auto& inner = shape.inner();
  run.x_adv_stride = inner[0], run.grad_stride = inner[1], run.x_stride = inner[2];
  run.eps_stride = inner[3], run.step_stride = inner[4];
  run.sign = targeted ? Wide(-1) : Wide(1);
  run.low = static_cast<Wide>(low), run.high = static_cast<Wide>(high);
  T* const out = mutable_data<T>(x_adv);
  const T* const ascent = grad != nullptr ? const_data<T>(*grad) : nullptr;
  const T* const bytes_as = x.scalar_type() == ScalarType::Byte ? byte_pixels<T>() : nullptr;
  isa();  // may throw, which must not happen on a worker thread
  parallel_for(shape.numel(), kGrain, [&](int64_t begin, int64_t end) {
    shape.walk(begin, end, [&](const Strided<5>::Offsets& at, int64_t size) {
      LinfRun<T, Wide> r = run;
      r.x_adv = out + at[0], r.grad = ascent != nullptr ? ascent + at[1] : nullptr;
      r.eps = eps.data() + at[3], r.step = step.data() + at[4];
      r.size = size;
      if (bytes_as != nullptr) return from_bytes(r, const_data<uint8_t>(x) + at[2], bytes_as);
      r.x = const_data<T>(x) + at[2];
      if (r.grad == nullptr) r.grad = r.x;
      CLEAD_ISA_CALL(pgd_step_linf(r));
    });
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
  const auto sizes = sizes_of(x_adv);
  for_pixels(dtype, op, [&]<class T>() {
    launch<T, Wide<T>>(x_adv, grad, x, Scalars<Wide<T>>(eps_tensor, eps, sizes, "eps"),
                       Scalars<Wide<T>>(step_tensor, step_size, sizes, "step_size"), low, high, targeted);
  });
}

void pgd_step_linf_(Tensor x_adv, Tensor grad, Tensor x, double eps, double step_size, std::optional<Tensor> eps_tensor,
                    std::optional<Tensor> step_tensor, double low, double high, bool targeted) {
  step("pgd_step_linf_", x_adv, &grad, x, eps, step_size, eps_tensor, step_tensor, low, high, targeted);
}

// A step of length 0, whatever the gradient.
void project_linf_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, double low, double high) {
  step("project_linf_", x_adv, nullptr, x, eps, 0.0, eps_tensor, std::nullopt, low, high, false);
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) {
  m.impl("pgd_step_linf_", TORCH_BOX(&clead::pgd_step_linf_));
  m.impl("project_linf_", TORCH_BOX(&clead::project_linf_));
}
