#include "clead/perturb_momentum.h"

#include "clead/rows.h"
#include "parallel.h"
#include "torch_operands.h"

namespace clead {
namespace {

constexpr int64_t kGrain = 16384;  // elements a thread is worth waking for

template <class T>
void launch(const Tensor& buffer, const Tensor& grad, double momentum) {
  const auto sizes = sizes_of(buffer);
  const Rows<T> sums(mutable_data<T>(buffer), sizes, strides_against(buffer, sizes, "buffer"));
  const Rows<const T> grads(const_data<T>(grad), sizes, strides_against(grad, sizes, "grad"));
  const int64_t size = sums.size();
  isa();  // may throw, which must not happen on a worker thread
  parallel_for(sizes[0], std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    std::vector<T> sum(sums.buffer_size(size)), gradient(grads.buffer_size(size));
    for (int64_t row = begin; row < end; ++row) {
      const MomentumRow<T> r{sums.read(row, 0, size, sum.data()), grads.read(row, 0, size, gradient.data()), size,
                             momentum};
      CLEAD_ISA_CALL(accumulate(r));
      sums.write(row, 0, size, r.buffer);
    }
  });
}

void momentum_(Tensor buffer, Tensor grad, double momentum) {
  STD_TORCH_CHECK(buffer.scalar_type() == grad.scalar_type(), "buffer and grad must have one dtype");
  check_written(buffer, "buffer", {&grad});
  if (buffer.numel() == 0) return;
  for_pixels(buffer.scalar_type(), "momentum_", [&]<class T>() { launch<T>(buffer, grad, momentum); });
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) { m.impl("momentum_", TORCH_BOX(&clead::momentum_)); }
