// Philox4x32-10, a vector of counters per 64-bit lane. Torch-free, internal linkage.
#pragma once

#include "clead/vector.h"

namespace clead {
namespace {

// Counters advanced together: ten rounds are one long dependency, and several of them fill the wait.
constexpr int kChains = kLanes == 8 ? 4 : 2;
constexpr int kCounters = kLanes * kChains;

// 4 · kCounters words, those of draws 4 · block, …; a word is only read from the low half of its lane.
inline void philox4x32(uint64_t key, uint64_t block, uint32_t sample, uint32_t view, uint32_t step, uint32_t* words) {
  U64 c0[kChains], c1[kChains], c2[kChains], c3[kChains];
  for (int j = 0; j < kChains; ++j) {
    for (int i = 0; i < kLanes; ++i) c0[j][i] = block + j * kLanes + i;
    c1[j] = U64{} + sample, c2[j] = U64{} + view, c3[j] = U64{} + step;
  }
  const U64 m0 = U64{} + 0xD2511F53u, m1 = U64{} + 0xCD9E8D57u;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int j = 0; j < kChains; ++j) {
      const U64 p0 = product(c0[j], m0), p1 = product(c2[j], m1);
      c0[j] = (p1 >> 32) ^ c1[j] ^ k0, c1[j] = p1;
      c2[j] = (p0 >> 32) ^ c3[j] ^ k1, c3[j] = p0;
    }
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  for (int j = 0; j < kChains; ++j) {
    uint64_t pairs[2 * kLanes];
    store_interleaved(pairs, (c0[j] & 0xFFFFFFFFu) | c1[j] << 32, (c2[j] & 0xFFFFFFFFu) | c3[j] << 32);
    memcpy(words + 4 * kLanes * j, pairs, sizeof pairs);
  }
}

}  // namespace
}  // namespace clead
