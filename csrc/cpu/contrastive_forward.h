// The forward pass around the tile kernels: statistics and losses.
#pragma once

#include "contrastive_own.h"
#include "contrastive_spread.h"

namespace clead {
namespace {

// The k largest cosines of negatives in every row, and where they are: finish(i, best, column), descending.
template <class T, class Finish>
void search(Call<T>& call, int64_t k, Finish&& finish) {
  const int64_t block = call.p.block, column_blocks = call.blocks(call.n);
  call.for_each_row_block([&](int64_t row_block, T* strip) {
    const Buffer<T> best(block * k, -std::numeric_limits<T>::infinity());
    const Buffer<int32_t> column(block * k, -1);
    const Search<T> found{k, best.data(), column.data()};
    for (int64_t j = 0; j < column_blocks; ++j) {
      if constexpr (sizeof(T) == 4)
        if (call.bf16) {
          CLEAD_BF16_CALL(bf16_search(call.p, call.q, row_block, j, strip, found));
          continue;
        }
      CLEAD_ISA_CALL(contrast_search(call.p, row_block, j, strip, found));
    }
    const int64_t first = row_block * block, end = std::min(call.m, first + block);
    for (int64_t i = first; i < end; ++i) finish(i, best.data() + (i - first) * k, column.data() + (i - first) * k);
  });
}

// The top-k rule as a cut of each row, into cuts.
template <class T>
void find_cuts(Call<T>& call, T* cuts) {
  const int64_t k = std::min(call.args.topk, std::max<int64_t>(call.n, 1));
  if (!call.args.normalize || call.p.euclidean) set_cosine_scales(call);
  search(call, k, [&](int64_t i, const T* best, const int32_t*) { cuts[i] = best[k - 1]; });
}

// The loss of row i from n and p, without the term of Spread.
template <class T>
double row_loss(const Call<T>& call, int64_t i, double n, double p, double mean) {
  const auto count = static_cast<double>(call.positives.count[i]);
  if (count == 0) return 0;
  const bool inside = call.args.inside;
  switch (static_cast<Denominator>(call.args.denominator)) {
    case Denominator::all: return softplus(n - p) + (inside ? std::log(count) : p);
    case Denominator::negatives: return n == kNone ? 0 : inside ? n - p + std::log(count) : n;
    case Denominator::own_positive: break;
  }
  if (own_in_tile(call)) return 0;  // own_losses follows
  double sum = 0, least = std::numeric_limits<double>::infinity();
  own_positives(call, i, n, mean, [&](int64_t, double value) { sum += value, least = std::min(least, value); });
  if (!inside) return sum / count;
  sum = 0;
  own_positives(call, i, n, mean, [&](int64_t, double value) { sum += std::exp(least - value); });
  return least - std::log(sum / count);
}

// log of the sum over the positives of row i, less the mean.
template <class T>
double log_positives(const Call<T>& call, int64_t i, double mean) {
  double max = kNone, sum = 0;
  for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
    max = std::max(max, call.listed_score(i, at));
  for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
    sum += std::exp((call.listed_score(i, at) - max) / call.args.temperature);
  return std::log(sum) + (max - mean) / call.args.temperature;
}

template <class T>
void visit_forward(Call<T>& call) {
  call.for_each_tile(!call.p.both, [&](int64_t i, int64_t j, T* strip) {
    if constexpr (sizeof(T) == 4)
      if (call.bf16) {
        CLEAD_BF16_CALL(bf16_forward(call.p, call.q, i, j, strip));
        return;
      }
    CLEAD_ISA_CALL(contrast_forward(call.p, i, j, strip));
  });
}

template <class T>
double log_sum(const Call<T>& call, const Sums<T>& as_row, const Sums<T>& as_column, T k, int64_t i) {
  const double max = call.symmetric ? std::max(as_row.max[i], as_column.max[i]) : as_row.max[i];
  double sum = as_row.sum[i] * std::exp2(as_row.max[i] - max);
  if (call.symmetric) sum += as_column.sum[i] * std::exp2(as_column.max[i] - max);
  return log_of(sum, max, -1e29 * std::min(static_cast<double>(k), 1e3));
}

// The logarithm of sum k_ij e^(power s_ij) over the negatives of every row; sums over positives are left in a and b.
template <class T>
Buffer<double> log_negatives(Call<T>& call, double power) {
  auto &a = call.a, &b = call.b;
  call.raise_negatives(power);
  const T first = call.p.bounded ? call.p.top : static_cast<T>(-1e33);
  const auto sums = [&](int64_t rows) { return Sums<T>{call.doubles(rows, 0.0), call.vector(rows, first)}; };
  a.negatives = sums(call.m), a.positives = sums(call.m);
  b.negatives = sums(call.n), b.positives = sums(call.n);
  if (call.p.attract) {
    a.attracted = {call.doubles(call.m, 0.0), call.doubles(call.m, 0.0)};
    b.attracted = {call.doubles(call.n, 0.0), call.doubles(call.n, 0.0)};
  }
  visit_forward(call);
  Buffer<double> logs(call.losses);
  parallel_rows(call.m, [&](int64_t i) {
    logs[i] = log_sum(call, a.negatives, b.negatives, call.p.k_negatives, i);
    if (call.args.both_ways) logs[call.m + i] = log_sum(call, b.negatives, b.negatives, call.p.k_negatives, i);
  });
  return logs;
}

// What forms that reweigh the negatives make of their sums.
template <class T>
class Reweighted {
 public:
  // After the first sums.
  explicit Reweighted(Call<T>& call) : call(call) {
    if (!is_reweighted(call.args)) return;
    if (beta_of(call.args) > 0) soft = log_negatives(call, beta_of(call.args));
    // A power so small that all exponentials are 1, but those of what is left out.
    if (call.p.false_negatives) number = log_negatives(call, kLeastSharpness * call.args.temperature);
  }

