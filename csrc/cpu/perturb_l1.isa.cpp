#include "clead/perturb_l1.h"

#include <algorithm>

#include "clead/pieces.h"
#include "clead/vector.h"

namespace clead::CLEAD_ISA {
namespace {

inline uint32_t magnitude(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits & 0x7FFFFFFFu;
}

inline uint64_t magnitude(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits & 0x7FFFFFFFFFFFFFFFu;
}

// The wanted-th largest of size keys, which have no top bit: by their next 12 bits, then among those that share them.
template <class Key>
Key nth_largest(const Key* keys, int64_t size, int64_t wanted, Key* candidates) {
  constexpr int kShift = 8 * sizeof(Key) - 13, kBins = 4096;
  int32_t bins[kBins] = {};
  for (int64_t i = 0; i < size; ++i) ++bins[keys[i] >> kShift];
  Key bin = kBins - 1;
  for (; bins[bin] < wanted; --bin) wanted -= bins[bin];
  Key* end = candidates;
  for (int64_t i = 0; i < size; ++i) {
    *end = keys[i];
    end += keys[i] >> kShift == bin;
  }
  Key* const nth = candidates + (wanted - 1);
  std::nth_element(candidates, nth, end, [](Key a, Key b) { return a > b; });
  return *nth;
}

// x_adv, moved along the chosen coordinates.
template <class T>
void move(const L1Row<T>& r) {
  const int64_t pieces = (r.size + kPiece - 1) / kPiece;
  for (int64_t k = 0; k < pieces; ++k) {
    const Piece<T> x_adv(r.x_adv, k, r.size), grad(r.grad, k, r.size);
    Magnitude<T>* const keys = r.keys + k * kPiece;
    for (int i = 0; i < kPiece; ++i) {
      const Wide<T> g = grad.at[i];
      const double start = x_adv.at[i];
      const bool up = r.down ? g < 0 : g > 0, back = r.down ? g > 0 : g < 0;
      keys[i] = (up & (start < r.high)) | (back & (start > r.low)) ? magnitude(g) : 0;
    }
  }
  const Magnitude<T> nth = nth_largest(r.keys, r.size, r.wanted, r.candidates), least = nth > 0 ? nth : 1;
  int64_t chosen = 0;
  for (int64_t i = 0; i < r.size; ++i) chosen += r.keys[i] >= least;
  const double share = r.step / static_cast<double>(chosen > 0 ? chosen : 1), length = r.down ? -share : share;
  for (int64_t k = 0; k < pieces; ++k) {
    const Piece<T> x_adv(r.x_adv, k, r.size), grad(r.grad, k, r.size);
    const Magnitude<T>* const keys = r.keys + k * kPiece;
    double* const moved = r.moved + k * kPiece;
    for (int i = 0; i < kPiece; ++i)
      moved[i] = x_adv.at[i] + (keys[i] >= least ? (grad.at[i] < 0 ? -length : length) : 0.0);
  }
}

inline F64 absolute(F64 value) { return (F64)((I64)value & INT64_MAX); }

// ⌈value⌉ for values in [0, 2^52].
inline I64 ceil_integer(F64 value) {
  const F64 shifted = value + 0x1p52;
  return (I64)shifted - (I64)(F64{} + 0x1p52) - (I64)(shifted - 0x1p52 < value);
}

inline I64 positive(I64 value) { return value & ~(value >> 63); }

inline int64_t add_lanes(I64 lanes) {
  int64_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += lanes[i];
  return total;
}

L1Sums sums(const int64_t* outer, const int64_t* inner, int64_t padded, int64_t shrinkage) {
  I64 at{}, slope{};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const I64 o = load<I64>(outer + i) - shrinkage, n = load<I64>(inner + i) - shrinkage;
    at += positive(o) - positive(n);
    slope += (o >> 63) - (n >> 63);
  }
  const int64_t total = add_lanes(at);
  return {total, total + add_lanes(slope)};
}

// How far every distance shrinks; NaN if one is not finite.
template <class T>
double shrinkage(const L1Row<T>& r) {
  const int64_t pieces = (r.size + kPiece - 1) / kPiece, padded = pieces * kPiece;
  F64 lanes{};
  I64 bad{};
  for (int64_t k = 0; k < pieces; ++k) {
    const Piece<T> x(r.x, k, r.size);
    for (int i = 0; i < kPiece; i += kLanes) {
      const F64 distance = absolute(load<F64>(r.moved + k * kPiece + i) - load_f64(x.at + i));
      bad |= ~(I64)(distance <= 0x1.fffffffffffffp1023);
      lanes = distance > lanes ? distance : lanes;
    }
  }
  double largest = 0.0;
  for (int i = 0; i < kLanes; ++i) {
    if (bad[i] != 0) return NAN;
    largest = lanes[i] > largest ? lanes[i] : largest;
  }
  if (largest == 0.0) return 0.0;
  int exponent;
  const double power = largest / (2.0 * frexp(largest, &exponent)), scale = ldexp(1.0, l1_bits(r.size) - 1);
  for (int64_t k = 0; k < pieces; ++k) {
    const Piece<T> x(r.x, k, r.size);
    for (int i = 0; i < kPiece; i += kLanes) {
      const F64 centre = load_f64(x.at + i), delta = load<F64>(r.moved + k * kPiece + i) - centre;
      const F64 distance = absolute(delta), space = delta < 0.0 ? centre - r.low : r.high - centre;
      const F64 room = at_least(space, 0.0), part = room < distance ? room : distance;
      const I64 outer = ceil_integer(distance / power * scale);
      store(r.outer + k * kPiece + i, outer);
      store(r.inner + k * kPiece + i, outer - ceil_integer(part / power * scale));
    }
  }
  const double budget = r.eps / power * scale;
  const int64_t units = l1_shrinkage(
      l1_units(budget),
      static_cast<int64_t>(ceil(largest / power * scale)),
      [&](int64_t length) { return sums(r.outer, r.inner, padded, length); });
  return static_cast<double>(units) / scale * power;
}

template <class T>
void run(const L1Row<T>& r) {
  const int64_t pieces = (r.size + kPiece - 1) / kPiece;
  if (r.grad != nullptr) {
    move(r);
  } else {
    for (int64_t k = 0; k < pieces; ++k) {
      const Piece<T> x_adv(r.x_adv, k, r.size);
      for (int i = 0; i < kPiece; ++i) r.moved[k * kPiece + i] = x_adv.at[i];
    }
  }
  // Beyond the sample, moved is where x is: at 0.
  for (int64_t i = r.size; i < pieces * kPiece; ++i) r.moved[i] = 0.0;
  const double length = shrinkage(r), low = r.low, high = r.high;
  for (int64_t k = 0; k < pieces; ++k) {
    const Piece<T> x(r.x, k, r.size);
    const PieceOut<T> out(r.x_adv, k, r.size);
    for (int i = 0; i < kPiece; i += kLanes) {
      const F64 centre = load_f64(x.at + i), moved = load<F64>(r.moved + k * kPiece + i), delta = moved - centre;
      const F64 shrunk = at_least(absolute(delta) - length, 0.0);
      const F64 nearest = length == 0.0 ? moved : centre + (delta < 0.0 ? -shrunk : shrunk);
      store_towards(at_most(at_least(nearest, low), high), centre, out.at + i);
    }
    out.finish(r.x + k * kPiece);
  }
}

}  // namespace

void pgd_step_l1(const L1Row<double>& r) { run(r); }
void pgd_step_l1(const L1Row<float>& r) { run(r); }
void pgd_step_l1(const L1Row<Bf16>& r) { run(r); }
void pgd_step_l1(const L1Row<Half>& r) { run(r); }

}  // namespace clead::CLEAD_ISA
