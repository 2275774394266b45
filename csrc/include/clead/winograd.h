// 3x3 convolutions of stride 1 with a border of zeros by Winograd's F(4x4, 3x3): a tile of 6x6 values and the kernel
// are taken to 36 points, where the sum over channels is a matrix product with a quarter of the multiplications.
// Torch-free.
//
// The points are 0, +-3/4, +-3/2 and infinity: float32 loses half of what it does with the usual 0, +-1, +-2.
#pragma once

#include <algorithm>
#include <cstdint>

#include "clead/isa.h"

namespace clead {

constexpr int64_t kPoints = 36;       // of a tile
constexpr int64_t kColumnBlock = 64;  // output channels whose sums are held at once
constexpr int64_t kRowPanel = 48;     // gradients side by side: a multiple of all register tiles' rows

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

// From a number at one point to that at the next: never a power of two, which would put all points of a tile into the
// same few places of a cache.
constexpr int64_t winograd_plane(int64_t rows, int64_t columns) { return rows * columns + 16; }

// Channels of a kernel, kPartRows x kColumnBlock of them at most.
struct Part {
  int64_t out, out_end, in, in_end;
};
constexpr int64_t kPartRows = 2 * kRowPanel, kSumsPlane = winograd_plane(kPartRows, kColumnBlock);

#define CLEAD_DECLARE_OF(T)                                                                                            \
  /* Output channels [begin, end) of the kernel, begin a multiple of kColumnBlock, at the points. */                  \
  void winograd_pack(const Kernel<const T>& kernel, int64_t begin, int64_t end, T* packed);                            \
  /* The tiles [first, first + count) of x at the points: [36, channels / panel, rows, panel], a plane per point. */   \
  void winograd_values(const Tiled<const T>& x, int64_t first, int64_t count, T* values, int64_t rows, int64_t panel); \
  /* The same of what stands behind the sums over channels, in panels of kRowPanel: the gradient by the sums. */       \
  void winograd_gradients(const Tiled<const T>& grad, int64_t first, int64_t count, T* gradients, int64_t rows);       \
  /* out's channels [begin, end) of those tiles; sums is room for 36 planes of [rows, kColumnBlock]. */                \
  void winograd_multiply(const T* values, int64_t rows, int64_t in, const T* packed, const T* bias, int64_t begin,     \
                         int64_t end, T* sums, const Tiled<T>& out, int64_t first, int64_t count);                     \
  /* sums, 36 planes of [kPartRows, kColumnBlock], (+)= gradients^T values over count tiles, values in panels. */      \
  void winograd_correlate(const T* gradients, int64_t out, const T* values, int64_t in, int64_t rows, int64_t count,   \
                          const Part& part, T* sums, bool add);                                                        \
  /* The part's gradient by the kernel from those sums, added up over groups that lie step apart. */                   \
  void winograd_unpack(const T* sums, int64_t groups, int64_t step, const Part& part, const Kernel<T>& gradient);      \
  /* Values side by side in winograd_correlate. */                                                                     \
  void winograd_panel(T, int64_t* panel);
#define CLEAD_DECLARE(isa)  \
  namespace isa {           \
  CLEAD_DECLARE_OF(float)   \
  CLEAD_DECLARE_OF(double)  \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE
#undef CLEAD_DECLARE_OF

}  // namespace clead
