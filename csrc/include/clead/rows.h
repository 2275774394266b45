// The samples of one operand, each as a dense row in C order. Torch-free.
#pragma once

#include "clead/strided.h"

namespace clead {

template <class T>
class Rows {
 public:
  // Dimension 0 counts the samples; T is const for an operand that is only read.
  Rows(T* data, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides)
      : data_(data),
        stride_(strides[0]),
        row_({sizes.begin() + 1, sizes.end()}, {std::vector<int64_t>(strides.begin() + 1, strides.end())},
             Order::logical),
        dense_(row_.dims().size() == 1 && (row_.numel() == 1 || row_.inner()[0] == 1)) {}

  // Elements of one row.
  int64_t size() const { return row_.numel(); }

  // Whether a row is one number, however long; row() is where.
  bool constant() const { return row_.dims().size() == 1 && row_.inner()[0] == 0; }
  T* row(int64_t row) const { return data_ + row * stride_; }

  // Elements a caller's buffer must hold to see `size` of them: none where they lie densely in memory.
  int64_t buffer_size(int64_t size) const { return dense_ ? 0 : size; }

  // Where elements [begin, begin + size) of a row are: in memory, or copied into the buffer.
  template <class U>
  T* read(int64_t row, int64_t begin, int64_t size, U* buffer) const {
    if (dense_) return data_ + row * stride_ + begin;
    copy(row, begin, size, [&](T& at, int64_t i) { buffer[i] = at; });
    return buffer;
  }

  // Where to write them, and what brings them home from there.
  T* target(int64_t row, int64_t begin, T* buffer) const { return dense_ ? data_ + row * stride_ + begin : buffer; }

  void write(int64_t row, int64_t begin, int64_t size, const T* buffer) const {
    if (!dense_) copy(row, begin, size, [&](T& at, int64_t i) { at = buffer[i]; });
  }

  // Calls visit(element, i) for element begin + i of a row, i < size.
  template <class Visit>
  void copy(int64_t row, int64_t begin, int64_t size, Visit&& visit) const {
    T* const data = data_ + row * stride_;
    const int64_t step = row_.inner()[0];
    int64_t done = 0;
    row_.walk(begin, begin + size, [&](const Strided<1>::Offsets& at, int64_t run) {
      for (int64_t i = 0; i < run; ++i) visit(data[at[0] + i * step], done + i);
      done += run;
    });
  }

 private:
  T* data_;
  int64_t stride_;
  Strided<1> row_;
  bool dense_;
};

}  // namespace clead
