// 3x3 convolutions of stride 1: checks, and who does which tiles.
#include "clead/winograd.h"

#include "clead/buffer.h"
#include "parallel.h"
#include "torch_operands.h"

namespace clead {
namespace {

constexpr int64_t kRegisterRows = 12;  // of the largest register tile; operands are readable up to a multiple of it
constexpr int64_t kJobsPerThread = 4;  // so many that no thread waits long for the others
constexpr int64_t kSmallKernel = 128 * 128;                    // channels in x out, of a kernel that stays in the cache
constexpr int64_t kFewTiles = 24, kManyTiles = 96;             // of a job
constexpr int64_t kFewCorrelated = 48, kManyCorrelated = 192;  // tiles whose values and gradients are held at once
constexpr int64_t kGroup = 512, kMostGroups = 16;              // tiles whose sums are added up before others'
constexpr int64_t kJobSums = kPoints * kSumsPlane;

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// [N, C, H, W] with the channels innermost.
template <class T>
Tiled<T> tiled(T* data, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) > 0 && x.size(1) % 16 == 0 && x.stride(1) == 1, name,
                  " must be [B, C, H, W] with the channels, a multiple of 16, innermost");
  return {data, x.size(1), x.size(2), x.size(3), x.stride(0), x.stride(2), x.stride(3)};
}

int64_t packed_size(int64_t out, int64_t in) {
  return winograd_padded(out) / kColumnBlock * kPoints * winograd_plane(kColumnBlock, in);
}

int64_t tiles(const Tensor& x) { return x.size(0) * ((x.size(2) + 3) / 4) * ((x.size(3) + 3) / 4); }

template <class T>
Kernel<T> kernel_of(T* data, const Tensor& w, bool turned, const char* name) {
  STD_TORCH_CHECK(w.dim() == 4 && w.size(2) == 3 && w.size(3) == 3 && w.size(0) % 16 == 0 && w.size(1) % 16 == 0 &&
                      w.numel() > 0, name,
                  " must be [K, C, 3, 3] with multiples of 16 channels");
  if (!turned) return {data, w.size(0), w.size(1), w.stride(0), w.stride(1), w.stride(2), w.stride(3)};
  T* const last = data + 2 * w.stride(2) + 2 * w.stride(3);
  return {last, w.size(1), w.size(0), w.stride(1), w.stride(0), -w.stride(2), -w.stride(3)};
}

template <class Body>
void for_type(const Tensor& x, std::initializer_list<const Tensor*> others, Body&& body) {
  for (const Tensor* other : others)
    STD_TORCH_CHECK(other->scalar_type() == x.scalar_type(), "all tensors of a convolution must have one dtype");
  if (x.scalar_type() == ScalarType::Double) return body.template operator()<double>();
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "the native convolution has float32 and float64");
  body.template operator()<float>();
}

// weight at the points; turned: the kernel that takes gradients by the output to those by the input.
void pack_(Tensor weight, bool turned, Tensor packed) {
  for_type(weight, {&packed}, [&]<class T>() {
    const auto kernel = kernel_of(const_data<T>(weight), weight, turned, "weight");
    STD_TORCH_CHECK(packed.is_contiguous() && packed.numel() == packed_size(kernel.out, kernel.in),
                    "packed must be contiguous and, for every 64 channels out, of 36 x (64 x channels in + 16)");
    check_written(packed, "packed", {&weight});
    T* const to = mutable_data<T>(packed);
    isa();  // may throw, which must not happen on a worker thread
    parallel_for(winograd_padded(kernel.out) / kColumnBlock, 1, [&](int64_t begin, int64_t end) {
      CLEAD_ISA_CALL(winograd_pack(kernel, begin * kColumnBlock, std::min(end * kColumnBlock, kernel.out), to));
    });
  });
}

