#include "clead/perturb_linf.h"

namespace clead::CLEAD_ISA {
namespace {

template <class T, class Wide>
inline void element(T* x_adv, const T* grad, const T* x, Wide eps, Wide step, Wide low, Wide high) {
  const Wide centre = widen(*x);
  narrow(linf_step<Wide>(widen(*x_adv), widen(*grad), centre, eps, step, low, high), centre, *x_adv);
}

template <class T, class Wide>
void run(const LinfRun<T, Wide>& r) {
  const bool dense = r.x_adv_stride == 1 && r.grad_stride == 1 && r.x_stride == 1;
  if (dense && r.eps_stride == 0 && r.step_stride == 0) {
    T* __restrict x_adv = r.x_adv;
    const T* __restrict grad = r.grad;
    const T* __restrict x = r.x;
    const Wide eps = *r.eps, step = r.sign * *r.step, low = r.low, high = r.high;
    for (int64_t i = 0; i < r.size; ++i) element(x_adv + i, grad + i, x + i, eps, step, low, high);
  } else {
    for (int64_t i = 0; i < r.size; ++i)
      element(r.x_adv + i * r.x_adv_stride, r.grad + i * r.grad_stride, r.x + i * r.x_stride, r.eps[i * r.eps_stride],
              r.sign * r.step[i * r.step_stride], r.low, r.high);
  }
}

}  // namespace

void pgd_step_linf(const LinfRun<double, double>& r) { run(r); }
void pgd_step_linf(const LinfRun<float, float>& r) { run(r); }
void pgd_step_linf(const LinfRun<Bf16, float>& r) { run(r); }
void pgd_step_linf(const LinfRun<Half, float>& r) { run(r); }

}  // namespace clead::CLEAD_ISA
