// bfloat16 inputs on hardware that multiplies pairs of them: operands, and the tile kernels of contrastive.h on them.
//
// Rows are multiplied as they came, but for a power of two, so nothing is rounded twice; what remains of their scale is
// applied to dot products and gradients in float32. Products sum over pairs of k, so operands interleave pairs.
#pragma once

#include "clead/contrastive.h"

namespace clead {

constexpr int64_t kPanel16 = 32;  // columns of a panel; what products round columns, rows and depths up to

struct Rows16 {
  int64_t depth;         // d, padded
  int64_t padded;        // rows, padded
  float* scale;          // [padded]: the rows the loss multiplies are scale times those below
  uint16_t* rows;        // [padded, depth]
  uint16_t* across;      // [padded / panel, depth / 2, panel, 2]
  uint16_t* along;       // [depth / panel, padded / 2, panel, 2]
  uint16_t* transposed;  // [depth, padded]
  float* gradient_sum;   // [depth, sum_step], transposed: of this side seen as columns
  int64_t sum_step;
};

struct Contrast16 {
  Rows16 a, b;  // a: rows, transposed; b: across, along, gradient_sum
};

#define CLEAD_DECLARE_16(isa)                                                                                        \
  namespace isa {                                                                                                    \
  void bf16_load(const Bf16* x, int64_t stride, double inverse, bool normalize, Rows16& to, int64_t row, int64_t d); \
  void bf16_pack(Rows16&, int64_t begin, int64_t end, bool forward, bool as_row, bool as_column);                    \
  void bf16_forward(const Contrast<float>&, const Contrast16&, int64_t i, int64_t j, float* strip);                  \
  void bf16_backward(const Contrast<float>&, const Contrast16&, int64_t i, int64_t j, float* strip, uint16_t* half); \
  void bf16_spread(const Contrast<float>&, const Contrast16&, int64_t i, int64_t j, float* strip);                   \
  void bf16_own(const Contrast<float>&, const Contrast16&, int64_t i, int64_t j, float* strip);                      \
  void bf16_search(const Contrast<float>&, const Contrast16&, int64_t i, int64_t j, float* strip,                    \
                   const Search<float>&);                                                                            \
  }
#if defined(__x86_64__) || defined(_M_X64)
CLEAD_DECLARE_16(avx512_bf16)
CLEAD_DECLARE_16(amx)
#endif
#undef CLEAD_DECLARE_16

}  // namespace clead

// Calls namespace::call for the products in use, from inside namespace clead.
#if defined(__x86_64__) || defined(_M_X64)
#define CLEAD_BF16_CALL(call)                               \
  switch (::clead::products16()) {                          \
    case ::clead::Products16::amx: amx::call; break;        \
    case ::clead::Products16::avx512_bf16: avx512_bf16::call; break; \
    default: break;                                         \
  }
#else
#define CLEAD_BF16_CALL(call)
#endif
