// Loops over threads. Threads meet nowhere else.
#pragma once

#include <torch/csrc/stable/ops.h>
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include <cstdint>

namespace clead {

#if defined(__SANITIZE_THREAD__)
// ThreadSanitizer does not see how OpenMP's threads start and end, and is told.
inline char threads_start, threads_end;

template <class Body>
void parallel_for(int64_t size, int64_t grain, const Body& body) {
  const auto part = [&](int64_t begin, int64_t end) {
    __tsan_acquire(&threads_start);
    body(begin, end);
    __tsan_release(&threads_end);
  };
  __tsan_release(&threads_start);
  torch::stable::parallel_for(0, size, grain, part);
  __tsan_acquire(&threads_end);
}
#else
// Calls body(begin, end) for parts of [0, size), of at least grain where there is more than one.
template <class Body>
void parallel_for(int64_t size, int64_t grain, const Body& body) {
  torch::stable::parallel_for(0, size, grain, body);
}
#endif

}  // namespace clead
