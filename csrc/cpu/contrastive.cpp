#include "contrastive_backward.h"

namespace clead {
namespace {

template <class T>
void backward_typed(const Arguments& args, const Tensor& grad_loss, const Tensor& statistics, const Tensor& grad_a,
                    const Tensor& grad_b, const Tensor& grad_temperature) {
  const bool wants_temperature = grad_temperature.numel() > 0;
  const auto pointer = [](const Tensor& t) { return t.numel() ? mutable_data<T>(t) : nullptr; };
  T* const a = pointer(grad_a);
  T* const b = pointer(grad_b);
  Backward<T> run(args, grad_loss, const_data<T>(statistics),
                  a != nullptr || (wants_temperature && b == nullptr), b != nullptr);
  const double temperature = run.finish(a, b);
  if (wants_temperature) *pointer(grad_temperature) = static_cast<T>(temperature);
}

void check(const Arguments& x) {
  STD_TORCH_CHECK(x.anchors.dim() == 2, "anchors must be [rows, d]");
  check_rows(x.anchors, x.anchors, "anchors");
  if (x.candidates) check_rows(*x.candidates, x.anchors, "candidates");
  STD_TORCH_CHECK(x.denominator >= 0 && x.denominator <= 2, "denominator must be 0, 1 or 2");
  STD_TORCH_CHECK(x.topk >= 0 && x.spread >= 0, "topk and spread must be at least 0");
  STD_TORCH_CHECK(x.spread == 0 || (x.denominator == 0 && !x.inside), "spread is a term of the plain loss");
  STD_TORCH_CHECK(x.debias >= 0 && x.debias < 1 && x.hard_negative_beta >= 0,
                  "debias must be in [0, 1) and hard_negative_beta at least 0");
  STD_TORCH_CHECK(x.debias == 0 || (x.normalize && !x.euclidean), "debias needs normalised rows and cosines");
  STD_TORCH_CHECK(x.spread == 0 || (x.debias == 0 && x.hard_negative_beta == 0), "spread is a term of the plain loss");
  const bool pairs = x.candidates && x.candidates->size(0) == x.anchors.size(0) && x.positive_offset == 0 &&
                     x.self_offset < 0 && !x.self_index && !x.positive_index && !x.groups;
  const bool plain = !x.threshold && !x.row_threshold && x.topk == 0 && !x.clusters && x.spread == 0 && x.debias == 0 &&
                     x.hard_negative_beta == 0 && !x.euclidean;
  STD_TORCH_CHECK(!x.both_ways || (pairs && plain),
                  "both_ways is for as many candidates as anchors, candidate i positive for anchor i, and no other rule");
  STD_TORCH_CHECK(!x.candidate_groups || x.groups, "candidate_groups need groups");
  STD_TORCH_CHECK(!x.groups || x.candidate_groups || !x.candidates || x.candidates->size(0) == x.anchors.size(0),
                  "groups need candidate_groups unless there are as many candidates as anchors");
  isa();  // may throw, which must not happen on a worker thread
}

#define CLEAD_ARGUMENTS                                                                                                \
  Tensor anchors, std::optional<Tensor> candidates, double temperature, bool normalize, int64_t self_offset,           \
      std::optional<Tensor> self_index, int64_t positive_offset, std::optional<Tensor> positive_index,                 \
      std::optional<Tensor> groups, std::optional<Tensor> candidate_groups, std::optional<double> threshold,           \
      std::optional<Tensor> row_threshold, int64_t topk, std::optional<Tensor> clusters,                               \
      std::optional<Tensor> candidate_clusters, bool each_level, bool all_rules, bool attract, double weight,          \
      int64_t denominator, bool inside, double spread, double debias, double hard_negative_beta, bool euclidean,        \
      bool both_ways
#define CLEAD_COLLECTED                                                                                                \
  {anchors,            candidates,         temperature,      normalize, self_offset,   self_index,  positive_offset, \
   positive_index,     groups,             candidate_groups, threshold, row_threshold, topk,        clusters,        \
   candidate_clusters, each_level,         all_rules,        attract,   weight,        denominator, inside,          \
   spread,             debias,             hard_negative_beta, euclidean, both_ways}

void contrastive_forward_(CLEAD_ARGUMENTS, Tensor loss, Tensor num_positives, Tensor statistics) {
  const Arguments args CLEAD_COLLECTED;
  check(args);
  const int64_t losses = losses_of(args);
  check_output(loss, working(anchors), losses, "loss");
  check_output(num_positives, ScalarType::Long, losses, "num_positives");
  check_output(statistics, working(anchors), kStatistics * losses, "statistics");
  STD_TORCH_CHECK(loss.numel() == losses && num_positives.numel() == losses &&
                      statistics.numel() == kStatistics * losses, "outputs are needed");
  if (losses == 0) return;
  auto* const counts = mutable_data<int64_t>(num_positives);
  if (working(anchors) == ScalarType::Double)
    forward_typed(args, mutable_data<double>(loss), counts,
                  mutable_data<double>(statistics));
  else
    forward_typed(args, mutable_data<float>(loss), counts,
                  mutable_data<float>(statistics));
}

void contrastive_backward_(Tensor grad_loss, Tensor statistics, CLEAD_ARGUMENTS, Tensor grad_anchors,
                           Tensor grad_candidates, Tensor grad_temperature) {
  const Arguments args CLEAD_COLLECTED;
  check(args);
  const int64_t m = anchors.size(0), d = anchors.size(1), losses = losses_of(args);
  const auto dtype = working(anchors);
  STD_TORCH_CHECK(grad_loss.scalar_type() == dtype && grad_loss.dim() == 1 && grad_loss.size(0) == losses,
                  "grad_loss must be [", losses, "] of the working dtype");
  check_output(statistics, dtype, kStatistics * losses, "statistics");
  STD_TORCH_CHECK(statistics.numel() == kStatistics * losses, "statistics must be [", kStatistics, ", ", losses, "]");
  check_output(grad_anchors, dtype, m * d, "grad_anchors");
  check_output(grad_candidates, dtype, (candidates ? candidates->size(0) : m) * d, "grad_candidates");
  check_output(grad_temperature, dtype, 1, "grad_temperature");
  if (dtype == ScalarType::Double)
    backward_typed<double>(args, grad_loss, statistics, grad_anchors, grad_candidates, grad_temperature);
  else
    backward_typed<float>(args, grad_loss, statistics, grad_anchors, grad_candidates, grad_temperature);
}

void hardest_(Tensor anchors, Tensor candidates, bool normalize, Tensor positives, Tensor hardest) {
  Arguments args{anchors, candidates, 1.0, normalize};
  args.positive_index = positives;
  check(args);
  check_output(hardest, ScalarType::Long, anchors.size(0), "hardest");
  STD_TORCH_CHECK(hardest.numel() == anchors.size(0), "hardest is needed");
  if (anchors.size(0) == 0) return;
  auto* const out = mutable_data<int64_t>(hardest);
  if (working(anchors) == ScalarType::Double)
    hardest_typed<double>(args, out);
  else
    hardest_typed<float>(args, out);
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) {
  m.impl("contrastive_native_", TORCH_BOX(&clead::contrastive_forward_));
  m.impl("instance_margin_native_", TORCH_BOX(&clead::hardest_));
  m.impl("contrastive_native_backward_", TORCH_BOX(&clead::contrastive_backward_));
}
