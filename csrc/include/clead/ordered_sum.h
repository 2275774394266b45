// Sums of a row in the order of perturb/arithmetic.py. Torch-free, internal linkage; for *.isa.cpp only.
#pragma once

#include "clead/pieces.h"
#include "clead/vector.h"

namespace clead {
namespace {

constexpr double kHuge = 0x1.fffffffffffffp1023;  // the largest finite number

// The sum of kPiece terms, folded by halves: term(i) gives those from i on, kLanes of them.
template <int kStride, class Term>
inline F64 folded(const Term& term, int i) {
  if constexpr (kStride == kPiece)
    return term(i);
  else
    return folded<2 * kStride>(term, i) + folded<2 * kStride>(term, i + kStride);
}

inline double fold_lanes(F64 lanes) {
  double v[kLanes];
  store(v, lanes);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

template <class Term>
inline double fold(const Term& term) {
  return fold_lanes(folded<kLanes>(term, 0));
}

// The sum of the pieces' sums, count ≥ 1 of them from first on.
template <class Piece>
double ordered_sum(const Piece& piece, int64_t first, int64_t count) {
  if (count == 1) return piece(first);
  int64_t span = 1;
  while (count > span * kPiece) span *= kPiece;
  alignas(64) double part[kPiece] = {};
  for (int64_t n = 0, at = 0; at < count; ++n, at += span)
    part[n] = ordered_sum(piece, first + at, count - at < span ? count - at : span);
  return fold([&](int i) { return load<F64>(part + i); });
}

}  // namespace
}  // namespace clead
