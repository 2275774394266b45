// The term -sum log(1 - p_ij) of a row: a second pass forward, and weights for the backward pass.
#pragma once

#include "contrastive_sums.h"

namespace clead {
namespace {

// The factor that makes p_ij of the exponentials of row i; sets the row's shift.
template <class T>
double prepare_share(Call<T>& call, int64_t i, double n, double p, double mean) {
  const double mass = 1 / (1 + std::exp(p - n)), log_negatives = (n + mean / call.args.temperature) * kLog2e;
  call.a.shift[i] = 0;
  if (n == kNone) return 0;
  call.a.shift[i] = shift_for(call, log_negatives);
  return mass * std::exp2(static_cast<double>(call.a.shift[i]) - log_negatives);
}

// Adds the term of Spread to the losses, in a second pass over the pairs, and what its gradient needs to the statistics.
template <class T>
void add_spread(Call<T>& call, T* loss, T* statistics) {
  auto& a = call.a;
  a.shift = call.vector(call.m, T(0));
  for (double** sums : {&a.spread.logs, &a.spread.odds, &a.spread.others.sum}) *sums = call.doubles(call.m, 0.0);
  const Buffer<bool> dominant(call.padded(call.m), false);
  a.spread.share = call.vector(call.m, T(0)), a.spread.dominant = dominant.data();
  a.spread.others.max = call.vector(call.m, static_cast<T>(-1e33));
  parallel_rows(call.m, [&](int64_t i) {
    const double n = call.statistic(statistics, kNegatives, i), p = call.statistic(statistics, kPositives, i);
    if (call.positives.count[i] > 0)
      a.spread.share[i] = static_cast<T>(prepare_share(call, i, n, p, call.mean_positive(i)));
  });
  call.for_each_tile(true, [&](int64_t i, int64_t j, T* strip) {
    if constexpr (sizeof(T) == 4)
      if (call.bf16) {
        CLEAD_BF16_CALL(bf16_spread(call.p, call.q, i, j, strip));
        return;
      }
    CLEAD_ISA_CALL(contrast_spread(call.p, i, j, strip));
  });
  for (int64_t i = 0; i < call.m; ++i) {
    if (call.positives.count[i] == 0) continue;
    double sum = a.spread.logs[i];
    if (dominant[i]) {
      const double n = call.statistic(statistics, kNegatives, i), p = call.statistic(statistics, kPositives, i);
      const double of_positives = -softplus(n - p);
      const double of_others = log_of(a.spread.others.sum[i] * a.spread.share[i], a.spread.others.max[i], -1e29);
      const double complement = of_positives + softplus(of_others - of_positives);
      call.keep(statistics, kComplement, i, complement);
      sum -= complement;
    }
    loss[i] = static_cast<T>(static_cast<double>(loss[i]) + call.args.spread * sum);
    statistics[kOdds * call.m + i] = static_cast<T>(a.spread.odds[i]);
  }
}

// The vectors of Spread; returns lambda times the sum of p / (1 - p), times the mass of the positives.
template <class T>
double weigh_spread(Call<T>& call, int64_t i, double g, double n, double p, double mean, const T* statistics) {
  const double odds = statistics[kOdds * call.m + i], complement = call.statistic(statistics, kComplement, i);
  const double log_positives = -softplus(n - p);
  auto& spread = call.a.spread;
  spread.share[i] = static_cast<T>(prepare_share(call, i, n, p, mean));
  spread.weight[i] = static_cast<T>(g * call.args.spread);
  spread.factor[i] = static_cast<T>(1 - odds);
  double on_positives = odds * std::exp(log_positives);
  if (complement != 0) {
    const double log_odds = std::log(-std::expm1(complement)) - complement;
    const double log_total = n + softplus(p - n) + mean / call.args.temperature;
    const double shift = (log_total - log_odds) * kLog2e;
    spread.shift[i] = static_cast<T>(std::fabs(shift) < 4e6 ? std::floor(shift) : shift);
    spread.scale[i] = static_cast<T>(std::exp2(static_cast<double>(spread.shift[i]) - shift));
    on_positives += std::exp(log_positives + log_odds);
  }
  return call.args.spread * on_positives;
}

}  // namespace
}  // namespace clead