// Jobs are blocks of tiles, of which each is done in parts of the output channels; neighbours share a block.
struct Plan {
  Plan(int64_t tiles, int64_t in, int64_t out) {
    // A kernel that stays in the cache leaves it to values and sums; one that does not is worth reading seldom.
    const int64_t most = in * out <= kSmallKernel ? kFewTiles : kManyTiles;
    const int64_t wanted = kJobsPerThread * torch::stable::get_num_threads();
    const int64_t groups = winograd_padded(out) / kColumnBlock;
    rows = std::clamp(round_up(tiles, kRegisterRows), kRegisterRows, most);
    while (rows > kFewTiles && (tiles + rows - 1) / rows * groups < wanted) rows = round_up(rows / 2, kRegisterRows);
    blocks = (tiles + rows - 1) / rows;
    rows = std::max(kRegisterRows, round_up((tiles + blocks - 1) / std::max<int64_t>(blocks, 1), kRegisterRows));
    parts = std::min(groups, std::max<int64_t>(1, wanted / std::max<int64_t>(blocks, 1)));
    columns = (groups + parts - 1) / parts * kColumnBlock;
    parts = (winograd_padded(out) + columns - 1) / columns;
  }

  int64_t rows, blocks, parts, columns;
};

void convolve_(Tensor x, Tensor packed, std::optional<Tensor> bias, Tensor out) {
  for_type(x, {&packed, &out}, [&]<class T>() {
    const auto from = tiled(const_data<T>(x), x, "x");
    const auto to = tiled(mutable_data<T>(out), out, "out");
    STD_TORCH_CHECK(out.size(0) == x.size(0) && to.height == from.height && to.width == from.width,
                    "out must have the batch, height and width of x");
    STD_TORCH_CHECK(packed.is_contiguous() && packed.numel() == packed_size(to.channels, from.channels),
                    "packed must be a kernel of these channels");
    STD_TORCH_CHECK(!bias || (bias->is_contiguous() && bias->numel() == to.channels &&
                              bias->scalar_type() == x.scalar_type()),
                    "bias must be one number of the dtype of x for each channel of out");
    check_written(out, "out", {&x, &packed, bias ? &*bias : nullptr});
    const T *const kernel = const_data<T>(packed), *const shift = bias ? const_data<T>(*bias) : nullptr;
    const int64_t all = tiles(x), in = from.channels;
    const Plan plan(all, in, to.channels);
    isa();  // may throw, which must not happen on a worker thread
    parallel_for(plan.blocks * plan.parts, 1, [&](int64_t begin, int64_t end) {
      const Buffer<T> values(kPoints * winograd_plane(plan.rows, in));
      const Buffer<T> sums(kPoints * winograd_plane(plan.rows, kColumnBlock));
      for (int64_t job = begin, block = -1; job < end; ++job) {
        const int64_t first = job / plan.parts * plan.rows, count = std::min(plan.rows, all - first);
        if (block != job / plan.parts) {
          block = job / plan.parts;
          CLEAD_ISA_CALL(winograd_values(from, first, count, values.data(), plan.rows, in));
        }
        const int64_t c = job % plan.parts * plan.columns;
        CLEAD_ISA_CALL(winograd_multiply(values.data(), plan.rows, in, kernel, shift, c,
                                         std::min(c + plan.columns, to.channels), sums.data(), to, first, count));
      }
    });
  });
}

// Tiles are summed in chunks, these in groups, and these in the end: in one order for any number of threads. A group is
// one thread's where there are enough; else threads share it, a job being a part of the kernel.
struct Correlation {
  Correlation(int64_t tiles, int64_t out, int64_t in) : tiles(tiles), out(out), in(in) {
    const int64_t threads = torch::stable::get_num_threads();
    rows = std::clamp<int64_t>(tiles, 1, in * out <= kSmallKernel / 4 ? kFewCorrelated : kManyCorrelated);
    group = round_up(std::max(kGroup, (tiles + kMostGroups - 1) / kMostGroups), rows);
    groups = std::max<int64_t>(1, (tiles + group - 1) / group);
    alone = groups >= threads;
    if (!alone && jobs() < kJobsPerThread * threads) width = kColumnBlock / 2;
    if (!alone && jobs() < kJobsPerThread * threads) height = kRowPanel;
  }

