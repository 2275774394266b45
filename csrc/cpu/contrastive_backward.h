// The backward pass around the tile kernels: weights and gradients of rows.
#pragma once

#include "contrastive_forward.h"

namespace clead {
namespace {

template <class T>
class Backward {
 public:
  Backward(const Arguments& args, const Tensor& grad_loss, const T* statistics, bool need_a, bool need_b)
      : call(args) {
    auto &a = call.a, &b = call.b;
    call.p.need_a = need_a || call.symmetric, call.p.need_b = need_b || call.symmetric;
    const T* const g = static_cast<const T*>(grad_loss.const_data_ptr());
    const int64_t step = grad_loss.stride(0);
    double largest = 0;
    for (int64_t i = 0; i < call.m; ++i) largest = std::max(largest, std::fabs(static_cast<double>(g[i * step])));
    // Exponents have the room for gradients of about 1, not for a loss scaled by 2^16.
    scale = largest > 0 && std::isfinite(largest) ? std::exp2(std::floor(std::log2(largest))) : 1;
    for (T** vector : {&a.alpha, &a.gamma, &a.rho, &a.shift, &a.positive_shift}) *vector = call.vector(call.m, T(0));
    call.p.spread = args.spread > 0;
    for (T** vector : {&a.spread.share, &a.spread.weight, &a.spread.factor, &a.spread.scale, &a.spread.shift})
      if (call.p.spread) *vector = call.vector(call.m, T(0));
    set_rules(call, args.topk > 0 ? statistics + kCut * call.m : nullptr);
    call.sum_groups();
    if (call.p.attract) restore_attracted(call, statistics);
    if (own_in_tile(call)) set_own(call, statistics);
    for (T** vector : {&a.own.weight, &a.own.share_shift, &a.own.share_scale, &a.own.share})
      if (call.p.own) *vector = call.vector(call.m, T(0));
    listed = Buffer<double>(static_cast<int64_t>(call.positives.list.size()));
    parallel_rows(call.m, [&](int64_t i) { weigh(i, static_cast<double>(g[i * step]) / scale, statistics); });
    if (call.symmetric) {
      b.alpha = a.alpha, b.gamma = a.gamma, b.rho = a.rho, b.shift = a.shift, b.positive_shift = a.positive_shift;
      b.own = a.own;
    }
    if (call.p.need_a) zeros(sums_a, a);
    if (call.bf16)
      call.load_bf16(true);
    else if (call.p.need_b)
      zeros(sums_b, b);
    call.for_each_tile(!call.p.need_b, [&](int64_t i, int64_t j, T* strip) {
      if constexpr (sizeof(T) == 4)
        if (call.bf16) {
          auto* const half = reinterpret_cast<uint16_t*>(strip + (kStrip + kColumnSums) * call.p.block);
          CLEAD_BF16_CALL(bf16_backward(call.p, call.q, i, j, strip, half));
          return;
        }
      CLEAD_ISA_CALL(contrast_backward(call.p, i, j, strip));
    });
  }

  // The gradients by anchors and candidates, each or null, and by temperature.
  double finish(T* grad_a, T* grad_b) {
    const bool grouped = call.positives.grouped;
    const Transposed transposed(call.positives, call.m, call.n);
    double temperature = 0;
    if (call.p.need_a) {
      temperature = project(call.a, grad_a, [&](int64_t i, double* sum) {
        add_sum(call.a.gradient_sum, i, sum);
        if (call.symmetric) add_column_sum(i, sum);
        if (!grouped) add_listed(i, sum);
        if (!grouped && call.symmetric) add_transposed(transposed, i, sum);
      });
    }
    if (call.p.need_b && !call.symmetric) {
      const double other = project(call.b, grad_b, [&](int64_t j, double* sum) {
        add_column_sum(j, sum);
        if (!grouped) add_transposed(transposed, j, sum);
      });
      if (!call.p.need_a) temperature = other;
    }
    return -temperature / call.args.temperature / (call.symmetric ? 2 : 1);
  }

 private:
  // The weights of row i's exponentials, and what its listed positives add.
  void weigh(int64_t i, double g, const T* statistics) {
    const double n = call.statistic(statistics, kNegatives, i), p = call.statistic(statistics, kPositives, i);
    const int64_t count = call.positives.count[i];
    const auto denominator = static_cast<Denominator>(call.args.denominator);
    if (count == 0 || (denominator == Denominator::negatives && n == kNone)) {
      for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at) listed[at] = 0;
      return;
    }
    const double mean = call.mean_positive(i), mass = 1 / (1 + std::exp(p - n));
    double on_negatives = denominator == Denominator::all ? mass : 1, on_positives = 0;
    if (call.p.spread) on_positives = weigh_spread(i, g, n, p, mean, statistics);
    if (denominator == Denominator::own_positive) {
      on_negatives = call.p.own ? weigh_own_in_tile(call, i, g, n, mean, statistics, listed.data())
                                : weigh_own(i, g, n, mean);
    } else {
      if (!call.positives.grouped) weigh_listed(i, g, p, mean, on_negatives, on_positives);
      if (call.a.group != nullptr) weigh_in_tile(i, g, p, mean, on_negatives, on_positives);
    }
    const double log_negatives = (n + mean / call.args.temperature) * kLog2e;
    if (on_negatives == 0) return;
    call.a.shift[i] = shift_for(call, log_negatives);
    call.a.alpha[i] =
        static_cast<T>(g * on_negatives * std::exp2(static_cast<double>(call.a.shift[i]) - log_negatives));
  }

