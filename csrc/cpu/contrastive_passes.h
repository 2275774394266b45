// The forward and the backward pass around the tile kernels: statistics and losses, weights and gradients of rows.
#pragma once

#include "contrastive_call.h"

namespace clead {
namespace {

double log_of(double sum, double max, double lowest) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  return max < lowest || sum == 0 ? kNone : std::log(sum) + max / kLog2e;
}

template <class T>
void forward_typed(const Arguments& args, T* loss, int64_t* counts, T* statistics) {
  Call<T> call(args);
  auto &a = call.a, &b = call.b;
  const double k = static_cast<double>(call.p.k), lowest = -1e29 * std::min(k, 1e3);
  const T first = call.p.bounded ? call.p.k : static_cast<T>(-1e33);
  const auto sums = [&](int64_t rows) { return Sums<T>{call.doubles(rows, 0.0), call.vector(rows, first)}; };
  a.negatives = sums(call.m), a.positives = sums(call.m);
  b.negatives = sums(call.n), b.positives = sums(call.n);
  call.sum_groups();
  if (call.bf16) call.load_bf16(false);
  call.for_each_tile(!call.symmetric, [&](int64_t i, int64_t j, T* strip) {
    if constexpr (sizeof(T) == 4)
      if (call.bf16) {
        CLEAD_BF16_CALL(bf16_forward(call.p, call.q, i, j, strip));
        return;
      }
    CLEAD_ISA_CALL(contrast_forward(call.p, i, j, strip));
  });
  const auto both = [&](const Sums<T>& as_row, const Sums<T>& as_column, int64_t i) {
    const double max = call.symmetric ? std::max(as_row.max[i], as_column.max[i]) : as_row.max[i];
    double sum = as_row.sum[i] * std::exp2(as_row.max[i] - max);
    if (call.symmetric) sum += as_column.sum[i] * std::exp2(as_column.max[i] - max);
    return log_of(sum, max, lowest);
  };
  parallel_rows(call.m, [&](int64_t i) {
    const int64_t count = call.positives.count[i];
    const double mean = call.mean_positive(i), temperature = args.temperature;
    const double over_negatives = both(a.negatives, b.negatives, i) - mean / temperature;
    double over_positives = -std::numeric_limits<double>::infinity();
    if (count == 1) {
      over_positives = std::isnan(mean) ? mean : 0;
    } else if (count > 1 && call.positives.grouped) {
      over_positives = both(a.positives, b.positives, i) - mean / temperature;
    } else if (count > 1) {
      double max = over_positives, sum = 0;
      for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
        max = std::max(max, call.listed_dot(i, at));
      for (int64_t at = call.positives.start[i]; at < call.positives.start[i + 1]; ++at)
        sum += std::exp((call.listed_dot(i, at) - max) / temperature);
      over_positives = std::log(sum) + (max - mean) / temperature;
    }
    const double gap = over_negatives - over_positives;
    const double softplus = gap > 0 ? gap + std::log1p(std::exp(-gap)) : std::log1p(std::exp(gap));
    loss[i] = count > 0 ? static_cast<T>(softplus + over_positives) : T(0);
    counts[i] = count;
    // What rounding takes from them, up to 1e-5 of the gradient at low temperatures, is kept in two more rows.
    const double values[] = {over_negatives, over_positives};
    for (int64_t row = 0; row < 2; ++row) {
      const T rounded = static_cast<T>(values[row]);
      const double rest = values[row] - static_cast<double>(rounded);
      statistics[row * call.m + i] = rounded;
      statistics[(row + 2) * call.m + i] = std::isfinite(rest) ? static_cast<T>(rest) : T(0);
    }
  });
}

// What to take from the exponents of a row whose sum has this logarithm: an integer, or where T has no integer as close
// as that, the nearest number.
template <class T>
T shift_for(const Call<T>& call, double log) {
  if (call.p.bounded) return call.p.k;
  return static_cast<T>(std::fabs(log) < 4e6 ? std::floor(log) : log);
}

// Weights of the exponentials for row i; returns the mass of its negatives.
template <class T>
double prepare_row(Call<T>& call, int64_t i, double g, double mean, const T* statistics) {
  const double over_negatives = call.statistic(statistics, 0, i), over_positives = call.statistic(statistics, 1, i);
  const int64_t count = call.positives.count[i];
  auto& a = call.a;
  a.alpha[i] = a.gamma[i] = a.rho[i] = a.shift[i] = a.positive_shift[i] = 0;
  if (count == 0) return 0;
  const double mass = 1 / (1 + std::exp(over_positives - over_negatives));
  const double log_negatives = (over_negatives + mean / call.args.temperature) * kLog2e;
  const double log_positives = (over_positives + mean / call.args.temperature) * kLog2e;
  if (mass != 0) {
    a.shift[i] = shift_for(call, log_negatives);
    a.alpha[i] = static_cast<T>(g * mass * std::exp2(static_cast<double>(a.shift[i]) - log_negatives));
  }
  if (count == 1) {
    a.rho[i] = static_cast<T>(g * mass);
  } else {
    a.positive_shift[i] = shift_for(call, log_positives);
    a.gamma[i] = static_cast<T>(g * (1 - mass) * std::exp2(static_cast<double>(a.positive_shift[i]) - log_positives));
    a.rho[i] = static_cast<T>(g / static_cast<double>(count));
  }
  return mass;
}

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
    call.sum_groups();
    listed = Buffer<double>(static_cast<int64_t>(call.positives.list.size()));
    parallel_rows(call.m, [&](int64_t i) {
      const double gradient = static_cast<double>(g[i * step]) / scale, mean = call.mean_positive(i);
      weigh_listed(i, gradient, mean, prepare_row(call, i, gradient, mean, statistics), statistics);
    });
    if (call.symmetric) {
      b.alpha = a.alpha, b.gamma = a.gamma, b.rho = a.rho, b.shift = a.shift, b.positive_shift = a.positive_shift;
    }
    if (call.p.need_a) zeros(sums_a, a);
    if (call.bf16)
      call.load_bf16(true);
    else if (call.p.need_b)
      zeros(sums_b, b);
    call.for_each_tile(!call.p.need_b, [&](int64_t i, int64_t j, T* strip) {
      if constexpr (sizeof(T) == 4)
        if (call.bf16) {
          auto* const half = reinterpret_cast<uint16_t*>(strip + (kStrip + 4) * call.p.block);
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
  // What the positives of row i add, where they are listed: e^s / sum of positives * (1 - mass) - 1 / count.
  void weigh_listed(int64_t i, double g, double mean, double mass, const T* statistics) {
    const auto& positives = call.positives;
    if (positives.grouped) return;
    for (int64_t at = positives.start[i]; at < positives.start[i + 1]; ++at) {
      if (positives.count[i] == 1) {
        listed[at] = -g * mass;
      } else {
        const double logit = (call.listed_dot(i, at) - mean) / call.args.temperature;
        const double among = std::exp(logit - call.statistic(statistics, 1, i));
        listed[at] = g * (among - 1.0 / static_cast<double>(positives.count[i]) - among * mass);
      }
    }
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
