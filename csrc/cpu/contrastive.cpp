#include "clead/contrastive.h"

#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "contrastive_pairs.h"

namespace clead {
namespace {

// The arguments both ops share, in the order of their schemas.
struct Arguments {
  Tensor anchors;
  std::optional<Tensor> candidates;
  double temperature;
  bool normalize;
  int64_t self_offset, positive_offset;
  std::optional<Tensor> positive_index, groups, candidate_groups;
  std::optional<double> threshold;
  std::optional<Tensor> row_threshold, clusters, candidate_clusters;
  bool all_rules;
  double weight;
};

void check_rows(const Tensor& x, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == like.size(1), name, " must be [rows, d] with one d for all");
  STD_TORCH_CHECK(x.scalar_type() == like.scalar_type(), name, " must have the dtype of anchors");
  STD_TORCH_CHECK(x.size(0) < (int64_t(1) << 31) - 4096, name, " has too many rows");
}

template <class F>
void parallel(int64_t size, F&& each) {
  torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
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

// One call: operands prepared, rules turned into vectors.
template <class T>
class Call {
 public:
  explicit Call(const Arguments& x)
      : args(x), m(x.anchors.size(0)), n(x.candidates ? x.candidates->size(0) : m), d(x.anchors.size(1)),
        symmetric(!x.candidates && x.self_offset <= 0 && x.positive_offset < 0 && !x.positive_index &&
                  !x.candidate_groups),
        positives(m, padded(m), n, padded(n), x.self_offset, x.positive_offset,
                  Ids(x.positive_index, m, "positive_index"), Ids(x.groups, m, "groups"),
                  x.candidate_groups ? Ids(x.candidate_groups, n, "candidate_groups") : Ids(x.groups, n, "groups")) {
    STD_TORCH_CHECK(x.temperature > 0, "temperature must be positive");
    p.d = d, p.ld = (d + 15) / 16 * 16;
    if (p.ld % 256 == 0) p.ld += 16;  // rows a power of two apart would share cache sets
    p.block = block_of(m, n);
    p.symmetric = symmetric;
    p.k = static_cast<T>(kLog2e / x.temperature);
    p.normalized = x.normalize && p.k < 1e5;
    p.bounded = x.normalize && kLog2e / x.temperature <= (sizeof(T) == 4 ? 55 : 500);
    p.weight = static_cast<T>(x.weight), p.all_rules = x.all_rules;
    p.self_offset = x.self_offset;
    p.list_start = positives.grouped ? nullptr : positives.start.data(), p.list = positives.list.data();
    load(x.anchors, a, units[0]);
    if (symmetric) {
      b = a;
    } else {
      load(x.candidates ? *x.candidates : x.anchors, b, units[1]);
    }
    pack();
    rules();
    p.a = &a, p.b = &b;
  }

  // Calls task(I, J, scratch) for all pairs of blocks, no two at once with a common I or J, in a fixed order for each.
  template <class Task>
  void for_each_tile(bool rows_only, Task&& task) {
    const int64_t row_blocks = blocks(m), column_blocks = blocks(n);
    const int64_t period = std::max(row_blocks, column_blocks);
    const int64_t scratch = (kStrip + 4) * p.block;
    if (rows_only) {
      parallel_chunks(row_blocks, scratch, [&](int64_t i, T* strip) {
        for (int64_t j = 0; j < column_blocks; ++j) task(i, j, strip);
      });
      return;
    }
    const int64_t steps = symmetric ? row_blocks / 2 + 1 : period;
    for (int64_t t = 0; t < steps; ++t) {
      const bool half = symmetric && row_blocks % 2 == 0 && t == row_blocks / 2;
      parallel_chunks(half ? t : row_blocks, scratch, [&](int64_t i, T* strip) {
        const int64_t j = (i + t) % period;
        if (j < column_blocks) task(i, j, strip);
      });
    }
  }

  int64_t blocks(int64_t rows) const { return (rows + p.block - 1) / p.block; }

  static int64_t padded(int64_t rows) { return (rows + kStrip - 1) / kStrip * kStrip; }

  // Mean dot product of the positives of row i.
  double mean_positive(int64_t i) const {
    const int64_t count = positives.count[i];
    if (count == 0) return 0;
    double sum = 0;
    if (!positives.grouped) {
      for (int64_t at = positives.start[i]; at < positives.start[i + 1]; ++at) sum += listed_dot(i, at);
      return sum / count;
    }
    const T* const row = a.unit + i * p.ld;
    const double* const group = group_sums.data() + positives.row_group[i] * d;
    for (int64_t k = 0; k < d; ++k) sum += static_cast<double>(row[k]) * group[k];
    const int64_t self = args.self_offset < 0 ? n : i + args.self_offset;
    if (self < n && positives.column_group[self] == positives.row_group[i]) sum -= dot(row, b.unit + self * p.ld);
    return sum / count;
  }

  // Row 0 (over negatives) or 1 (over positives) of the statistics, with all digits.
  double statistic(const T* statistics, int64_t row, int64_t i) const {
    return static_cast<double>(statistics[row * m + i]) + static_cast<double>(statistics[(row + 2) * m + i]);
  }

  double listed_dot(int64_t i, int64_t at) const { return dot(a.unit + i * p.ld, b.unit + positives.list[at] * p.ld); }

  double dot(const T* x, const T* y) const {
    double value = 0;
    CLEAD_ISA_CALL(contrast_set(value, x, y, d));
    return value;
  }

  void sum_groups() {
    if (!positives.grouped) return;
    const auto groups = static_cast<int64_t>(positives.members_start.size()) - 1;
    group_sums = Buffer<double>(groups * d, 0.0);
    parallel(groups, [&](int64_t g) {
      for (int64_t at = positives.members_start[g]; at < positives.members_start[g + 1]; ++at)
        CLEAD_ISA_CALL(contrast_add(b.unit + positives.members[at] * p.ld, 1.0, group_sums.data() + g * d, d));
    });
  }

  T* vector(int64_t rows, T value) { return own(vectors, Buffer<T>(padded(rows), value)); }
  double* doubles(int64_t rows, double value) { return own(wide_vectors, Buffer<double>(padded(rows), value)); }

  const Arguments& args;
  const int64_t m, n, d;
  const bool symmetric;
  const Positives positives;
  Contrast<T> p{};
  Rows<T> a{}, b{};

 private:
  // Depends on sizes alone: sums are grouped by blocks.
  static int64_t block_of(int64_t m, int64_t n) {
    const int64_t rows = std::min(m, n);
    return rows <= 2048 ? kStrip : rows <= 6144 ? 2 * kStrip : 4 * kStrip;
  }

  template <class Task>
  void parallel_chunks(int64_t size, int64_t scratch, Task&& task) {
    torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
      const Buffer<T> strip(scratch, T(0));
      for (int64_t i = begin; i < end; ++i) task(i, strip.data());
    });
  }

