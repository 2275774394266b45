#include "clead/perturb_momentum.h"

#include "clead/ordered_sum.h"

namespace clead::CLEAD_ISA {
namespace {

template <class T>
void run(const MomentumRow<T>& r) {
  static constexpr T kZeros[kPiece] = {};  // what values are rounded towards
  const int64_t pieces = (r.size + kPiece - 1) / kPiece;
  const double length = ordered_sum(
      [&](int64_t k) {
        const Piece<T> grad(r.grad, k, r.size);
        return fold([&](int i) { return (F64)((I64)load_f64(grad.at + i) & INT64_MAX); });
      },
      0, pieces);
  const bool adds = length > 0.0 && length <= kHuge;
  for (int64_t k = 0; k < pieces; ++k) {
    const Piece<T> buffer(r.buffer, k, r.size), grad(r.grad, k, r.size);
    const PieceOut<T> out(r.buffer, k, r.size);
    for (int i = 0; i < kPiece; i += kLanes) {
      const F64 share = adds ? load_f64(grad.at + i) / length : F64{};
      store_towards(load_f64(buffer.at + i) * r.momentum + share, F64{}, out.at + i);
    }
    out.finish(kZeros);
  }
}

}  // namespace

void accumulate(const MomentumRow<double>& r) { run(r); }
void accumulate(const MomentumRow<float>& r) { run(r); }
void accumulate(const MomentumRow<Bf16>& r) { run(r); }
void accumulate(const MomentumRow<Half>& r) { run(r); }

}  // namespace clead::CLEAD_ISA
