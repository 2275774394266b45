#include "clead/perturb_start.cuh"

#include "torch_samples.cuh"

namespace clead {
namespace {

template <class T>
cuda::Starts<T> starts_of(const Tensor& x_adv, const Tensor& x, int64_t seed, const std::optional<Tensor>& ids,
                          int64_t step, double low, double high) {
  cuda::Starts<T> s{};
  s.samples = samples_of<T>(x_adv, nullptr, &x);
  s.samples.low = low, s.samples.high = high;
  s.key = static_cast<uint64_t>(seed), s.step = static_cast<uint32_t>(step);
  if (ids) {
    STD_TORCH_CHECK(ids->scalar_type() == ScalarType::Long && ids->dim() == 1 && ids->size(0) == x_adv.size(0),
                    "sample_ids must be int64 [", x_adv.size(0), "]");
    check_beside(*ids, x_adv, "sample_ids");
    s.ids = const_data<int64_t>(*ids);
    s.ids_stride = ids->stride(0);
  }
  return s;
}

template <class T>
void run_starts(void (*kernel)(cuda::Starts<T>), const cuda::Starts<T>& s, const Tensor& x_adv) {
  const torch::stable::accelerator::DeviceGuard guard(x_adv.get_device_index());
  cuda::launch_starts(kernel, s, stream_of(x_adv));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void random_start_linf_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, int64_t seed,
                        std::optional<Tensor> sample_ids, int64_t step, double low, double high) {
  STD_TORCH_CHECK(x.scalar_type() == x_adv.scalar_type(), "all images must have one dtype");
  check_written(x_adv, "x_adv", {&x});
  if (x_adv.numel() == 0) return;
  for_pixels(x_adv.scalar_type(), "random_start_linf_", [&]<class T>() {
    auto s = starts_of<T>(x_adv, x, seed, sample_ids, step, low, high);
    const auto sizes = sizes_of(x_adv);
    check_beside(eps_tensor, x_adv, "eps");
    const Scalars<Wide<T>> radius(eps_tensor, eps, sizes, "eps");
    s.samples.eps.scalar = radius.scalar, s.eps = radius.tensor, s.eps_sample_stride = radius.strides[0];
    const Strided<1> row({sizes.begin() + 1, sizes.end()},
                         {std::vector<int64_t>(radius.strides.begin() + 1, radius.strides.end())}, Order::logical);
    STD_TORCH_CHECK(row.dims().size() <= cuda::kSampleDims, "eps has at most ", cuda::kSampleDims,
                    " dimensions that do not merge");
    for (const auto& dim : row.dims()) {
      s.eps_dim[s.eps_dims] = static_cast<int>(dim.size);
      s.eps_stride[s.eps_dims++] = dim.step[0];
    }
    run_starts(&cuda::random_start_linf_kernel<T>, s, x_adv);
  });
}

template <class Numbers>
void random_start_ball(const char* op, const Tensor& x_adv, const Tensor& x, double eps,
                       const std::optional<Tensor>& eps_tensor, int64_t seed, const std::optional<Tensor>& sample_ids,
                       int64_t step, double low, double high) {
  STD_TORCH_CHECK(x.scalar_type() == x_adv.scalar_type(), "all images must have one dtype");
  check_written(x_adv, "x_adv", {&x});
  if (x_adv.numel() == 0) return;
  for_pixels(x_adv.scalar_type(), op, [&]<class T>() {
    auto s = starts_of<T>(x_adv, x, seed, sample_ids, step, low, high);
    s.samples.eps = per_sample<T>(eps_tensor, eps, x_adv, "eps");
    run_starts(&cuda::random_start_ball_kernel<T, Numbers>, s, x_adv);
  });
}

void random_start_l2_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, int64_t seed,
                      std::optional<Tensor> sample_ids, int64_t step, double low, double high) {
  random_start_ball<cuda::Gaussian>("random_start_l2_", x_adv, x, eps, eps_tensor, seed, sample_ids, step, low, high);
}

void random_start_l1_(Tensor x_adv, Tensor x, double eps, std::optional<Tensor> eps_tensor, int64_t seed,
                      std::optional<Tensor> sample_ids, int64_t step, double low, double high) {
  random_start_ball<cuda::Exponential>("random_start_l1_", x_adv, x, eps, eps_tensor, seed, sample_ids, step, low,
                                       high);
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CUDA, m) {
  m.impl("random_start_linf_", TORCH_BOX(&clead::random_start_linf_));
  m.impl("random_start_l2_", TORCH_BOX(&clead::random_start_l2_));
  m.impl("random_start_l1_", TORCH_BOX(&clead::random_start_l1_));
}
