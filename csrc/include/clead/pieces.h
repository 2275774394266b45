// A row of pixels in pieces of a fixed size, widened and filled up with zeros. Torch-free, internal linkage.
#pragma once

#include <type_traits>

#include "clead/pixel.h"

namespace clead {
namespace {

constexpr int kPiece = 128;

// Elements [index · kPiece, …) of a row of `size`: in place where possible.
template <class T>
struct Piece {
  Piece(const T* row, int64_t index, int64_t size) {
    const T* const from = row + index * kPiece;
    const int64_t left = size - index * kPiece, count = left < kPiece ? left : kPiece;
    if constexpr (std::is_same_v<T, Wide<T>>) {
      at = from;
      if (count == kPiece) return;
    }
    at = buffer;
    if (count == kPiece) {
      for (int i = 0; i < kPiece; ++i) buffer[i] = widen(from[i]);
    } else {
      for (int i = 0; i < count; ++i) buffer[i] = widen(from[i]);
      for (int64_t i = count; i < kPiece; ++i) buffer[i] = 0;
    }
  }
  Piece(const Piece&) = delete;

  const Wide<T>* at;
  alignas(64) Wide<T> buffer[kPiece];
};

// Where such a piece is written; finish() narrows it towards x.
template <class T>
struct PieceOut {
  PieceOut(T* row, int64_t index, int64_t size) : to(row + index * kPiece) {
    const int64_t left = size - index * kPiece;
    count = static_cast<int>(left < kPiece ? left : kPiece);
    at = buffer;
    if constexpr (std::is_same_v<T, Wide<T>>)
      if (count == kPiece) at = to;
  }
  PieceOut(const PieceOut&) = delete;

  void finish(const T* x) const {
    if constexpr (std::is_same_v<T, Wide<T>>)
      if (at == to) return;
    T* __restrict out = to;
    for (int i = 0; i < count; ++i) narrow(buffer[i], widen(x[i]), out[i]);
  }

  T* to;
  int count;
  Wide<T>* at;
  alignas(64) Wide<T> buffer[kPiece];
};

}  // namespace
}  // namespace clead