  template <class U>
  static U* own(std::vector<Buffer<U>>& all, Buffer<U> buffer) {
    all.push_back(std::move(buffer));
    return all.back().data();
  }

  void load(const Tensor& x, Rows<T>& rows, Buffer<T>& unit) {
    rows.size = x.size(0);
    unit = Buffer<T>(padded(rows.size) * p.ld + p.ld);
    rows.unit = unit.data();
    std::fill(rows.unit + rows.size * p.ld, rows.unit + unit.size(), T(0));
    rows.inverse_norm = doubles(rows.size, 0.0);
    flags.push_back(Buffer<bool>(padded(rows.size)));
    rows.gradient = flags.back().data();
    switch (x.scalar_type()) {
      case ScalarType::Double: return load_as<double>(x, rows);
      case ScalarType::Float: return load_as<float>(x, rows);
      case ScalarType::BFloat16: return load_as<Bf16>(x, rows);
      case ScalarType::Half: return load_as<Half>(x, rows);
      default: STD_TORCH_CHECK(false, "the native contrastive op has float64, float32, bfloat16 and float16");
    }
  }

  template <class S>
  void load_as(const Tensor& x, Rows<T>& rows) {
    const S* const from = static_cast<const S*>(x.const_data_ptr());
    const int64_t step = x.stride(0), inner = x.stride(1);
    parallel_rows(rows.size, [&](int64_t i) {
      T* const out = rows.unit + i * p.ld;
      CLEAD_ISA_CALL(contrast_load(from + i * step, inner, out, rows.inverse_norm + i, rows.gradient + i,
                                   args.normalize, d));
      std::fill(out + d, out + p.ld, T(0));
    });
  }

  void pack() {
    panels = Buffer<T>(padded(n) * d);
    b.panels = panels.data();
    parallel(padded(n) / kStrip, [&](int64_t strip) {
      CLEAD_ISA_CALL(contrast_pack(p, b, strip * kStrip, (strip + 1) * kStrip));
    });
  }