  bool at_once() const { return tiles <= rows; }
  int64_t down() const { return (out + height - 1) / height; }
  int64_t jobs() const { return down() * ((in + width - 1) / width); }
  Part part(int64_t job) const {
    const int64_t o = job % down() * height, c = job / down() * width;
    return {o, std::min(o + height, out), c, std::min(c + width, in)};
  }

  int64_t tiles, out, in, rows, group, groups, height = kPartRows, width = kColumnBlock;
  bool alone;
};

// The sums over tiles [first, last), all parts of them; where sums is null they make up the gradient.
template <class T>
void correlate(const Correlation& plan, const Tiled<const T>& x, const Tiled<const T>& by, int64_t first, int64_t last,
               T* sums, const Kernel<T>& gradient) {
  int64_t panel = 0;
  CLEAD_ISA_CALL(winograd_panel(T(), &panel));
  const Buffer<T> values(kPoints * winograd_plane(plan.rows, round_up(plan.in, panel)));
  const Buffer<T> gradients(kPoints * winograd_plane(plan.rows, round_up(plan.out, kRowPanel)));
  int64_t chunk = first;
  do {
    const int64_t count = std::min(plan.rows, last - chunk);
    parallel_for(count, kRegisterRows, [&](int64_t begin, int64_t end) {
      const int64_t t = chunk + begin, some = end - begin;
      CLEAD_ISA_CALL(winograd_values(x, t, some, values.data() + begin * panel, plan.rows, panel));
      CLEAD_ISA_CALL(winograd_gradients(by, t, some, gradients.data() + begin * kRowPanel, plan.rows));
    });
    parallel_for(plan.jobs(), 1, [&](int64_t begin, int64_t end) {
      const Buffer<T> own(sums == nullptr ? kJobSums : 0);
      for (int64_t job = begin; job < end; ++job) {
        T* const to = sums == nullptr ? own.data() : sums + job * kJobSums;
        const Part part = plan.part(job);
        CLEAD_ISA_CALL(winograd_correlate(gradients.data(), plan.out, values.data(), plan.in, plan.rows, count, part,
                                          to, chunk > first));
        if (sums == nullptr) CLEAD_ISA_CALL(winograd_unpack(to, 1, 0, part, gradient));
      }
    });
    chunk += count;
  } while (chunk < last);
}

void weight_gradient_(Tensor x, Tensor grad, Tensor grad_weight) {
  for_type(x, {&grad, &grad_weight}, [&]<class T>() {
    const auto from = tiled(const_data<T>(x), x, "x");
    const auto by = tiled(const_data<T>(grad), grad, "grad");
    const auto to = kernel_of(mutable_data<T>(grad_weight), grad_weight, false, "grad_weight");
    STD_TORCH_CHECK(grad.size(0) == x.size(0) && by.height == from.height && by.width == from.width &&
                        to.out == by.channels && to.in == from.channels,
                    "x, grad and grad_weight must belong to one convolution");
    check_written(grad_weight, "grad_weight", {&x, &grad});
    isa();  // may throw, which must not happen on a worker thread
    const Correlation plan(tiles(x), to.out, to.in);
    if (plan.at_once()) return correlate<T>(plan, from, by, 0, plan.tiles, nullptr, to);
    const int64_t step = plan.jobs() * kJobSums;
    const Buffer<T> sums(plan.groups * step);
    parallel_for(plan.groups, plan.alone ? 1 : plan.groups, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t first = g * plan.group, last = std::min(first + plan.group, plan.tiles);
        correlate(plan, from, by, first, last, sums.data() + g * step, to);
      }
    });
    parallel_for(plan.jobs(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job)
        CLEAD_ISA_CALL(winograd_unpack(sums.data() + job * kJobSums, plan.groups, step, plan.part(job), to));
    });
  });
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) {
  m.impl("conv3x3_pack_", TORCH_BOX(&clead::pack_));
  m.impl("conv3x3_packed_", TORCH_BOX(&clead::convolve_));
  m.impl("conv3x3_weight_gradient_", TORCH_BOX(&clead::weight_gradient_));
}
