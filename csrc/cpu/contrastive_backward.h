// The backward pass around the tile kernels: weights and gradients of rows.
#pragma once

#include "contrastive_forward.h"

namespace clead {
namespace {

template <class T>
class Backward {
 public:
  // statistics: null for the sigmoid loss.
  Backward(const Arguments& args, const Tensor& grad_loss, const T* statistics, bool need_a, bool need_b)
      : call(args) {
    auto &a = call.a, &b = call.b;
    call.p.need_a = need_a || call.symmetric, call.p.need_b = need_b || call.symmetric;
    const T* const g = const_data<T>(grad_loss);
    const int64_t step = grad_loss.stride(0);
    double largest = 0;
    for (int64_t i = 0; i < call.losses; ++i) largest = std::max(largest, std::fabs(static_cast<double>(g[i * step])));
    // Exponents have the room for gradients of about 1, not for a loss scaled by 2^16.
    scale = largest > 0 && std::isfinite(largest) ? std::exp2(std::floor(std::log2(largest))) : 1;
    const auto allocate = [&](Rows<T>& x) {
      for (T** vector : {&x.alpha, &x.gamma, &x.rho, &x.shift, &x.positive_shift}) *vector = call.vector(x.size, T(0));
    };
    allocate(a);
    if (args.both_ways) allocate(b);
    call.p.spread = args.spread > 0;
    for (T** vector : {&a.spread.share, &a.spread.weight, &a.spread.factor, &a.spread.scale, &a.spread.shift})
      if (call.p.spread) *vector = call.vector(call.m, T(0));
    if (args.debias > 0) floors = Buffer<double>(call.m, 0.0);
    if (args.euclidean || args.bias) a.weight_sum = call.doubles(call.m, 0.0);
    if (args.euclidean) a.score_sum = call.doubles(call.m, 0.0);
    if (args.euclidean && call.p.need_b) b.weight_sum = call.doubles(call.n, 0.0);
    set_rules(call, args.topk > 0 ? statistics + kCut * call.m : nullptr);
    call.sum_groups();
    if (call.p.attract) restore_attracted(call, statistics);
    if (own_in_tile(call)) set_own(call, statistics);
    call.p.soft = beta_of(args) > 0 || (call.p.own && args.debias > 0);
    if (call.p.soft) {
      call.raise_negatives(1 + beta_of(args));
      call.p.k_soft = static_cast<T>(beta_of(args) * kLog2e / args.temperature), call.p.bounded = false;
      for (T** vector : {&a.soft_alpha, &a.soft_shift}) *vector = call.vector(call.m, T(0));
    }
    for (T** vector : {&a.own.weight, &a.own.share_shift, &a.own.share_scale, &a.own.share})
      if (call.p.own) *vector = call.vector(call.m, T(0));
    listed = Buffer<double>(static_cast<int64_t>(call.positives.list.size()), 0.0);
    parallel_rows(call.m, [&](int64_t i) {
      weigh(a, i, i, static_cast<double>(g[i * step]) / scale, statistics);
      if (args.both_ways) weigh(b, i, call.m + i, static_cast<double>(g[(call.m + i) * step]) / scale, statistics);
    });
    if (call.symmetric) {
      b.alpha = a.alpha, b.gamma = a.gamma, b.rho = a.rho, b.shift = a.shift, b.positive_shift = a.positive_shift;
      b.soft_alpha = a.soft_alpha, b.soft_shift = a.soft_shift, b.own = a.own;
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
        double weight = 0;
        add_sum(call.a.gradient_sum, i, sum);
        if (call.symmetric) add_column_sum(i, sum);
        if (!grouped) weight += add_listed(i, sum);
        if (!grouped && call.symmetric) weight += add_transposed(transposed, i, sum);
        if (!call.p.euclidean) return;
        weight += call.a.weight_sum[i] + (call.symmetric ? call.b.weight_sum[i] : 0);
        add(call.a.unit + i * call.p.ld, -weight, sum);
      });
    }
    if (call.p.need_b && !call.symmetric) {
      const double other = project(call.b, grad_b, [&](int64_t j, double* sum) {
        double weight = 0;
        add_column_sum(j, sum);
        if (!grouped) weight += add_transposed(transposed, j, sum);
        if (call.p.euclidean) add(call.b.unit + j * call.p.ld, -weight - call.b.weight_sum[j], sum);
      });
      if (!call.p.need_a) temperature = other;
    }
    if (call.p.euclidean) temperature = sum_scores();
    for (int64_t i = 0; i < floors.size(); ++i) temperature -= floors[i] * scale / call.args.temperature * sides();
    return -temperature / call.args.temperature / sides();
  }

  // The gradient by the bias of the sigmoid loss.
  double finish_bias() const {
    double sum = 0;
    for (int64_t i = 0; i < call.m; ++i) sum += call.a.weight_sum[i];
    for (int64_t at = 0; at < listed.size(); ++at) sum += listed[at];
    return scale * sum;
  }

