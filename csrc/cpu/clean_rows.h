// Clean images as rows of T: in memory, or from bytes.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>

#include "clead/rows.h"
#include "torch_operands.h"

namespace clead {

inline void round_pixel(double value, double& out) { out = value; }
inline void round_pixel(float value, float& out) { out = value; }
inline void round_pixel(float value, Bf16& out) { out.bits = torch::headeronly::BFloat16(value).x; }
inline void round_pixel(float value, Half& out) { out.bits = torch::headeronly::Half(value).x; }

// byte/255 for every byte.
template <class T>
const T* byte_pixels() {
  static const auto table = [] {
    std::array<T, 256> pixels;
    for (int byte = 0; byte < 256; ++byte) round_pixel(static_cast<Wide<T>>(byte) / Wide<T>(255), pixels[byte]);
    return pixels;
  }();
  return table.data();
}

template <class T>
class CleanRows {
 public:
  CleanRows(const Tensor& x, const std::vector<int64_t>& sizes)
      : bytes_(x.scalar_type() == ScalarType::Byte ? byte_pixels<T>() : nullptr),
        rows_(bytes_ ? nullptr : const_data<T>(x), sizes, strides_against(x, sizes, "x")),
        byte_rows_(bytes_ ? const_data<uint8_t>(x) : nullptr, sizes,
                   strides_against(x, sizes, "x")) {}

  int64_t buffer_size(int64_t size) const { return bytes_ ? size : rows_.buffer_size(size); }

  const T* read(int64_t row, int64_t begin, int64_t size, T* buffer) const {
    if (bytes_ == nullptr) return rows_.read(row, begin, size, buffer);
    byte_rows_.copy(row, begin, size, [&](uint8_t byte, int64_t i) { buffer[i] = bytes_[byte]; });
    return buffer;
  }

 private:
  const T* bytes_;
  Rows<const T> rows_;
  Rows<const uint8_t> byte_rows_;
};

}  // namespace clead
