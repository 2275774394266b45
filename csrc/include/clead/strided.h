// Elementwise walks over several strided operands of one shape. Torch-free.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace clead {

// By the first operand's strides, or in C order whatever the strides.
enum class Order { memory, logical };

// The common shape, with dimensions ordered from the innermost outwards and merged where all operands allow it: in
// memory order contiguous tensors, channels-last ones included, become one run.
template <int K>
class Strided {
 public:
  using Offsets = std::array<int64_t, K>;

  struct Dim {
    int64_t size;
    Offsets step;  // per operand
  };

  // strides[k][d] is the stride of operand k in dimension d, 0 where it is broadcast.
  Strided(const std::vector<int64_t>& sizes, const std::array<std::vector<int64_t>, K>& strides,
          Order by = Order::memory) {
    std::vector<size_t> order;
    for (size_t d = sizes.size(); d-- > 0;) {
      numel_ *= sizes[d];
      if (sizes[d] != 1) order.push_back(d);
    }
    if (by == Order::memory)
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[0][a] < strides[0][b]; });
    for (size_t d : order) {
      Offsets step;
      for (int k = 0; k < K; ++k) step[k] = strides[k][d];
      if (!dims_.empty() && follows(dims_.back(), step))
        dims_.back().size *= sizes[d];
      else
        dims_.push_back({sizes[d], step});
    }
    if (dims_.empty()) dims_.push_back({1, Offsets{}});
  }

  int64_t numel() const { return numel_; }

  const std::vector<Dim>& dims() const { return dims_; }

  // The operands' strides within a run.
  const Offsets& inner() const { return dims_[0].step; }

  // Calls run(offsets, size) for the runs that make up elements [begin, end) of the walk.
  template <class Run>
  void walk(int64_t begin, int64_t end, Run&& run) const {
    while (begin < end) {
      Offsets offsets{};
      int64_t rest = begin;
      for (const Dim& dim : dims_) {
        const int64_t index = rest % dim.size;
        rest /= dim.size;
        for (int k = 0; k < K; ++k) offsets[k] += index * dim.step[k];
      }
      const int64_t size = std::min(end - begin, dims_[0].size - begin % dims_[0].size);
      run(offsets, size);
      begin += size;
    }
  }

 private:
  static bool follows(const Dim& inner, const Offsets& step) {
    for (int k = 0; k < K; ++k)
      if (step[k] != inner.step[k] * inner.size) return false;
    return true;
  }

  int64_t numel_ = 1;
  std::vector<Dim> dims_;
};

}  // namespace clead
