// The false-negative rules of one call, as the vectors that the tile kernels read.
#pragma once

#include "contrastive_call.h"

namespace clead {
namespace {

template <class T>
const T* cosine_scale(Call<T>& call, const Rows<T>& rows) {
  T* const scale = call.vector(rows.size, T(1));
  if (!call.args.normalize)
    for (int64_t i = 0; i < rows.size; ++i) scale[i] = static_cast<T>(rows.inverse_norm[i]);
  return scale;
}

template <class T>
const T* squares(Call<T>& call, const Rows<T>& rows) {
  T* const square = call.vector(rows.size, T(0));
  parallel_rows(rows.size, [&](int64_t i) {
    const T* const row = rows.unit + i * call.p.ld;
    double value = 0;
    CLEAD_ISA_CALL(contrast_set(value, row, row, call.d));
    square[i] = static_cast<T>(value);
  });
  return square;
}

// What makes cosines of c_ij.
template <class T>
void set_cosine_scales(Call<T>& call) {
  call.a.cosine_scale = cosine_scale(call, call.a);
  call.b.cosine_scale = call.symmetric ? call.a.cosine_scale : cosine_scale(call, call.b);
  if (!call.p.euclidean) return;
  call.a.square = squares(call, call.a);
  call.b.square = call.symmetric ? call.a.square : squares(call, call.b);
}

template <class T>
void read_thresholds(const Tensor& t, int64_t m, T* cut) {
  STD_TORCH_CHECK(t.dim() == 0 || (t.dim() == 1 && t.size(0) == m), "row_threshold must be 0-d or [", m, "]");
  constexpr auto kWanted = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(t.scalar_type() == kWanted, "row_threshold must have the working dtype");
  const T* const from = const_data<T>(t);
  const int64_t step = t.dim() == 0 ? 0 : t.stride(0);
  for (int64_t i = 0; i < m; ++i) cut[i] = from[i * step];
}

template <class T>
void set_labels(Call<T>& call, bool given) {
  const int64_t m = call.m, n = call.n, padded_m = call.padded(m), padded_n = call.padded(n);
  const auto& args = call.args;
  call.labels = given ? Labels(*args.clusters, m, padded_m, *args.candidate_clusters, n, padded_n, args.each_level)
                      : Labels(m, padded_m, n, padded_n);
  auto &a = call.a, &b = call.b;
  call.p.levels = call.labels.levels, a.cluster_step = padded_m, b.cluster_step = padded_n;
  a.cluster_as_row = call.labels.of_rows.data(), b.cluster_as_column = call.labels.of_columns.data();
  a.cluster_as_column = call.symmetric ? b.cluster_as_column : a.cluster_as_row;
  b.cluster_as_row = call.symmetric ? a.cluster_as_row : b.cluster_as_column;
}

// cuts are the top-k rule's, of each row, or null without that rule.
template <class T>
void set_rules(Call<T>& call, const T* cuts) {
  const auto& args = call.args;
  auto& p = call.p;
  const bool clusters = args.clusters && args.candidate_clusters;
  const bool threshold = args.threshold || args.row_threshold;
  p.false_negatives = clusters || threshold || cuts != nullptr;
  p.threshold_only = p.false_negatives && !clusters && args.normalize && !p.euclidean;
  p.all_rules = args.all_rules && clusters;
  p.attract = args.attract && p.false_negatives;
  if (!p.false_negatives) return;
  // An absent threshold calls all pairs above it if all rules must hold, else none.
  const T infinity = std::numeric_limits<T>::infinity(), absent = args.all_rules ? -infinity : infinity;
  T* const cut = call.vector(call.m, args.threshold ? static_cast<T>(*args.threshold) : absent);
  if (args.row_threshold) read_thresholds(*args.row_threshold, call.m, cut);
  for (int64_t i = 0; cuts != nullptr && i < call.m; ++i) {
    const T below = std::nextafter(cuts[i], -infinity);  // cosines above it are the cut itself and larger ones
    cut[i] = args.all_rules ? std::max(cut[i], below) : std::min(cut[i], below);
  }
  call.a.threshold = cut;
  if (call.symmetric) call.b.threshold = cut;
  set_cosine_scales(call);
  set_labels(call, clusters);
  if (p.attract && !call.positives.grouped) {
    call.no_groups = Labels(call.m, call.padded(call.m), call.n, call.padded(call.n));
    call.a.group = call.no_groups.of_rows.data(), call.b.group = call.no_groups.of_columns.data();
  }
}

// Adds the positives that the forward pass attracted to those of each row, with their mean, and keeps both.
template <class T>
void count_attracted(Call<T>& call, T* statistics) {
  Buffer<double> means(call.m);
  parallel_rows(call.m, [&](int64_t i) {
    double found = call.a.attracted.count[i], dots = call.a.attracted.dots[i];
    if (call.symmetric) found += call.b.attracted.count[i], dots += call.b.attracted.dots[i];
    int64_t& count = call.positives.count[i];
    const double sum = count == 0 ? dots : call.mean_positive(i) * static_cast<double>(count) + dots;
    count += std::llround(found);
    means[i] = count == 0 ? 0 : sum / static_cast<double>(count);
    call.keep(statistics, kMean, i, means[i]);
    statistics[kCount * call.m + i] = static_cast<T>(count);
  });
  call.means = std::move(means);
}

template <class T>
void restore_attracted(Call<T>& call, const T* statistics) {
  call.means = Buffer<double>(call.m);
  for (int64_t i = 0; i < call.m; ++i) {
    call.means[i] = call.statistic(statistics, kMean, i);
    call.positives.count[i] = std::llround(static_cast<double>(statistics[kCount * call.m + i]));
  }
}

}  // namespace
}  // namespace clead
