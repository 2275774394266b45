// The arguments of the contrastive ops, and loops over rows.
#pragma once

#include "contrastive_pairs.h"
#include "parallel.h"

namespace clead {
namespace {

// Of a positive: all pairs, itself and the negatives, or the negatives.
enum class Denominator : int64_t { all, own_positive, negatives };

// Rows of the statistics that the forward pass keeps for the backward pass: n and p of the reference; log(1 - p_ij) of a
// dominant negative (0: there is none; see Spread); the positives' mean where some are attracted; of reweighted negatives
// the logarithms of the sums of their first and second exponentials; what rounding takes from these six; the sum of
// p / (1 - p) over the other negatives; the slope of Reweighted; the top-k rule's cut; and the number of positives.
enum Statistic : int64_t {
  kNegatives, kPositives, kComplement, kMean, kHard, kSoft, kRests, kOdds = 2 * kRests, kSlope, kCut, kCount, kStatistics
};

// The arguments both ops share, in the order of their schemas.
struct Arguments {
  Tensor anchors;
  std::optional<Tensor> candidates;
  double temperature;
  bool normalize;
  int64_t self_offset = -1;
  std::optional<Tensor> self_index;
  int64_t positive_offset = -1;
  std::optional<Tensor> positive_index, groups, candidate_groups;
  std::optional<double> threshold;
  std::optional<Tensor> row_threshold;
  int64_t topk = 0;
  std::optional<Tensor> clusters, candidate_clusters;
  bool each_level = false, all_rules = false, attract = false;
  double weight = 0;
  int64_t denominator = 0;  // a Denominator
  bool inside = false;      // positives are averaged inside the logarithm
  double spread = 0;
  double debias = 0;
  double hard_negative_beta = 0;
  bool euclidean = false;
  bool both_ways = false;  // candidates are anchors of the anchors too: their losses follow, 2M in all
  std::optional<double> bias = {};  // of the sigmoid loss, of which the others are none
};

// Left-out pairs are far enough from all others to have no exponential even when c_ij is multiplied by this.
constexpr double kLeastSharpness = 1e-20;
constexpr double kLeastTemperature = 9.9e-9, kMostTemperature = 1.01e18;  // 1e-8 to 1e18, however rounded

// 0 where it would make no difference.
double beta_of(const Arguments& x) {
  return x.hard_negative_beta > kLeastSharpness * x.temperature ? x.hard_negative_beta : 0;
}

int64_t losses_of(const Arguments& x) { return x.anchors.size(0) * (x.both_ways ? 2 : 1); }

bool is_reweighted(const Arguments& x) { return x.debias > 0 || beta_of(x) > 0; }

void check_rows(const Tensor& x, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == like.size(1), name, " must be [rows, d] with one d for all");
  STD_TORCH_CHECK(x.scalar_type() == like.scalar_type(), name, " must have the dtype of anchors");
  STD_TORCH_CHECK(x.size(0) < (int64_t(1) << 31) - 4096 && x.size(1) < int64_t(1) << 28, name,
                  " must have fewer than 2^31 - 4096 rows and 2^28 columns");
}

ScalarType working(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_output(const Tensor& t, ScalarType dtype, int64_t numel, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous() && (t.numel() == numel || t.numel() == 0), name,
                  " must be contiguous, of the working dtype, with ", numel, " elements or none");
}

template <class F>
void parallel(int64_t size, F&& each) {
  parallel_for(size, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) each(i);
  });
}

// For chunks of rows of about equal work.
template <class F>
void parallel_rows(int64_t size, F&& each) {
  constexpr int64_t kRows = 64;
  parallel((size + kRows - 1) / kRows, [&](int64_t chunk) {
    for (int64_t i = chunk * kRows; i < std::min(size, (chunk + 1) * kRows); ++i) each(i);
  });
}

}  // namespace
}  // namespace clead
