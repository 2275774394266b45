#include "clead/perturb_start.h"

#include "clead/perturb_linf.h"
#include "clead/philox.h"
#include "clead/pieces.h"
#include "clead/vector.h"

namespace clead::CLEAD_ISA {
namespace {

// At least `count` of the words from draw `first` on, a multiple of 4.
void draw(const Stream& s, int64_t first, int64_t count, uint32_t* words) {
  for (int64_t i = 0; i < count; i += 4 * kCounters)
    philox4x32(s.key, static_cast<uint64_t>((first + i) / 4), s.sample, s.view, s.step, words + i);
}

template <class T>
inline void element(uint32_t word, const T* x, Wide<T> eps, Wide<T> low, Wide<T> high, T* x_adv) {
  const Wide<T> centre = widen(*x);
  const Wide<T> delta = (static_cast<Wide<T>>(static_cast<int32_t>(word >> 8)) * Wide<T>(0x1p-23) - Wide<T>(1)) * eps;
  narrow(linf_project<Wide<T>>(centre + delta, centre, eps, low, high), centre, *x_adv);
}

template <class T>
void linf(const LinfStart<T>& s) {
  alignas(64) uint32_t words[kDraws];
  const Wide<T> low = s.low, high = s.high;
  for (int64_t done = 0; done < s.size; done += kDraws) {
    const int64_t count = s.size - done < kDraws ? s.size - done : kDraws;
    draw(s.stream, s.first + done, count, words);
    T* __restrict x_adv = s.x_adv + done;
    const T* __restrict x = s.x + done;
    const Wide<T>* eps = s.eps + done * s.eps_stride;
    if (s.eps_stride == 0) {
      const Wide<T> radius = *eps;
      for (int64_t i = 0; i < count; ++i) element(words[i], x + i, radius, low, high, x_adv + i);
    } else {
      for (int64_t i = 0; i < count; ++i) element(words[i], x + i, eps[i], low, high, x_adv + i);
    }
  }
}

constexpr double kShift = 0x1.8p52;  // added to a float64, it leaves the nearest integer in the low bits

inline F64 from_integer(I64 value) { return (F64)(value + (I64)(F64{} + kShift)) - kShift; }

// kLanes drawn numbers in float64; magnitudes below 2^51.
inline F64 number(const int32_t* from) { return load_f64(from); }
inline F64 number(const int64_t* from) { return from_integer(load<I64>(from)); }

// ⌊value⌋ of magnitudes below 2^51.
inline I64 floor_integer(F64 value) {
  const F64 shifted = value + kShift;
  return (I64)shifted - (I64)(F64{} + kShift) + (I64)(shifted - kShift > value);
}

template <int kTerms>
inline F64 horner(const double (&coefficients)[kTerms], F64 x) {
  F64 value = F64{} + coefficients[0];
  for (int i = 1; i < kTerms; ++i) value = value * x + coefficients[i];
  return value;
}

// ln(n · 2^-32) for integers n in [1, 2^32].
inline F64 log_fraction(F64 n) {
  const I64 bits = (I64)n;
  F64 mantissa = (F64)((bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000);
  const I64 small = mantissa < 0.70710678118654757;  // the float64 nearest √½
  mantissa = small ? 2.0 * mantissa : mantissa;
  const I64 exponent = (bits >> 52) - 1022 + small;
  const F64 s = (mantissa - 1.0) / (mantissa + 1.0);
  constexpr double kSeries[] = {1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1.0};
  return from_integer(exponent - 32) * 0.69314718055994529 + 2.0 * s * horner(kSeries, s * s);
}

// cos and sin of 2π · word · 2^-32.
inline void cos_sin(I64 word, F64& cos, F64& sin) {
  constexpr double kCos[] = {-1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320,
                             -1.0 / 720,         1.0 / 24,        -1.0 / 2,       1.0};
  constexpr double kSin[] = {1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880, -1.0 / 5040,
                             1.0 / 120,        -1.0 / 6,        1.0};
  const F64 angle = from_integer(word & 0x3FFFFFFF) * (1.5707963267948966 * 0x1p-30);
  const F64 square = angle * angle;
  const I64 c = (I64)horner(kCos, square), s = (I64)(angle * horner(kSin, square));
  // The quadrant: an odd one turns (cos, sin) into (-sin, cos), the upper two turn the signs.
  const I64 odd = ((word >> 30) & 1) != 0, flip = (word >> 31) << 63, minus = I64{} + INT64_MIN;
  cos = (F64)((odd ? s ^ minus : c) ^ flip);
  sin = (F64)((odd ? c : s) ^ flip);
}

// Normal numbers in units of 2^-16 from pairs of words.
inline void gaussian(const uint32_t* words, int32_t* z) {
  const I64 pairs = load<I64>(words), low = pairs & 0xFFFFFFFF;
  const F64 radius = square_root(-2.0 * log_fraction(from_integer(low + 1)));
  F64 cos, sin;
  cos_sin((I64)((U64)pairs >> 32), cos, sin);
  const I64 first = floor_integer(radius * cos * 65536.0 + 0.5), second = floor_integer(radius * sin * 65536.0 + 0.5);
  store(z, (first & 0xFFFFFFFF) | second << 32);
}

// Exponential numbers in units of 2^-32, signed by the lowest bit, in the order of the words.
inline I64 exponential(I64 words) {
  const I64 size = floor_integer(log_fraction(from_integer((words | 1) + 1)) * -0x1p32 + 0.5), sign = -(words & 1);
  return (size ^ sign) - sign;
}

inline void exponential(const uint32_t* words, int64_t* e) {
  const I64 pairs = load<I64>(words);
  const I64 even = exponential(pairs & 0xFFFFFFFF), odd = exponential((I64)((U64)pairs >> 32));
  store_interleaved(reinterpret_cast<uint64_t*>(e), (U64)even, (U64)odd);
}

// x + eps · number / length, clamped.
template <class S>
void place(const S& s, double length) {
  const double eps = s.eps, low = s.low, high = s.high;
  using T = std::remove_pointer_t<decltype(s.x_adv)>;
  for (int64_t k = 0; k * kPiece < s.size; ++k) {
    const Piece<T> x(s.x, k, s.size);
    const PieceOut<T> out(s.x_adv, k, s.size);
    const auto* const numbers = s.numbers + k * kPiece;
    for (int i = 0; i < kPiece; i += kLanes) {
      const F64 centre = load_f64(x.at + i);
      const F64 value = centre + eps * (number(numbers + i) / length);
      store_towards(at_most(at_least(value, low), high), centre, out.at + i);
    }
    out.finish(s.x + k * kPiece);
  }
}

template <class T>
void run(const L2Start<T>& s) {
  alignas(64) uint32_t words[kDraws];
  const int64_t count = s.size + 2;
  int64_t squares = 0;
  for (int64_t done = 0; done < count; done += kDraws) {
    const int64_t some = count - done < kDraws ? count - done : kDraws;
    draw(s.stream, done, some, words);
    int32_t* const z = s.numbers + done;
    for (int64_t i = 0; i < some; i += 2 * kLanes) gaussian(words + i, z + i);
    for (int64_t i = 0; i < some; ++i) squares += static_cast<int64_t>(z[i]) * z[i];
  }
  place(s, sqrt(static_cast<double>(squares < 1 ? 1 : squares)));
}

template <class T>
void run(const L1Start<T>& s) {
  alignas(64) uint32_t words[kDraws];
  const int64_t count = s.size + 1;
  int64_t total = 0;
  for (int64_t done = 0; done < count; done += kDraws) {
    const int64_t some = count - done < kDraws ? count - done : kDraws;
    draw(s.stream, done, some, words);
    int64_t* const e = s.numbers + done;
    for (int64_t i = 0; i < some; i += 2 * kLanes) exponential(words + i, e + i);
    for (int64_t i = 0; i < some; ++i) total += e[i] < 0 ? -e[i] : e[i];
  }
  place(s, static_cast<double>(total < 1 ? 1 : total));
}

}  // namespace

#define CLEAD_DEFINE(T)                                  \
  void random_start(const LinfStart<T>& s) { linf(s); } \
  void random_start(const L2Start<T>& s) { run(s); }    \
  void random_start(const L1Start<T>& s) { run(s); }
CLEAD_DEFINE(double)
CLEAD_DEFINE(float)
CLEAD_DEFINE(Bf16)
CLEAD_DEFINE(Half)

}  // namespace clead::CLEAD_ISA
