#include <cmath>

#include "clead/bf16_product.h"
#include "clead/contrastive_bf16.h"
#include "clead/similarity_scan.h"

namespace clead::CLEAD_ISA {
namespace {

// 1 / max(norm, tiny) of a row, padded with zeros.
float inverse_norm(const uint16_t* row, int64_t depth) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k += 32) {
    const __m512bh x = (__m512bh)_mm512_loadu_si512(row + k);
    sum = _mm512_dpbf16_ps(sum, x, x);
  }
  double squares = static_cast<double>(total<float>(sum));
  if (!(squares > 1e-25 && squares < 1e37)) {  // the products take small numbers for 0, and large ones overflow
    squares = 0;
    for (int64_t k = 0; k < depth; ++k) {
      const double x = static_cast<double>(widen(Bf16{row[k]}));
      squares += x * x;
    }
  }
  const double norm = std::sqrt(squares);
  return static_cast<float>(1 / (norm < kTinyNorm ? kTinyNorm : norm));
}

// The strip's rows, dense and padded: where they lie, or copied.
const uint16_t* dense(const Queries16& queries, const Bank16& bank, uint16_t* rows) {
  if (bank.inner == 1 && queries.d == queries.depth && bank.count == kStrip && bank.step == queries.depth)
    return &bank.data->bits;
  for (int64_t r = 0; r < bank.count; ++r)
    for (int64_t k = 0; k < queries.d; ++k) rows[r * queries.depth + k] = bank.data[r * bank.step + k * bank.inner].bits;
  return rows;
}

}  // namespace

void topk_scan16(const Queries16& queries, const Bank16& bank, uint16_t* buffer, float* strip, Best<float>& best) {
  const Products products;
  const int64_t depth = queries.depth;
  const uint16_t* const rows = dense(queries, bank, buffer);
  product({rows, depth, queries.across, 2 * kPanel16, depth * kPanel16, strip, queries.padded}, bank.count,
          best.queries, depth, false);
  float scales[kStrip];
  for (int64_t r = 0; r < bank.count; ++r) scales[r] = bank.normalize ? inverse_norm(rows + r * depth, depth) : 1.0f;
  scan(best, bank.count, bank.first, [&](int64_t r, int64_t q) {
    return load(strip + r * queries.padded + q) * (all(scales[r]) * load(queries.scale + q));
  });
}

}  // namespace clead::CLEAD_ISA
