#include "clead/perturb_start.h"

#include "clean_rows.h"
#include "parallel.h"
#include "torch_operands.h"

namespace clead {
namespace {

constexpr int64_t kGrain = 8192;  // elements a thread is worth waking for
constexpr int64_t kChunk = 4096;  // elements of a sample drawn by one thread at a time, a multiple of 4

// The random streams of the samples; without ids a sample is its position.
class Streams {
 public:
  Streams(int64_t seed, const std::optional<Tensor>& ids, int64_t samples, int64_t step)
      : key_(static_cast<uint64_t>(seed)), step_(static_cast<uint32_t>(step)) {
    if (!ids) return;
    STD_TORCH_CHECK(ids->scalar_type() == ScalarType::Long && ids->dim() == 1 && ids->size(0) == samples,
                    "sample_ids must be int64 [", samples, "]");
    ids_ = const_data<int64_t>(*ids);
    stride_ = ids->stride(0);
  }

  Stream of(int64_t sample) const {
    const uint64_t id = static_cast<uint64_t>(ids_ == nullptr ? sample : ids_[sample * stride_]);
    return {key_, static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32), step_};
  }

 private:
  uint64_t key_;
  uint32_t step_;
  const int64_t* ids_ = nullptr;
  int64_t stride_ = 0;
};

template <class T>
Rows<T> written(const Tensor& x_adv, const std::vector<int64_t>& sizes) {
  return {mutable_data<T>(x_adv), sizes, strides_against(x_adv, sizes, "x_adv")};
}

template <class T>
void start_linf(const Tensor& x_adv, const Tensor& x, const Scalars<Wide<T>>& eps, const Streams& streams, double low,
                double high) {
  const auto sizes = sizes_of(x_adv);
  const auto images = written<T>(x_adv, sizes);
  const CleanRows<T> centres(x, sizes);
  const Rows<const Wide<T>> radii(eps.data(), sizes, eps.strides);
  const int64_t size = images.size(), chunks = (size + kChunk - 1) / kChunk, chunk = std::min(size, kChunk);
  isa();  // may throw, which must not happen on a worker thread
  const int64_t grain = std::max<int64_t>(1, kGrain / chunk);
  parallel_for(sizes[0] * chunks, grain, [&](int64_t begin, int64_t end) {
    std::vector<T> image(images.buffer_size(chunk)), centre(centres.buffer_size(chunk));
    std::vector<Wide<T>> radius(radii.constant() ? 0 : radii.buffer_size(chunk));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / chunks, first = i % chunks * kChunk;
      LinfStart<T> s{};
      s.first = first, s.size = std::min(size - first, kChunk);
      s.x_adv = images.target(row, first, image.data());
      s.x = centres.read(row, first, s.size, centre.data());
      s.eps = radii.constant() ? radii.row(row) : radii.read(row, first, s.size, radius.data());
      s.eps_stride = radii.constant() ? 0 : 1;
      s.stream = streams.of(row);
      s.low = static_cast<Wide<T>>(low), s.high = static_cast<Wide<T>>(high);
      CLEAD_ISA_CALL(random_start(s));
      images.write(row, first, s.size, s.x_adv);
    }
  });
}

// A start that draws the whole sample before it knows its length, as L2Start or L1Start says.
template <class Start, class T>
void start_ball(const Tensor& x_adv, const Tensor& x, const PerSample& eps, const Streams& streams, double low,
                double high) {
  const auto sizes = sizes_of(x_adv);
  const auto images = written<T>(x_adv, sizes);
  const CleanRows<T> centres(x, sizes);
  const int64_t size = images.size();
  isa();  // may throw, which must not happen on a worker thread
  parallel_for(sizes[0], std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    std::vector<T> image(images.buffer_size(size)), centre(centres.buffer_size(size));
    std::vector<typename Start::Number> numbers(drawn(size));
    for (int64_t row = begin; row < end; ++row) {
      Start s{};
      s.x_adv = images.target(row, 0, image.data());
      s.x = centres.read(row, 0, size, centre.data());
      s.numbers = numbers.data(), s.size = size;
      s.stream = streams.of(row);
      s.eps = eps.at(row), s.low = low, s.high = high;
      CLEAD_ISA_CALL(random_start(s));
      images.write(row, 0, size, s.x_adv);
    }
  });
}

void random_start_linf_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, int64_t seed,
                        std::optional<Tensor> sample_ids, int64_t step, double low, double high) {
  are_bytes(x, x_adv.scalar_type());
  check_written(x_adv, "x_adv", {&x});
  if (x_adv.numel() == 0) return;
  const Streams streams(seed, sample_ids, x_adv.size(0), step);
  for_pixels(x_adv.scalar_type(), "random_start_linf_", [&]<class T>() {
    const Scalars<Wide<T>> radius(eps_tensor, eps, sizes_of(x_adv), "eps");
    start_linf<T>(x_adv, x, radius, streams, low, high);
  });
}

template <template <class> class Start>
void random_start(const char* op, const Tensor& x_adv, const Tensor& x, double eps,
                  const std::optional<Tensor>& eps_tensor, int64_t seed, const std::optional<Tensor>& sample_ids,
                  int64_t step, double low, double high) {
  are_bytes(x, x_adv.scalar_type());
  check_written(x_adv, "x_adv", {&x});
  if (x_adv.numel() == 0) return;
  const Streams streams(seed, sample_ids, x_adv.size(0), step);
  const PerSample radius(eps_tensor, eps, x_adv, "eps");
  for_pixels(x_adv.scalar_type(), op,
             [&]<class T>() { start_ball<Start<T>, T>(x_adv, x, radius, streams, low, high); });
}

void random_start_l2_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, int64_t seed,
                      std::optional<Tensor> sample_ids, int64_t step, double low, double high) {
  random_start<L2Start>("random_start_l2_", x_adv, x, eps, eps_tensor, seed, sample_ids, step, low, high);
}

void random_start_l1_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, int64_t seed,
                      std::optional<Tensor> sample_ids, int64_t step, double low, double high) {
  random_start<L1Start>("random_start_l1_", x_adv, x, eps, eps_tensor, seed, sample_ids, step, low, high);
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) {
  m.impl("random_start_linf_", TORCH_BOX(&clead::random_start_linf_));
  m.impl("random_start_l2_", TORCH_BOX(&clead::random_start_l2_));
  m.impl("random_start_l1_", TORCH_BOX(&clead::random_start_l1_));
}