  // n of row i, from the logarithm of its first sum. By the mean of the positives' exponentials its derivative is
  // 1 - slope, and by its negatives slope times that of the mass before the correction; slope 0: the floor.
  double keep(T* statistics, int64_t i, double hard, double p, double mean) const {
    const double number_log = log_number(i), debias = call.args.debias;
    double total = hard - mean / call.args.temperature, slope = 1;
    call.keep(statistics, kHard, i, hard);
    if (beta_of(call.args) > 0) {
      total = hard == kNone ? kNone : total + number_log - soft[i];
      call.keep(statistics, kSoft, i, soft[i]);
    }
    if (debias > 0 && hard > kNone) {
      const double count = static_cast<double>(std::max<int64_t>(call.positives.count[i], 1));
      const double excess = std::exp(number_log + std::log(debias) + p - std::log(count) - total);
      const double mass = total + std::log1p(-std::min(excess, 1.0)) - std::log1p(-debias);
      const double floor = number_log + (-1 - mean) / call.args.temperature;
      slope = mass > floor ? 1 / (1 - excess) : 0;
      total = mass > floor ? mass : floor;
    }
    statistics[kSlope * call.m + i] = static_cast<T>(slope);
    return total;
  }

 private:
  // log of the weights of all negatives.
  double log_number(int64_t i) const {
    if (call.p.false_negatives) return number[i];
    const bool itself = call.p.self != nullptr && call.p.self[i] >= 0;
    return std::log(static_cast<double>(call.n - call.positives.count[i] - itself));
  }

  const Call<T>& call;
  Buffer<double> soft, number;
};

template <class T>
void forward_typed(const Arguments& args, T* loss, int64_t* counts, T* statistics) {
  Call<T> call(args);
  auto &a = call.a, &b = call.b;
  call.sum_groups();
  if (call.bf16) call.load_bf16(false);
  std::fill(statistics, statistics + kStatistics * call.losses, T(0));
  if (args.topk > 0) find_cuts(call, statistics + kCut * call.m);
  set_rules(call, args.topk > 0 ? static_cast<const T*>(statistics + kCut * call.m) : nullptr);
  const Buffer<double> negatives = log_negatives(call, 1 + beta_of(args));
  const Sums<T> as_row = a.positives, as_column = b.positives;
  if (call.p.attract) count_attracted(call, statistics);
  const Reweighted<T> reweighted(call);
  const auto finish = [&](int64_t i, int64_t at) {  // loss number `at`, of the pairs of row i
    const int64_t count = call.positives.count[i];
    const double mean = call.mean_positive(i);
    double n = negatives[at] - mean / args.temperature, p = kNone;
    if (count == 1)
      p = std::isnan(mean) ? mean : 0;
    else if (count > 1)
      p = log_add(a.group == nullptr ? kNone : log_sum(call, as_row, as_column, call.p.k, i) - mean / args.temperature,
                  call.positives.grouped ? kNone : log_positives(call, i, mean));
    if (is_reweighted(args)) n = reweighted.keep(statistics, i, negatives[i], p, mean);
    loss[at] = static_cast<T>(row_loss(call, i, n, p, mean));
    counts[at] = count;
    call.keep(statistics, kNegatives, at, n);
    call.keep(statistics, kPositives, at, p);
  };
  parallel_rows(call.m, [&](int64_t i) {
    finish(i, i);
    if (args.both_ways) finish(i, call.m + i);
  });
  if (args.spread > 0) add_spread(call, loss, statistics);
  if (own_in_tile(call)) own_losses(call, loss, statistics);
}

// The most similar other candidate of every row, -1 where there is none.
template <class T>
void hardest_typed(const Arguments& args, int64_t* hardest) {
  Call<T> call(args);
  if (call.bf16) call.load_bf16(false);
  search(call, 1, [&](int64_t i, const T*, const int32_t* column) { hardest[i] = *column; });
}

}  // namespace
}  // namespace clead
