// What surrounds the matrix products of similarity: unit rows, and the gradient through them.
#include "clead/buffer.h"
#include "clead/similarity_rows.h"
#include "parallel.h"
#include "torch_operands.h"

namespace clead {
namespace {

constexpr int64_t kGrain = 16384;  // elements a thread is worth waking for

template <class Body>
void for_rows(const Tensor& x, Body&& body) {
  isa(), const_data<void>(x);  // may throw, which must not happen on a worker thread
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, x.size(1)));
  parallel_for(x.size(0), grain, body);
}

template <class S>
const S* row_of(const Tensor& x, int64_t i) {
  return const_data<S>(x) + i * x.stride(0);
}

void check(const Tensor& x, const Tensor& wide, const char* name) {
  const auto working = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(x.dim() == 2, "x must be [rows, d]");
  STD_TORCH_CHECK(wide.dim() == 2 && wide.size(0) == x.size(0) && wide.size(1) == x.size(1) && wide.is_contiguous() &&
                      wide.scalar_type() == working,
                  name, " must be contiguous, of the working dtype, in the shape of x");
}

// rows = scale * x, or scale * x / max(|x|, tiny).
void rows_(Tensor x, double scale, bool normalize, Tensor rows) {
  check(x, rows, "rows");
  if (rows.numel() == 0) return;
  const int64_t d = x.size(1);
  for_pixels(x.scalar_type(), "similarity", [&]<class S>() {
    auto* const to = mutable_data<Wide<S>>(rows);
    for_rows(x, [&](int64_t begin, int64_t end) {
      Norm norm;
      for (int64_t i = begin; i < end; ++i)
        CLEAD_ISA_CALL(unit_row(row_of<S>(x, i), x.stride(1), d, normalize, scale, to + i * d, norm));
    });
  });
}

// The gradient by x from that by its rows of scale 1, times scale; radial = <scale * grad_rows, rows>.
void rows_backward_(Tensor grad_rows, Tensor x, double scale, bool normalize, Tensor grad, Tensor radial) {
  check(x, grad_rows, "grad_rows");
  check(x, grad, "grad");
  STD_TORCH_CHECK(radial.scalar_type() == ScalarType::Double && radial.is_contiguous() && radial.numel() == x.size(0),
                  "radial must be float64 [rows]");
  const int64_t d = x.size(1);
  double* const inner = mutable_data<double>(radial);
  for_pixels(x.scalar_type(), "similarity", [&]<class S>() {
    using T = Wide<S>;
    const T* const from = const_data<T>(grad_rows);
    T* const to = mutable_data<T>(grad);
    for_rows(x, [&](int64_t begin, int64_t end) {
      const Buffer<T> unit(d);
      Norm norm;
      for (int64_t i = begin; i < end; ++i) {
        CLEAD_ISA_CALL(unit_row(row_of<S>(x, i), x.stride(1), d, normalize, 1.0, unit.data(), norm));
        CLEAD_ISA_CALL(unit_row_backward(from + i * d, unit.data(), d, normalize, scale, norm, to + i * d, inner[i]));
      }
    });
  });
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) {
  m.impl("similarity_rows_", TORCH_BOX(&clead::rows_));
  m.impl("similarity_rows_backward_", TORCH_BOX(&clead::rows_backward_));
}