  void rules() {
    if (positives.grouped) a.group = positives.row_group.data(), b.group = positives.column_group.data();
    const bool clusters = args.clusters && args.candidate_clusters;
    const bool threshold = args.threshold || args.row_threshold;
    p.false_negatives = clusters || threshold;
    p.threshold_only = threshold && !clusters && args.normalize;
    if (!clusters) p.all_rules = false;
    if (!p.false_negatives) return;
    // An absent threshold calls all pairs above it if all rules must hold, else none.
    const T infinity = std::numeric_limits<T>::infinity(), absent = p.all_rules ? -infinity : infinity;
    T* const cut = vector(m, threshold && args.threshold ? static_cast<T>(*args.threshold) : absent);
    if (args.row_threshold) read_thresholds(*args.row_threshold, cut);
    a.threshold = cut;
    if (symmetric) b.threshold = cut;
    a.cosine_scale = cosine_scale(a), b.cosine_scale = symmetric ? a.cosine_scale : cosine_scale(b);
    number_clusters(clusters);
  }

  void read_thresholds(const Tensor& t, T* cut) {
    STD_TORCH_CHECK(t.dim() == 0 || (t.dim() == 1 && t.size(0) == m), "row_threshold must be 0-d or [", m, "]");
    constexpr auto kWanted = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(t.scalar_type() == kWanted, "row_threshold must have the working dtype");
    const T* const from = static_cast<const T*>(t.const_data_ptr());
    const int64_t step = t.dim() == 0 ? 0 : t.stride(0);
    for (int64_t i = 0; i < m; ++i) cut[i] = from[i * step];
  }

  const T* cosine_scale(const Rows<T>& rows) {
    T* const scale = vector(rows.size, T(1));
    if (!args.normalize)
      for (int64_t i = 0; i < rows.size; ++i) scale[i] = static_cast<T>(rows.inverse_norm[i]);
    return scale;
  }

  // Unknown clusters, which are negative, match nothing.
  void number_clusters(bool given) {
    const auto numbers = [&](int64_t rows, int32_t none) {
      return own(integers, Buffer<int32_t>(padded(rows), none));
    };
    int32_t* const of_rows = numbers(m, -1);
    int32_t* const of_columns = numbers(n, -2);
    a.cluster_as_row = of_rows, b.cluster_as_column = of_columns;
    if (symmetric) {
      a.cluster_as_column = of_columns, b.cluster_as_row = of_rows;
    } else {
      a.cluster_as_column = of_rows, b.cluster_as_row = of_columns;
    }
    if (!given) return;
    const Ids rows(args.clusters, m, "clusters"), columns(args.candidate_clusters, n, "candidate_clusters");
    Numbering number(rows, m, columns, n);
    for (int64_t i = 0; i < m; ++i)
      if (rows[i] >= 0) of_rows[i] = number(rows[i]);
    for (int64_t j = 0; j < n; ++j)
      if (columns[j] >= 0) of_columns[j] = number(columns[j]);
  }

