// The forward pass around the tile kernels: statistics and losses.
#pragma once

#include "contrastive_false_negatives.h"

namespace clead {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

double log_of(double sum, double max, double lowest) {
  return max < lowest || sum == 0 ? kNone : std::log(sum) + max / kLog2e;
}

double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

// The logit of a listed pair of the sigmoid loss.
template <class T>
double listed_logit(const Call<T>& call, int64_t i, int64_t at) {
  return call.listed_score(i, at) / call.args.temperature + *call.args.bias;
}

// What to take from the exponents of a row whose sum has this logarithm: an integer, or where T has no integer as close
// as that, the nearest number.
template <class T>
T shift_for(const Call<T>& call, double log) {
  if (call.p.bounded) return call.p.top;
  return static_cast<T>(std::fabs(log) < 4e6 ? std::floor(log) : log);
}

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

// -log of the probability of every listed positive of row i where its denominator is its own: visit(at, value).
template <class T, class Visit>
void own_positives(const Call<T>& call, int64_t i, double over_negatives, double mean, Visit&& visit) {
  for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
    visit(at, softplus(over_negatives - (call.listed_score(i, at) - mean) / call.args.temperature));
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

template <class T>
void visit_forward(Call<T>& call) {
  call.for_each_tile(!call.symmetric, [&](int64_t i, int64_t j, T* strip) {
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
  visit_forward(call);
  Buffer<double> logs(call.m);
  parallel_rows(call.m,
                [&](int64_t i) { logs[i] = log_sum(call, a.negatives, b.negatives, call.p.k_negatives, i); });
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
    if (call.p.false_negatives) number = log_negatives(call, kLeastPower);
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
  std::fill(statistics, statistics + kStatistics * call.m, T(0));
  if (args.topk > 0) find_cuts(call, statistics + kCut * call.m);
  set_rules(call, args.topk > 0 ? static_cast<const T*>(statistics + kCut * call.m) : nullptr);
  const Buffer<double> negatives = log_negatives(call, 1 + beta_of(args));
  const Sums<T> as_row = a.positives, as_column = b.positives;
  const Reweighted<T> reweighted(call);
  parallel_rows(call.m, [&](int64_t i) {
    const int64_t count = call.positives.count[i];
    const double mean = call.mean_positive(i);
    double n = negatives[i] - mean / args.temperature, p = kNone;
    if (count == 1)
      p = std::isnan(mean) ? mean : 0;
    else if (count > 1)
      p = call.positives.grouped ? log_sum(call, as_row, as_column, call.p.k, i) - mean / args.temperature
                                 : log_positives(call, i, mean);
    if (is_reweighted(args)) n = reweighted.keep(statistics, i, negatives[i], p, mean);
    loss[i] = static_cast<T>(row_loss(call, i, n, p, mean));
    counts[i] = count;
    call.keep(statistics, kNegatives, i, n);
    call.keep(statistics, kPositives, i, p);
  });
  if (args.spread > 0) add_spread(call, loss, statistics);
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
