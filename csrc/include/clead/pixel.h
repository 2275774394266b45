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

CLEAD_FN double widen(double value) { return value; }

CLEAD_FN float widen(float value) { return value; }

CLEAD_FN float widen(Bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

CLEAD_FN void narrow(double value, double, double& out) { out = value; }

CLEAD_FN void narrow(float value, float, float& out) { out = value; }

// Of the two neighbours of value, the one on the side of x, which is itself a bfloat16: so what lies between x and value
// stays between them.
CLEAD_FN void narrow(float value, float x, Bf16& out) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  // Dropping the low bits rounds towards zero; x may lie on the other side.
  const bool grow = (value > x) == ((bits >> 31) != 0);
  const uint32_t rounded = (bits + (grow ? 0xFFFFu : 0u)) >> 16;
  out.bits = value != value ? static_cast<uint16_t>(0x7FC0) : static_cast<uint16_t>(rounded);
}

}  // namespace clead