  Buffer<T> units[2], panels;
  Buffer<double> group_sums;
  std::vector<Buffer<T>> vectors;
  std::vector<Buffer<double>> wide_vectors;
  std::vector<Buffer<int32_t>> integers;
  std::vector<Buffer<bool>> flags;
};

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
  call.for_each_tile(!call.symmetric, [&](int64_t i, int64_t j, T* strip) {
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
    if (call.p.need_b) zeros(sums_b, b);
    call.for_each_tile(!call.p.need_b, [&](int64_t i, int64_t j, T* strip) {
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
        if (call.symmetric) add(call.b.gradient_sum + i * call.p.ld, 1, sum);
        if (!grouped) add_listed(i, sum);
        if (!grouped && call.symmetric) add_transposed(transposed, i, sum);
      });
    }
    if (call.p.need_b && !call.symmetric) {
      const double other = project(call.b, grad_b, [&](int64_t j, double* sum) {
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
        add(rows.gradient_sum + i * call.p.ld, 1, sum.data());
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

template <class T>
void backward_typed(const Arguments& args, const Tensor& grad_loss, const Tensor& statistics, const Tensor& grad_a,
                    const Tensor& grad_b, const Tensor& grad_temperature) {
  const bool wants_temperature = grad_temperature.numel() > 0;
  const auto pointer = [](const Tensor& t) { return t.numel() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr; };
  T* const a = pointer(grad_a);
  T* const b = pointer(grad_b);
  Backward<T> run(args, grad_loss, static_cast<const T*>(statistics.const_data_ptr()),
                  a != nullptr || (wants_temperature && b == nullptr), b != nullptr);
  const double temperature = run.finish(a, b);
  if (wants_temperature) *pointer(grad_temperature) = static_cast<T>(temperature);
}

void check(const Arguments& x) {
  STD_TORCH_CHECK(x.anchors.dim() == 2, "anchors must be [rows, d]");
  check_rows(x.anchors, x.anchors, "anchors");
  if (x.candidates) check_rows(*x.candidates, x.anchors, "candidates");
  STD_TORCH_CHECK(!x.candidate_groups || x.groups, "candidate_groups need groups");
  STD_TORCH_CHECK(!x.groups || x.candidate_groups || !x.candidates || x.candidates->size(0) == x.anchors.size(0),
                  "groups need candidate_groups unless there are as many candidates as anchors");
  isa();  // may throw, which must not happen on a worker thread
}

void check_output(const Tensor& t, ScalarType dtype, int64_t numel, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous() && (t.numel() == numel || t.numel() == 0), name,
                  " must be contiguous, of the working dtype, with ", numel, " elements or none");
}

ScalarType working(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

#define CLEAD_ARGUMENTS                                                                                                \
  Tensor anchors, std::optional<Tensor> candidates, double temperature, bool normalize, int64_t self_offset,           \
      int64_t positive_offset, std::optional<Tensor> positive_index, std::optional<Tensor> groups,                     \
      std::optional<Tensor> candidate_groups, std::optional<double> threshold, std::optional<Tensor> row_threshold,    \
      std::optional<Tensor> clusters, std::optional<Tensor> candidate_clusters, bool all_rules, double weight
#define CLEAD_COLLECTED                                                                                                \
  {anchors,          candidates, temperature,   normalize, self_offset,        positive_offset, positive_index, groups, \
   candidate_groups, threshold,  row_threshold, clusters,  candidate_clusters, all_rules,       weight}

void contrastive_forward_(CLEAD_ARGUMENTS, Tensor loss, Tensor num_positives, Tensor statistics) {
  const Arguments args CLEAD_COLLECTED;
  check(args);
  const int64_t m = anchors.size(0);
  check_output(loss, working(anchors), m, "loss");
  check_output(num_positives, ScalarType::Long, m, "num_positives");
  check_output(statistics, working(anchors), 4 * m, "statistics");
  STD_TORCH_CHECK(loss.numel() == m && num_positives.numel() == m && statistics.numel() == 4 * m, "outputs are needed");
  if (m == 0) return;
  auto* const counts = static_cast<int64_t*>(num_positives.mutable_data_ptr());
  if (working(anchors) == ScalarType::Double)
    forward_typed(args, static_cast<double*>(loss.mutable_data_ptr()), counts,
                  static_cast<double*>(statistics.mutable_data_ptr()));
  else
    forward_typed(args, static_cast<float*>(loss.mutable_data_ptr()), counts,
                  static_cast<float*>(statistics.mutable_data_ptr()));
}

void contrastive_backward_(Tensor grad_loss, Tensor statistics, CLEAD_ARGUMENTS, Tensor grad_anchors,
                           Tensor grad_candidates, Tensor grad_temperature) {
  const Arguments args CLEAD_COLLECTED;
  check(args);
  const int64_t m = anchors.size(0), d = anchors.size(1);
  const auto dtype = working(anchors);
  STD_TORCH_CHECK(grad_loss.scalar_type() == dtype && grad_loss.dim() == 1 && grad_loss.size(0) == m,
                  "grad_loss must be [", m, "] of the working dtype");
  check_output(statistics, dtype, 4 * m, "statistics");
  STD_TORCH_CHECK(statistics.numel() == 4 * m, "statistics must be [4, ", m, "]");
  check_output(grad_anchors, dtype, m * d, "grad_anchors");
  check_output(grad_candidates, dtype, (candidates ? candidates->size(0) : m) * d, "grad_candidates");
  check_output(grad_temperature, dtype, 1, "grad_temperature");
  if (dtype == ScalarType::Double)
    backward_typed<double>(args, grad_loss, statistics, grad_anchors, grad_candidates, grad_temperature);
  else
    backward_typed<float>(args, grad_loss, statistics, grad_anchors, grad_candidates, grad_temperature);
}

}  // namespace
}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) {
  m.impl("contrastive_native_", TORCH_BOX(&clead::contrastive_forward_));
  m.impl("contrastive_native_backward_", TORCH_BOX(&clead::contrastive_backward_));
}