 private:
  // The weights of row i's exponentials, and what its listed positives add, for its loss number `loss`; x is where they go.
  void weigh(Rows<T>& x, int64_t i, int64_t loss, double g, const T* statistics) {
    if (call.p.sigmoid) {
      x.alpha[i] = static_cast<T>(g);
      for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
        listed[at] -= g / (1 + std::exp(listed_logit(call, i, at)));
      return;
    }
    const double n = call.statistic(statistics, kNegatives, loss), p = call.statistic(statistics, kPositives, loss);
    const int64_t count = call.positives.count[i];
    const auto denominator = static_cast<Denominator>(call.args.denominator);
    if (count == 0 || (denominator == Denominator::negatives && n == kNone)) return;
    const double mean = call.mean_positive(i), mass = 1 / (1 + std::exp(p - n));
    double on_negatives = denominator == Denominator::all ? mass : 1, on_positives = 0;
    if (call.p.spread) on_positives = weigh_spread(call, i, g, n, p, mean, statistics);
    if (denominator == Denominator::own_positive)
      on_negatives = call.p.own ? weigh_own_in_tile(call, i, g, n, mean, statistics, listed.data())
                                : weigh_own(i, g, n, mean);
    const bool reweighted = is_reweighted(call.args);
    const double slope = call.args.debias > 0 ? static_cast<double>(statistics[kSlope * call.m + i]) : 1;
    if (slope > 0) on_positives += on_negatives * (slope - 1);
    if (denominator == Denominator::own_positive) {
      if (on_positives != 0) take_from_own(i, g * on_positives, p, mean);
    } else {
      if (!call.positives.grouped) weigh_listed(i, g, p, mean, on_negatives, on_positives);
      if (call.a.group != nullptr) weigh_in_tile(i, g, p, mean, on_negatives, on_positives);
    }
    if (on_negatives == 0) return;
    if (slope == 0) {
      floors[i] = g * on_negatives;
      return;
    }
    const double beta = beta_of(call.args), weight = g * on_negatives * slope;
    const double log = reweighted ? call.statistic(statistics, kHard, i) : n + mean / call.args.temperature;
    weigh_exponential(x.alpha[i], x.shift[i], weight * (1 + beta), log);
    if (beta > 0)
      weigh_exponential(call.a.soft_alpha[i], call.a.soft_shift[i], -weight * beta,
                        call.statistic(statistics, kSoft, i));
  }

  // Adds -weight e^x_ip / e^p to the gradients by positives with denominators of their own.
  void take_from_own(int64_t i, double weight, double p, double mean) {
    for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
      listed[at] -= weight * among_positives(i, at, p, mean);
    if (call.p.own)
      weigh_exponential(call.a.gamma[i], call.a.positive_shift[i], -weight, p + mean / call.args.temperature);
  }

  // So that alpha 2^(log2(e) x - shift) is weight e^x / e^log.
  void weigh_exponential(T& alpha, T& shift, double weight, double log) const {
    shift = shift_for(call, log * kLog2e);
    alpha = static_cast<T>(weight * std::exp2(static_cast<double>(shift) - log * kLog2e));
  }

  // d loss / d s_ip of a positive with e^x_ip / e^p = among, where all positives share a denominator. One positive is
  // exactly minus the mass of the negatives; taken is what a term of the loss, or a correction of the negatives' mass,
  // takes from the sum over positives.
  double pull(double among, double count, double mass, double taken) const {
    if (call.args.inside) return -among * mass - among * taken;
    if (static_cast<Denominator>(call.args.denominator) == Denominator::negatives) return -1 / count - among * taken;
    return among - 1 / count - among * mass - among * taken;
  }

  // e^x_ip / e^p.
  double among_positives(int64_t i, int64_t at, double p, double mean) const {
    if (call.positives.count[i] == 1) return 1;
    return std::exp((call.listed_score(i, at) - mean) / call.args.temperature - p);
  }

  void weigh_listed(int64_t i, double g, double p, double mean, double mass, double taken) {
    const auto count = static_cast<double>(call.positives.count[i]);
    for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
      listed[at] += g * pull(among_positives(i, at, p, mean), count, mass, taken);
  }

  // The same as gamma e - rho, in the tiles.
  void weigh_in_tile(int64_t i, double g, double p, double mean, double mass, double taken) {
    auto& a = call.a;
    const auto count = static_cast<double>(call.positives.count[i]);
    if (count == 1) {
      a.rho[i] = static_cast<T>(-g * pull(1, 1, mass, taken));
      return;
    }
    const double log_positives = (p + mean / call.args.temperature) * kLog2e, constant = pull(0, count, mass, taken);
    a.positive_shift[i] = shift_for(call, log_positives);
    a.gamma[i] = static_cast<T>(g * (pull(1, count, mass, taken) - constant) *
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
      listed[at] -= g * others;
      weight += others;
    });
    return weight;
  }

  int sides() const { return call.symmetric ? 2 : 1; }  // how often sums over rows have every pair

  // The sum of s_ij times the gradients by them: of distances it is no inner product of rows.
  double sum_scores() const {
    double sum = 0;
    for (int64_t i = 0; i < call.m; ++i) {
      sum += call.a.score_sum[i];
      for (int64_t at = call.positives.start[i]; !call.positives.grouped && at < call.positives.start[i + 1]; ++at)
        sum += sides() * listed[at] * call.listed_score(i, at);
    }
    return sum * scale / call.args.temperature;
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

  // Rows that are listed times their weights; return the sum of the weights.
  double add_listed(int64_t i, double* sum) const {
    double weight = 0;
    for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; weight += listed[at++])
      add(call.b.unit + call.positives.list[at] * call.p.ld, listed[at], sum);
    return weight;
  }

  double add_transposed(const Transposed& transposed, int64_t j, double* sum) const {
    double weight = 0;
    for (int64_t at = transposed.start[j]; at < transposed.start[j + 1]; weight += listed[transposed.place[at++]])
      add(call.a.unit + transposed.row[at] * call.p.ld, listed[transposed.place[at]], sum);
    return weight;
  }

  template <class More>
  double project(const Rows<T>& rows, T* grad, More&& more) {
    const double factor = scale / call.args.temperature * (call.p.euclidean ? 2 : 1);
    const Buffer<double> radial(rows.size);
    parallel_for(rows.size, 32, [&](int64_t begin, int64_t end) {
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
  Buffer<double> listed, floors;  // floors: weights of negatives' masses that are the floor of debiased ones
  Buffer<T> sums_a, sums_b;
};

}  // namespace
}  // namespace clead
