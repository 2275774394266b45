#include "clead/perturb_l1.h"

#include <cmath>

#include "clean_rows.h"
#include "parallel.h"
#include "torch_operands.h"

namespace clead {
namespace {

constexpr int64_t kGrain = 4096;  // elements a thread is worth waking for
constexpr int64_t kPadding = 128;

// What one thread needs for a sample at a time.
template <class T>
struct Scratch {
  explicit Scratch(int64_t size, bool moves)
      : moved((size + kPadding - 1) / kPadding * kPadding),
        outer(moved.size()),
        inner(moved.size()),
        keys(moves ? moved.size() : 0),
        candidates(moves ? moved.size() + 1 : 0) {}

  std::vector<double> moved;
  std::vector<int64_t> outer, inner;
  std::vector<Magnitude<T>> keys, candidates;
};

// The coordinates that move, at least: ⌊part · size + ½⌋ of them, in [1, size].
int64_t wanted(double part, int64_t size) {
  const double count = std::floor(part * static_cast<double>(size) + 0.5);
  if (!(count > 1)) return 1;
  return count < static_cast<double>(size) ? static_cast<int64_t>(count) : size;
}

template <class T>
void launch(const Tensor& x_adv, const Tensor* grad, const Tensor& x, const PerSample& eps, const PerSample& step,
            const PerSample& sparsity, double low, double high, bool targeted) {
  const auto sizes = sizes_of(x_adv);
  const Tensor& along = grad != nullptr ? *grad : x_adv;
  const Rows<T> images(mutable_data<T>(x_adv), sizes, strides_against(x_adv, sizes, "x_adv"));
  const Rows<const T> ascent(const_data<T>(along), sizes,
                             strides_against(along, sizes, "grad"));
  const CleanRows<T> centres(x, sizes);
  const int64_t size = images.size();
  isa();  // may throw, which must not happen on a worker thread
  parallel_for(sizes[0], std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    std::vector<T> image(images.buffer_size(size)), gradient(ascent.buffer_size(size)),
        centre(centres.buffer_size(size));
    Scratch<T> scratch(size, grad != nullptr);
    for (int64_t row = begin; row < end; ++row) {
      L1Row<T> r{};
      r.x_adv = images.read(row, 0, size, image.data());
      r.grad = grad == nullptr ? nullptr : ascent.read(row, 0, size, gradient.data());
      r.x = centres.read(row, 0, size, centre.data());
      r.moved = scratch.moved.data(), r.outer = scratch.outer.data(), r.inner = scratch.inner.data();
      r.keys = scratch.keys.data(), r.candidates = scratch.candidates.data();
      r.size = size, r.wanted = wanted(sparsity.at(row), size);
      r.eps = eps.at(row), r.step = step.at(row), r.down = targeted;
      r.low = low, r.high = high;
      CLEAD_ISA_CALL(pgd_step_l1(r));
      images.write(row, 0, size, r.x_adv);
    }
  });
}

void pgd_step_l1_(Tensor x_adv, Tensor grad, Tensor x, double eps, double step_size, double sparsity,
                  std::optional<Tensor> eps_tensor, std::optional<Tensor> step_tensor,
                  std::optional<Tensor> sparsity_tensor, double low, double high, bool targeted) {
  const auto dtype = x_adv.scalar_type();
  STD_TORCH_CHECK(grad.scalar_type() == dtype, "x_adv and grad must have one dtype");
  are_bytes(x, dtype);
  check_written(x_adv, "x_adv", {&grad, &x});
  if (x_adv.numel() == 0) return;
  const PerSample radius(eps_tensor, eps, x_adv, "eps"), length(step_tensor, step_size, x_adv, "step_size"),
      part(sparsity_tensor, sparsity, x_adv, "l1_sparsity");
  for_pixels(dtype, "pgd_step_l1_",
             [&]<class T>() { launch<T>(x_adv, &grad, x, radius, length, part, low, high, targeted); });
}

void project_l1_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, double low, double high) {
  const auto dtype = x_adv.scalar_type();
  are_bytes(x, dtype);
  check_written(x_adv, "x_adv", {&x});
  if (x_adv.numel() == 0) return;
  const PerSample radius(eps_tensor, eps, x_adv, "eps"), none(std::nullopt, 0.0, x_adv, "step_size");
  for_pixels(dtype, "project_l1_",
             [&]<class T>() { launch<T>(x_adv, nullptr, x, radius, none, none, low, high, false); });
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) {
  m.impl("pgd_step_l1_", TORCH_BOX(&clead::pgd_step_l1_));
  m.impl("project_l1_", TORCH_BOX(&clead::project_l1_));
}
