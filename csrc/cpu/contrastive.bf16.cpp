#include "clead/contrastive_bf16.h"

#include <algorithm>
#include <cmath>

#include "clead/bf16_product.h"
#include "clead/contrastive_tile.h"

namespace clead::CLEAD_ISA {
namespace {

using Tile16 = Tile<float>;

typedef uint16_t Shorts __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(64)));

// Rounded to nearest even.
CLEAD_INLINE __m256i narrow16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

void dots(const Contrast<float>& p, const Contrast16& q, const Tile16& t, float* strip) {
  const int64_t depth = q.a.depth;
  product({q.a.rows + t.i0 * depth, depth, q.b.across + t.j0 * depth, 2 * kPanel16, depth * kPanel16, strip, p.block},
          t.rows, t.columns, depth, false);
  for (int64_t r = 0; r < t.rows; ++r) {
    const __m512 scale = _mm512_set1_ps(q.a.scale[t.i0 + r]);
    for (int64_t c = 0; c < t.columns; c += 16) {
      float* const at = strip + r * p.block + c;
      store(at, load(at) * (scale * load(q.b.scale + t.j0 + c)));
    }
  }
}

// The strip with the columns' scale, rows as they are, into half: [strip, block]. The columns are padded with zeros.
void narrow_rows(const Contrast<float>& p, const Contrast16& q, const Tile16& t, const float* strip, uint16_t* half) {
  const int64_t columns = round_up(t.columns, 32), rows = round_up(t.rows, 32);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; c += 16) {
      __m512 x = _mm512_setzero_ps();
      if (r < t.rows && c < t.columns) x = load(strip + r * p.block + c) * load(q.b.scale + t.j0 + c);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(half + r * p.block + c), narrow16(x));
    }
}

// The strip with the rows' scale, pairs of rows interleaved, into half: [strip / 2, block, 2].
void narrow_pairs(const Contrast<float>& p, const Contrast16& q, const Tile16& t, const float* strip, uint16_t* half) {
  const int64_t columns = round_up(t.columns, 32), rows = round_up(t.rows, 32);
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t c = 0; c < columns; c += 16) {
      Words pair[2];
      for (int part = 0; part < 2; ++part) {
        __m512 x = _mm512_setzero_ps();
        if (r + part < t.rows && c < t.columns)
          x = load(strip + (r + part) * p.block + c) * _mm512_set1_ps(q.a.scale[t.i0 + r + part]);
        pair[part] = __builtin_convertvector((Shorts)narrow16(x), Words);
      }
      _mm512_storeu_si512(half + (r / 2 * p.block + c) * 2, (__m512i)(pair[0] | pair[1] << 16));
    }
}

void accumulate(const Contrast<float>& p, const Contrast16& q, const Tile16& t, bool diagonal, const float* strip,
            uint16_t* half) {
  if (p.need_a) {
    narrow_rows(p, q, t, strip, half);
    product({half, p.block, q.b.along + t.j0 * kPanel16, 2 * kPanel16, q.b.padded * kPanel16,
             p.a->gradient_sum + t.i0 * p.ld, p.ld},
            t.rows, q.a.depth, round_up(t.columns, 32), true);
  }
  if (p.need_b && !diagonal) {
    narrow_pairs(p, q, t, strip, half);
    product({q.a.transposed + t.i0, q.a.padded, half, 2 * p.block, 2 * kPanel16, q.b.gradient_sum + t.j0, q.b.sum_step},
            q.a.depth, t.columns, round_up(t.rows, 32), true);
  }
}

// Rows [begin, end), multiples of the panel, of x.rows in the other layouts.
void pack(Rows16& x, int64_t begin, int64_t end, bool forward, bool as_row, bool as_column) {
  const int64_t depth = x.depth;
  if (forward)
    for (int64_t first = begin; first < end; first += kPanel16) {
      auto* const panel = reinterpret_cast<uint32_t*>(x.across + first * depth);
      for (int64_t c = 0; c < kPanel16; ++c) {
        const auto* const row = reinterpret_cast<const uint32_t*>(x.rows + (first + c) * depth);
        for (int64_t k = 0; k < depth / 2; ++k) panel[k * kPanel16 + c] = row[k];
      }
    }
  if (as_column)
    for (int64_t first = begin; first < end; first += 2) {
      const uint16_t* const even = x.rows + first * depth;
      for (int64_t panel = 0; panel < depth / kPanel16; ++panel) {
        auto* const to = reinterpret_cast<uint32_t*>(x.along + (panel * x.padded + first) * kPanel16);
        for (int64_t c = 0; c < kPanel16; ++c)
          to[c] = even[panel * kPanel16 + c] | static_cast<uint32_t>(even[depth + panel * kPanel16 + c]) << 16;
      }
    }
  if (as_row)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t i = begin; i < end; ++i) x.transposed[k * x.padded + i] = x.rows[i * depth + k];
}

}  // namespace

void bf16_load(const Bf16* x, int64_t stride, double inverse, bool normalize, Rows16& to, int64_t row, int64_t d) {
  const int exponent = std::isfinite(1 / inverse) ? std::ilogb(1 / inverse) : 0;
  const double unscale = std::ldexp(1.0, -exponent);
  uint16_t* const out = to.rows + row * to.depth;
  for (int64_t k = 0; k < d; ++k) {
    const float value = static_cast<float>(widen(x[k * stride]) * unscale);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    out[k] = static_cast<uint16_t>(bits >> 16);  // exact, but for numbers too small to matter
  }
  std::fill(out + d, out + to.depth, uint16_t(0));
  to.scale[row] = static_cast<float>(std::ldexp(normalize ? inverse : 1.0, exponent));
}

void bf16_pack(Rows16& x, int64_t begin, int64_t end, bool forward, bool as_row, bool as_column) {
  pack(x, begin, end, forward, as_row, as_column);
}

void bf16_forward(const Contrast<float>& p, const Contrast16& q, int64_t i, int64_t j, float* strip) {
  const Products products;
  forward_tile(p, i, j, strip, [&](const Tile16& t) { dots(p, q, t, strip); });
}

void bf16_spread(const Contrast<float>& p, const Contrast16& q, int64_t i, int64_t j, float* strip) {
  const Products products;
  spread_tile(p, i, j, strip, [&](const Tile16& t) { dots(p, q, t, strip); });
}

void bf16_own(const Contrast<float>& p, const Contrast16& q, int64_t i, int64_t j, float* strip) {
  const Products products;
  own_tile(p, i, j, strip, [&](const Tile16& t) { dots(p, q, t, strip); });
}

void bf16_search(const Contrast<float>& p, const Contrast16& q, int64_t i, int64_t j, float* strip,
                 const Search<float>& search) {
  const Products products;
  search_tile(p, i, j, strip, search, [&](const Tile16& t) { dots(p, q, t, strip); });
}

void bf16_backward(const Contrast<float>& p, const Contrast16& q, int64_t i, int64_t j, float* strip, uint16_t* half) {
  const Products products;
  const bool diagonal = p.symmetric && i == j;
  backward_tile(p, i, j, strip, [&](const Tile16& t) { dots(p, q, t, strip); },
                [&](const Tile16& t) { accumulate(p, q, t, diagonal, strip, half); });
}

}  // namespace clead::CLEAD_ISA
