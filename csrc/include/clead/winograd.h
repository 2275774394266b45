// 3x3 convolutions of stride 1 with a border of zeros by Winograd's F(4x4, 3x3): a tile of 6x6 values and the kernel are
// taken to 36 points, where the sum over channels is a matrix product with a quarter of the multiplications. Torch-free.
//
// The points are 0, +-3/4, +-3/2 and infinity: with them float32 loses about twice what a direct sum does, with the usual
// 0, +-1, +-2 four times.
#pragma once

#include <algorithm>
#include <cstdint>

#include "clead/isa.h"

namespace clead {

constexpr int64_t kPoints = 36;      // of a tile
constexpr int64_t kTileBlock = 96;   // tiles of a job: a multiple of all register tiles' rows
constexpr int64_t kColumnBlock = 64;  // output channels whose sums are held at once

// Images [N, H, W, channels] in memory, channels innermost, cut into tiles of 4x4; tiles count down the batch.
template <class T>
struct Tiled {
  T* data;
  int64_t channels, height, width, image_step, row_step, column_step;

  int64_t across() const { return (width + 3) / 4; }
  int64_t per_image() const { return (height + 3) / 4 * across(); }
};

// A kernel [out, in, 3, 3] anywhere in memory; with negative steps it is turned round.
template <class T>
struct Kernel {
  T* data;
  int64_t out, in, out_step, in_step, row_step, column_step;
};

constexpr int64_t winograd_padded(int64_t channels) {
  return (channels + kColumnBlock - 1) / kColumnBlock * kColumnBlock;
}

#define CLEAD_DECLARE_OF(T)                                                                                            \
  /* Output channels [begin, end) of the kernel, begin a multiple of kColumnBlock, at the points. */                  \
  void winograd_pack(const Kernel<const T>& kernel, int64_t begin, int64_t end, T* packed);                            \
  /* The kernel's gradient for the input channels [begin, end) from that at the points, [36, rows, padded out]. */     \
  void winograd_unpack(const T* sums, int64_t rows, const Kernel<T>& gradient, int64_t begin, int64_t end);            \
  /* The tiles [first, first + count) of x at the points: [36, rows, channels]. */                                     \
  void winograd_values(const Tiled<const T>& x, int64_t first, int64_t count, T* values, int64_t rows);                \
  /* The same of what stands behind the sums over channels: the gradient by the sums from that by out. */              \
  void winograd_gradients(const Tiled<const T>& grad, int64_t first, int64_t count, T* values, int64_t rows,           \
                          int64_t padded);                                                                             \
  /* out's channels [begin, end) of those tiles; sums is room for [36, rows, kColumnBlock]. */                         \
  void winograd_multiply(const T* values, int64_t rows, int64_t in, const T* packed, const T* bias, int64_t begin,     \
                         int64_t end, T* sums, const Tiled<T>& out, int64_t first, int64_t count);                     \
  /* sums [in, padded] (+)= values [count, in]^T gradients [count, padded], all of one point. */                       \
  void winograd_correlate(const T* values, int64_t in, const T* gradients, int64_t padded, int64_t count, T* sums,     \
                          bool add);
#define CLEAD_DECLARE(isa)  \
  namespace isa {           \
  CLEAD_DECLARE_OF(float)   \
  CLEAD_DECLARE_OF(double)  \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE
#undef CLEAD_DECLARE_OF

}  // namespace clead
