// Memory for a call. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace clead {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Uninitialised cache-aligned memory.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : size_(size) {
    const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + 127) / 64 * 64;
    memory_.reset(std::aligned_alloc(64, bytes));
    if (!memory_) throw std::bad_alloc();
  }
  Buffer(int64_t size, T value) : Buffer(size) { std::fill(data(), data() + size, value); }

  T* data() const { return static_cast<T*>(memory_.get()); }
  T& operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return size_; }

 private:
  std::unique_ptr<void, Free> memory_;
  int64_t size_ = 0;
};

}  // namespace clead
