// Positives in the tiles with denominators of their own: a second pass forward, and weights for the backward pass.
#pragma once

#include "contrastive_false_negatives.h"
#include "contrastive_sums.h"

namespace clead {
namespace {

template <class T>
bool own_in_tile(const Call<T>& call) {
  return static_cast<Denominator>(call.args.denominator) == Denominator::own_positive && call.a.group != nullptr;
}

// An integer and what is left of log, which the tiles subtract one after the other to lose nothing.
template <class T>
T whole_part(double log) {
  return static_cast<T>(std::fabs(log) < 4e6 ? std::floor(log) : log);
}

template <class T>
void set_own(Call<T>& call, const T* statistics) {
  auto& own = call.a.own;
  call.p.own = true;
  own.shift = call.vector(call.m, T(0)), own.rest = call.vector(call.m, T(0));
  parallel_rows(call.m, [&](int64_t i) {
    const double n = call.statistic(statistics, kNegatives, i);
    if (n == kNone) return;
    const double log = (n + call.mean_positive(i) / call.args.temperature) * kLog2e;
    own.shift[i] = whole_part<T>(log);
    own.rest[i] = static_cast<T>(log - static_cast<double>(own.shift[i]));
  });
}

// The loss of row i, and its statistics: log of the sum of the positives' probabilities, and the negatives' weight.
template <class T>
void finish_own(Call<T>& call, int64_t i, T* loss, T* statistics) {
  const auto& own = call.a.own;
  const double n = call.statistic(statistics, kNegatives, i), mean = call.mean_positive(i);
  const auto count = static_cast<double>(call.positives.count[i]);
  loss[i] = 0;
  if (count == 0 || n == kNone) return;
  double logs = own.logs[i], complements = own.complements[i];
  double shares = log_of(own.shares.sum[i], own.shares.max[i], -1e29);
  double products = log_of(own.products.sum[i], own.products.max[i], -1e29);
  own_positives(call, i, n, mean, [&](int64_t, double value) {
    const double complement = -std::expm1(-value);
    logs += value, complements += complement;
    shares = log_add(shares, -value), products = log_add(products, std::log(complement) - value);
  });
  double value = logs, weight = complements / count;
  if (call.args.inside) {  // where all probabilities are close to 1 their complements have more digits
    value = weight < 0.5 ? -std::log1p(-weight) : std::log(count) - shares;
    weight = std::exp(products - shares);
  } else {
    value /= count;
  }
  loss[i] = static_cast<T>(value);
  call.keep(statistics, kComplement, i, shares);
  statistics[kOdds * call.m + i] = static_cast<T>(weight);
}

template <class T>
void own_losses(Call<T>& call, T* loss, T* statistics) {
  set_own(call, static_cast<const T*>(statistics));
  auto& own = call.a.own;
  own.logs = call.doubles(call.m, 0.0), own.complements = call.doubles(call.m, 0.0);
  for (Sums<T>* sums : {&own.shares, &own.products})
    *sums = {call.doubles(call.m, 0.0), call.vector(call.m, static_cast<T>(-1e33))};
  call.for_each_tile(true, [&](int64_t i, int64_t j, T* strip) {
    if constexpr (sizeof(T) == 4)
      if (call.bf16) {
        CLEAD_BF16_CALL(bf16_own(call.p, call.q, i, j, strip));
        return;
      }
    CLEAD_ISA_CALL(contrast_own(call.p, i, j, strip));
  });
  parallel_rows(call.m, [&](int64_t i) { finish_own(call, i, loss, statistics); });
}

// The vectors of the backward pass for row i and the gradients by its listed positives; returns the negatives' weight.
template <class T>
double weigh_own_in_tile(Call<T>& call, int64_t i, double g, double n, double mean, const T* statistics,
                         double* listed) {
  auto& own = call.a.own;
  const bool inside = call.args.inside;
  const double shares = call.statistic(statistics, kComplement, i);
  const double each = inside ? 1 : 1 / static_cast<double>(call.positives.count[i]);
  const double log = (n + mean / call.args.temperature + shares) * kLog2e;
  own_positives(call, i, n, mean, [&](int64_t at, double value) {
    listed[at] += g * (inside ? std::exp(-value - shares) : each) * std::expm1(-value);
  });
  if (n == kNone) return 0;
  own.weight[i] = static_cast<T>(-g * each);
  own.share_shift[i] = whole_part<T>(log);
  own.share_scale[i] = static_cast<T>(std::exp2(static_cast<double>(own.share_shift[i]) - log));
  own.share[i] = static_cast<T>(std::exp(-shares));
  return static_cast<double>(statistics[kOdds * call.m + i]);
}

}  // namespace
}  // namespace clead
