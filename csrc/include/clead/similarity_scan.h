// Filters a strip of scores: nearly all are below the bars of their queries. For *.isa.cpp only.
#pragma once

#include "clead/lanes.h"
#include "clead/similarity_topk.h"

namespace clead {
namespace {

// One bit per lane that is not <= bar; one that is NaN is not.
#if defined(__AVX512F__)
CLEAD_INLINE unsigned above(Vec<float> x, Vec<float> bar) { return _mm512_cmp_ps_mask(x, bar, _CMP_NLE_UQ); }
CLEAD_INLINE unsigned above(Vec<double> x, Vec<double> bar) { return _mm512_cmp_pd_mask(x, bar, _CMP_NLE_UQ); }
#elif defined(__AVX2__)
CLEAD_INLINE unsigned above(Vec<float> x, Vec<float> bar) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x, bar, _CMP_NLE_UQ));
}
CLEAD_INLINE unsigned above(Vec<double> x, Vec<double> bar) {
  return _mm256_movemask_pd(_mm256_cmp_pd(x, bar, _CMP_NLE_UQ));
}
#elif defined(__SSE2__)
CLEAD_INLINE unsigned above(Vec<float> x, Vec<float> bar) { return _mm_movemask_ps(_mm_cmpnle_ps(x, bar)); }
CLEAD_INLINE unsigned above(Vec<double> x, Vec<double> bar) { return _mm_movemask_pd(_mm_cmpnle_pd(x, bar)); }
#else
template <class V>
CLEAD_INLINE unsigned above(V x, V bar) {
  unsigned bits = 0;
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) bits |= static_cast<unsigned>(!(x[i] <= bar[i])) << i;
  return bits;
}
#endif

template <class T>
void consider(Best<T>& best, int64_t query, T score, int64_t index) {
  const Key<T> key = key_of(score, index);
  if (query >= best.queries || key <= best.cut[query]) return;
  int64_t& count = best.count[query];
  best.keys[query * best.capacity + count] = key;
  if (++count == best.capacity) keep_best(best, query);
}

// scores(r, q) is the vector of scores of bank row first + r with the queries from q on.
template <class T, class Scores>
CLEAD_INLINE void scan(Best<T>& best, int64_t rows, int64_t first, Scores&& scores) {
  constexpr int kVectors = 6;
  static_assert(kStrip % (kVectors * kLanes<T>) == 0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t q = 0; q < best.queries; q += kVectors * kLanes<T>) {
      unsigned hits[kVectors], any = 0;
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = q + v * kLanes<T>;
        any |= hits[v] = above(scores(r, at), load(best.least + at));
      }
      if (any == 0) continue;
      for (int v = 0; v < kVectors; ++v) {
        if (hits[v] == 0) continue;
        T found[kLanes<T>];
        store(found, scores(r, q + v * kLanes<T>));
        for (unsigned left = hits[v]; left != 0; left &= left - 1) {
          const int lane = __builtin_ctz(left);
          consider(best, q + v * kLanes<T> + lane, found[lane], first + r);
        }
      }
    }
}

}  // namespace
}  // namespace clead
