// The k most similar rows of a bank, on raw pointers: a group of queries meets the bank strip by strip. Torch-free.
//
// Queries are the columns of a strip of scores and rows of the bank its rows, so that the bank is read as it lies. A
// score counts as a key, a number that orders pairs (score, index): larger scores first (NaN is the largest), then
// smaller indices. Keys are unique, so the k largest are the same set in whatever order, and by however many threads,
// they are met.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "clead/contrastive.h"

namespace clead {

template <class T>
using Key = std::conditional_t<sizeof(T) == 8, unsigned __int128, uint64_t>;
template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

// Never 0, which is the key of nothing.
template <class T>
CLEAD_FN Key<T> key_of(T score, int64_t index) {
  constexpr int kBits = 8 * sizeof(T);
  score += T(0);  // -0 equals 0
  Bits<T> bits;
  memcpy(&bits, &score, sizeof bits);
  constexpr Bits<T> kSign = Bits<T>(1) << (kBits - 1);
  const Bits<T> order = score != score ? ~Bits<T>(0) : (bits & kSign) ? ~bits : bits | kSign;
  return Key<T>(order) << kBits | static_cast<Bits<T>>(~index);
}

template <class T>
CLEAD_FN T score_of(Key<T> key) {
  constexpr int kBits = 8 * sizeof(T);
  constexpr Bits<T> kSign = Bits<T>(1) << (kBits - 1);
  const Bits<T> order = static_cast<Bits<T>>(key >> kBits), bits = (order & kSign) ? order & ~kSign : ~order;
  T score;
  memcpy(&score, &bits, sizeof score);
  return score;
}

template <class T>
CLEAD_FN int64_t index_of(Key<T> key) {
  return static_cast<int64_t>(static_cast<Bits<T>>(~static_cast<Bits<T>>(key)));
}

// What is known of the k best of each of a group of queries.
template <class T>
struct Best {
  int64_t k, capacity, queries;
  Key<T>* keys;    // [queries, capacity]
  int64_t* count;  // [queries]: keys there are; below capacity between rows of the bank
  T* least;        // [queries, padded]: smaller scores are none of the best; NaN until something is known
  Key<T>* cut;     // [queries]: no more are smaller keys
};

// Forgets all but the k best of one query, and raises its bar.
void keep_best(Best<float>&, int64_t query);
void keep_best(Best<double>&, int64_t query);

// A group of queries.
template <class T>
struct Queries {
  int64_t d, ld, padded;  // ld: from one row of the bank to the next; padded: queries, to a multiple of kStrip
  T* panels;              // [padded / panel, d, panel]: the queries, transposed in panels
};

#define CLEAD_DECLARE_FOR(T)                                                                             \
  void topk_pack(const Queries<T>&, int64_t query, const T* row);                                        \
  void topk_scan(const Queries<T>&, const T* bank, int64_t count, int64_t first, T* strip, Best<T>& best);
#define CLEAD_DECLARE(isa)  \
  namespace isa {           \
  CLEAD_DECLARE_FOR(float)  \
  CLEAD_DECLARE_FOR(double) \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE
#undef CLEAD_DECLARE_FOR

}  // namespace clead
