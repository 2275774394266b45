#include "clead/perturb_l2.h"

#include "clead/ordered_sum.h"
#include "clead/pieces.h"
#include "clead/vector.h"

namespace clead::CLEAD_ISA {
namespace {

// What a row does before it is projected. A power of two keeps the squares of a gradient from over- and underflowing;
// outside of float64 they are safe without, and then it changes no bit.
enum class Move { none, step, scaled_step };

double largest(const double* grad, int64_t size) {
  F64 lanes{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const F64 magnitude = (F64)(load<I64>(grad + i) & INT64_MAX);
    lanes = magnitude > lanes ? magnitude : lanes;
  }
  double most = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) most = lanes[lane] > most ? lanes[lane] : most;
  for (; i < size; ++i) most = fabs(grad[i]) > most ? fabs(grad[i]) : most;
  return most;
}

constexpr int64_t kAhead = 64 * 1024;  // bytes of a row that the caches hold beside the next one

// The piece that starts here is needed soon: most likely the next row's. The address need not exist.
template <class T>
inline void fetch(const T* piece) {
  for (size_t i = 0; i < kPiece * sizeof(T); i += 64) __builtin_prefetch(reinterpret_cast<const char*>(piece) + i);
}

// power: a finite gradient's largest element lies in [power, 2 · power).
template <class T, Move kMove>
void run(const L2Row<T>& r, double power = 1.0) {
  const int64_t pieces = (r.size + kPiece - 1) / kPiece;
  const auto scaled = [power](const Wide<T>* grad) {
    return kMove == Move::scaled_step ? load_f64(grad) / power : load_f64(grad);
  };
  double factor = 0.0;
  if constexpr (kMove != Move::none) {
    const double squares = ordered_sum(
        [&](int64_t k) {
          const Piece<T> grad(r.grad, k, r.size);
          return fold([&](int i) {
            const F64 g = scaled(grad.at + i);
            return g * g;
          });
        },
        0, pieces);
    // Zero, infinite or NaN, like the gradient: a finite one has finite squares here.
    if (!(squares > 0.0 && squares <= kHuge)) return run<T, Move::none>(r);
    factor = r.step / sqrt(squares);
  }
  const auto moved = [scaled, factor](const Wide<T>* x_adv, const Wide<T>* grad) {
    if constexpr (kMove != Move::none) return load_f64(x_adv) + scaled(grad) * factor;
    return load_f64(x_adv);
  };
  const T* const ascent = kMove != Move::none ? r.grad : r.x;
  const bool ahead = r.size * sizeof(T) <= kAhead;
  const double norm = sqrt(ordered_sum(
      [&](int64_t k) {
        if (ahead) fetch(ascent + r.size + k * kPiece);
        const Piece<T> x_adv(r.x_adv, k, r.size), grad(ascent, k, r.size), x(r.x, k, r.size);
        return fold([&](int i) {
          const F64 delta = moved(x_adv.at + i, grad.at + i) - load_f64(x.at + i);
          return delta * delta;
        });
      },
      0, pieces));
  const bool inside = norm <= r.eps;
  const double shrink = r.eps / norm, low = r.low, high = r.high;
  for (int64_t k = 0; k < pieces; ++k) {
    if (ahead) {
      const int64_t next = r.size + k * kPiece;
      fetch(r.x_adv + next), fetch(r.x + next);
    }
    const Piece<T> x_adv(r.x_adv, k, r.size), grad(ascent, k, r.size), x(r.x, k, r.size);
    const PieceOut<T> out(r.x_adv, k, r.size);
    const Wide<T>*const from = x_adv.at, *const along = grad.at, *const centres = x.at;
    Wide<T>* const to = out.at;
    for (int i = 0; i < kPiece; i += kLanes) {
      const F64 centre = load_f64(centres + i);
      F64 nearest = moved(from + i, along + i);
      if (!inside) nearest = centre + (nearest - centre) * shrink;
      store_towards(at_most(at_least(nearest, low), high), centre, to + i);
    }
    out.finish(r.x + k * kPiece);
  }
}

template <class T>
void step(const L2Row<T>& r) {
  if (r.grad == nullptr) return run<T, Move::none>(r);
  if constexpr (sizeof(T) == sizeof(double)) {
    const double most = largest(r.grad, r.size);
    if (most > 0.0 && most <= kHuge && !(most > 0x1p-300 && most < 0x1p300)) {
      int exponent;
      return run<T, Move::scaled_step>(r, most / (2.0 * frexp(most, &exponent)));
    }
  }
  run<T, Move::step>(r);
}

}  // namespace

void pgd_step_l2(const L2Row<double>& r) { step(r); }
void pgd_step_l2(const L2Row<float>& r) { step(r); }
void pgd_step_l2(const L2Row<Bf16>& r) { step(r); }
void pgd_step_l2(const L2Row<Half>& r) { step(r); }

}  // namespace clead::CLEAD_ISA
