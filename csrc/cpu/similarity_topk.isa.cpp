#include <algorithm>

#include "clead/similarity_scan.h"
#include "clead/tile_product.h"

namespace clead::CLEAD_ISA {
namespace {

template <class T>
void pack(const Queries<T>& queries, int64_t query, const T* row) {
  constexpr int64_t kPanel = 2 * kLanes<T>;
  T* const column = queries.panels + query / kPanel * kPanel * queries.d + query % kPanel;
  for (int64_t k = 0; k < queries.d; ++k) column[k * kPanel] = row[k];
}

template <class T>
void scan_strip(const Queries<T>& queries, const T* bank, int64_t count, int64_t first, T* strip, Best<T>& best) {
  constexpr int64_t kPanel = 2 * kLanes<T>, kDepth = 256;  // in parts: long rows would collect rounding errors
  for (int64_t k = 0; k < queries.d; k += kDepth)
    tile_product<T>(bank + k, queries.ld, 1, queries.panels + k * kPanel, kPanel, queries.d * kPanel, strip,
                    queries.padded, count, best.queries, std::min(kDepth, queries.d - k), k > 0);
  scan(best, count, first, [&](int64_t r, int64_t q) { return load(strip + r * queries.padded + q); });
}

}  // namespace

#define CLEAD_DEFINE(T)                                                                                       \
  void topk_pack(const Queries<T>& queries, int64_t query, const T* row) { pack(queries, query, row); }       \
  void topk_scan(const Queries<T>& queries, const T* bank, int64_t count, int64_t first, T* strip, Best<T>& best) { \
    scan_strip(queries, bank, count, first, strip, best);                                                     \
  }
CLEAD_DEFINE(float)
CLEAD_DEFINE(double)

}  // namespace clead::CLEAD_ISA
