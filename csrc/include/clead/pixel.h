// Image elements: widened for arithmetic, rounded towards x when stored. Torch-free; shared by CPU and CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define CLEAD_FN static __host__ __device__ __forceinline__
#else
#define CLEAD_FN static inline
#endif

namespace clead {

struct Bf16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

// What an element is widened to.
template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class T>
using Wide = typename WideOf<T>::type;

CLEAD_FN double widen(double value) { return value; }

CLEAD_FN float widen(float value) { return value; }

CLEAD_FN uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

CLEAD_FN float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// By mask, since compilers turn a choice between floating-point results into a branch, and then do not vectorise.
CLEAD_FN uint32_t choose(bool first, uint32_t a, uint32_t b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(first);
  return (a & mask) | (b & ~mask);
}

CLEAD_FN float widen(Bf16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

CLEAD_FN float widen(Half value) {
  const uint32_t magnitude = value.bits & 0x7FFFu, sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  // Below 2^-14 the bits are the mantissa above 2^-14; otherwise the exponent moves from bias 15 to 127, that of
  // infinity and NaN to 255.
  const uint32_t small = bits_of(float_of((magnitude << 13) + (113u << 23)) - 0x1p-14f);
  const uint32_t large = (magnitude << 13) + choose(magnitude < 0x7C00u, 112u << 23, 224u << 23);
  return float_of(choose(magnitude < 0x400u, small, large) | sign);
}

CLEAD_FN void narrow(double value, double, double& out) { out = value; }

CLEAD_FN void narrow(float value, float, float& out) { out = value; }

// Of the two neighbours of value, the one on the side of x, which is itself a T: so what lies between x and value
// stays between them.
CLEAD_FN void narrow(float value, float x, Bf16& out) {
  const uint32_t bits = bits_of(value);
  // Dropping the low bits rounds towards zero; x may lie on the other side.
  const bool grow = (value > x) == ((bits >> 31) != 0);
  const uint32_t rounded = (bits + (grow ? 0xFFFFu : 0u)) >> 16;
  out.bits = value != value ? static_cast<uint16_t>(0x7FC0) : static_cast<uint16_t>(rounded);
}

CLEAD_FN void narrow(float value, float x, Half& out) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFFu;
  const uint32_t grow = (value > x) == ((bits >> 31) != 0);
  // Below 2^-14 a multiple of 2^-24, which is what floats near ½ are; the nearest one may lie on the wrong side.
  const float size = float_of(magnitude), nearest = (size + 0.5f) - 0.5f;
  const uint32_t small = bits_of(size + 0.5f) - bits_of(0.5f) + (grow & static_cast<uint32_t>(nearest < size)) -
                         (~grow & static_cast<uint32_t>(nearest > size));
  // Above, 13 bits less of mantissa; beyond the largest half, that one or infinity.
  const uint32_t rebiased = magnitude - (112u << 23), most = magnitude == 0x7F800000u ? 0x0F800000u : 0x0F7FFFFFu;
  const uint32_t large = ((rebiased < most ? rebiased : most) + grow * 0x1FFFu) >> 13;
  const uint32_t rounded = choose(magnitude < (113u << 23), small, large) | (bits >> 31) << 15;
  out.bits = static_cast<uint16_t>(choose(value != value, 0x7E00u, rounded));
}

}  // namespace clead