  // d loss / d s_ip of a positive with e^x_ip / e^p = among, where all positives share a denominator. One positive is
  // exactly minus the mass of the negatives; spread is what the term of Spread takes from the sum over positives.
  double pull(double among, double count, double mass, double spread) const {
    if (call.args.inside) return -among * mass;
    if (static_cast<Denominator>(call.args.denominator) == Denominator::negatives) return -1 / count;
    return among - 1 / count - among * mass - among * spread;
  }

  void weigh_listed(int64_t i, double g, double p, double mean, double mass, double spread) {
    const auto count = static_cast<double>(call.positives.count[i]);
    for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at) {
      const double logit = count == 1 ? 0 : (call.listed_dot(i, at) - mean) / call.args.temperature;
      listed[at] = g * pull(count == 1 ? 1 : std::exp(logit - p), count, mass, spread);
    }
  }

  // The same as gamma e - rho, in the tiles.
  void weigh_in_tile(int64_t i, double g, double p, double mean, double mass, double spread) {
    auto& a = call.a;
    const auto count = static_cast<double>(call.positives.count[i]);
    if (count == 1) {
      a.rho[i] = static_cast<T>(-g * pull(1, 1, mass, spread));
      return;
    }
    const double log_positives = (p + mean / call.args.temperature) * kLog2e, constant = pull(0, count, mass, spread);
    a.positive_shift[i] = shift_for(call, log_positives);
    a.gamma[i] = static_cast<T>(g * (pull(1, count, mass, spread) - constant) *
                                std::exp2(static_cast<double>(a.positive_shift[i]) - log_positives));
    a.rho[i] = static_cast<T>(-g * constant);
  }

  // Positives with denominators of their own; returns the weight of the negatives.
  double weigh_own(int64_t i, double g, double n, double mean) {
    const auto count = static_cast<double>(call.positives.count[i]);
    double least = std::numeric_limits<double>::infinity(), sum = 0, weight = 0;
    own_positives(call, i, n, mean, [&](int64_t, double value) { least = std::min(least, value); });
    own_positives(call, i, n, mean, [&](int64_t, double value) { sum += std::exp(least - value); });
    own_positives(call, i, n, mean, [&](int64_t at, double value) {
      const double share = call.args.inside ? std::exp(least - value) / sum : 1 / count;
      const double others = share * -std::expm1(-value);  // 1 - the probability of the positive
      listed[at] = -g * others;
      weight += others;
    });
    return weight;
  }

  // The vectors of Spread; returns lambda times the sum of p / (1 - p), times the mass of the positives.
  double weigh_spread(int64_t i, double g, double n, double p, double mean, const T* statistics) {
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

  void zeros(Buffer<T>& sums, Rows<T>& rows) {
    sums = Buffer<T>(call.padded(rows.size) * call.p.ld + call.p.ld);
    rows.gradient_sum = sums.data();
    parallel(call.padded(rows.size) / kStrip, [&](int64_t strip) {
      std::fill(sums.data() + strip * kStrip * call.p.ld, sums.data() + (strip + 1) * kStrip * call.p.ld, T(0));
    });
  }

  void add(const T* x, double factor, double* sum) const { CLEAD_ISA_CALL(contrast_add(x, factor, sum, call.d)); }

  void add_sum(const T* sums, int64_t i, double* sum) const { add(sums + i * call.p.ld, 1, sum); }

  // Of row j as a column; bfloat16 products sum that side transposed.
  void add_column_sum(int64_t j, double* sum) const {
    if (!call.bf16) return add_sum(call.b.gradient_sum, j, sum);
    const float* const column = call.q.b.gradient_sum + j;
    for (int64_t k = 0; k < call.d; ++k) sum[k] += static_cast<double>(column[k * call.q.b.sum_step]);
  }

  void add_listed(int64_t i, double* sum) const {
    for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
      add(call.b.unit + call.positives.list[at] * call.p.ld, listed[at], sum);
  }

  void add_transposed(const Transposed& transposed, int64_t j, double* sum) const {
    for (int64_t at = transposed.start[j]; at < transposed.start[j + 1]; ++at)
      add(call.a.unit + transposed.row[at] * call.p.ld, listed[transposed.place[at]], sum);
  }

  template <class More>
  double project(const Rows<T>& rows, T* grad, More&& more) {
    const double factor = scale / call.args.temperature;
    const Buffer<double> radial(rows.size);
    torch::stable::parallel_for(0, rows.size, 32, [&](int64_t begin, int64_t end) {
      const Buffer<double> sum(call.d);
      const Buffer<T> unwanted(call.d);
      for (int64_t i = begin; i < end; ++i) {
        std::fill(sum.data(), sum.data() + call.d, 0.0);
        more(i, sum.data());
        CLEAD_ISA_CALL(contrast_project_to(radial[i], sum.data(), factor, rows.unit + i * call.p.ld,
                                           rows.inverse_norm[i], rows.gradient[i], call.args.normalize,
                                           grad != nullptr ? grad + i * call.d : unwanted.data(), call.d));
      }
    });
    double total = 0;
    for (int64_t i = 0; i < rows.size; ++i) total += radial[i];
    return total;
  }

  Call<T> call;
  double scale = 1;
  Buffer<double> listed;
  Buffer<T> sums_a, sums_b;
};

}  // namespace
}  // namespace clead
