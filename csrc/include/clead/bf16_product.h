// C (+)= A B in bfloat16 with float32 sums, for *.bf16.cpp only. A[i][k] is at a[i * a_step + k]; B[k][j] at
// b[j / 32 * b_panel + k / 2 * b_step + j % 32 * 2 + k % 2]. Rows, columns and depth are rounded up to 32: operands must be
// readable, zero in the padding of the depth, and C writable there.
#pragma once

#include "clead/lanes.h"

namespace clead {
namespace {

struct Operands16 {
  const uint16_t* a;
  int64_t a_step;
  const uint16_t* b;
  int64_t b_step, b_panel;
  float* c;
  int64_t c_step;
};

CLEAD_INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

#if defined(__AMX_BF16__)

// Tiles of 16 rows of 64 bytes.
struct TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The calling thread's tile registers, while it lives.
struct Products {
  Products() {
    const TileConfig config;
    _tile_loadconfig(&config);
  }
  ~Products() { _tile_release(); }
};

void product(const Operands16& x, int64_t rows, int64_t columns, int64_t depth, bool add) {
  const int64_t c_bytes = x.c_step * 4, a_bytes = x.a_step * 2, b_bytes = x.b_step * 2;
  for (int64_t j = 0; j < columns; j += 32) {
    const uint16_t* const right = x.b + j / 32 * x.b_panel;
    for (int64_t i = 0; i < rows; i += 32) {
      float* const c = x.c + i * x.c_step + j;
      if (add) {
        _tile_loadd(0, c, c_bytes);
        _tile_loadd(1, c + 16, c_bytes);
        _tile_loadd(2, c + 16 * x.c_step, c_bytes);
        _tile_loadd(3, c + 16 * x.c_step + 16, c_bytes);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      const uint16_t* const a = x.a + i * x.a_step;
      for (int64_t k = 0; k < depth; k += 32) {
        const uint16_t* const b = right + k / 2 * x.b_step;
        _tile_loadd(4, a + k, a_bytes);
        _tile_loadd(5, a + 16 * x.a_step + k, a_bytes);
        _tile_loadd(6, b, b_bytes);
        _tile_loadd(7, b + 32, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, c, c_bytes);
      _tile_stored(1, c + 16, c_bytes);
      _tile_stored(2, c + 16 * x.c_step, c_bytes);
      _tile_stored(3, c + 16 * x.c_step + 16, c_bytes);
    }
  }
}

#else

struct Products {
  ~Products() {}
};

// Height rows of one panel.
template <int Height>
CLEAD_INLINE void panel_rows(const Operands16& x, int64_t i, const uint16_t* right, float* c, int64_t depth, bool add) {
  const uint16_t* a = x.a + i * x.a_step;
  __m512 sum[Height][2] = {};
  for (int64_t k = 0; k < depth; k += 2, right += x.b_step) {
    const __m512bh low = (__m512bh)_mm512_loadu_si512(right), high = (__m512bh)_mm512_loadu_si512(right + 32);
#pragma GCC unroll 12
    for (int r = 0; r < Height; ++r) {
      int32_t pair;
      memcpy(&pair, a + r * x.a_step + k, sizeof pair);
      const __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], left, low);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], left, high);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Height; ++r) {
    float* const out = c + r * x.c_step;
    if (add) {
      sum[r][0] += _mm512_loadu_ps(out);
      sum[r][1] += _mm512_loadu_ps(out + 16);
    }
    _mm512_storeu_ps(out, sum[r][0]);
    _mm512_storeu_ps(out + 16, sum[r][1]);
  }
}

void product(const Operands16& x, int64_t rows, int64_t columns, int64_t depth, bool add) {
  for (int64_t j = 0; j < columns; j += 32) {
    const uint16_t* const right = x.b + j / 32 * x.b_panel;
    int64_t i = 0;
    for (; i + 12 <= rows; i += 12) panel_rows<12>(x, i, right, x.c + i * x.c_step + j, depth, add);
    for (; i < rows; i += 4) panel_rows<4>(x, i, right, x.c + i * x.c_step + j, depth, add);
  }
}

#endif

}  // namespace
}  // namespace clead
