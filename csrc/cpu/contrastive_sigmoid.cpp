// The ops of sigmoid_loss: the tiles of the contrastive family without its sums over rows.
#include "contrastive_backward.h"

namespace clead {
namespace {

Arguments arguments(const Tensor& a, const Tensor& b, double temperature, double bias, bool normalize) {
  Arguments args{a, b, temperature, normalize};
  args.positive_offset = 0, args.bias = bias;
  STD_TORCH_CHECK(a.dim() == 2, "a must be [rows, d]");
  check_rows(a, a, "a");
  check_rows(b, a, "b");
  isa();  // may throw, which must not happen on a worker thread
  return args;
}

template <class T>
void forward(const Arguments& args, T* loss) {
  Call<T> call(args);
  if (call.bf16) call.load_bf16(false);
  call.a.negatives.sum = call.doubles(call.m, 0.0);
  visit_forward(call);
  parallel_rows(call.m, [&](int64_t i) {
    double sum = call.a.negatives.sum[i];
    for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
      sum += softplus(-listed_logit(call, i, at));
    loss[i] = static_cast<T>(sum);
  });
}

template <class T>
void backward(const Arguments& args, const Tensor& grad_loss, const Tensor& grad_a, const Tensor& grad_b,
              const Tensor& grad_temperature, const Tensor& grad_bias) {
  const auto pointer = [](const Tensor& t) { return t.numel() ? mutable_data<T>(t) : nullptr; };
  T *const a = pointer(grad_a), *const b = pointer(grad_b);
  Backward<T> run(args, grad_loss, nullptr, a != nullptr || b == nullptr, b != nullptr);
  const double temperature = run.finish(a, b);
  if (T* const to = pointer(grad_temperature)) *to = static_cast<T>(temperature);
  if (T* const to = pointer(grad_bias)) *to = static_cast<T>(run.finish_bias());
}

void sigmoid_loss_(Tensor a, Tensor b, double temperature, double bias, bool normalize, Tensor loss) {
  const auto args = arguments(a, b, temperature, bias, normalize);
  check_output(loss, working(a), a.size(0), "loss");
  if (loss.numel() == 0) return;
  if (working(a) == ScalarType::Double)
    forward(args, mutable_data<double>(loss));
  else
    forward(args, mutable_data<float>(loss));
}

void sigmoid_loss_backward_(Tensor grad_loss, Tensor a, Tensor b, double temperature, double bias, bool normalize,
                            Tensor grad_a, Tensor grad_b, Tensor grad_temperature, Tensor grad_bias) {
  const auto args = arguments(a, b, temperature, bias, normalize);
  const auto dtype = working(a);
  STD_TORCH_CHECK(grad_loss.scalar_type() == dtype && grad_loss.dim() == 1 && grad_loss.size(0) == a.size(0),
                  "grad_loss must be [", a.size(0), "] of the working dtype");
  check_output(grad_a, dtype, a.numel(), "grad_a");
  check_output(grad_b, dtype, b.numel(), "grad_b");
  check_output(grad_temperature, dtype, 1, "grad_temperature");
  check_output(grad_bias, dtype, 1, "grad_bias");
  if (dtype == ScalarType::Double)
    backward<double>(args, grad_loss, grad_a, grad_b, grad_temperature, grad_bias);
  else
    backward<float>(args, grad_loss, grad_a, grad_b, grad_temperature, grad_bias);
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) {
  m.impl("sigmoid_loss_native_", TORCH_BOX(&clead::sigmoid_loss_));
  m.impl("sigmoid_loss_native_backward_", TORCH_BOX(&clead::sigmoid_loss_backward_));
}
