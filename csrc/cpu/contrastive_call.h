// One call of a contrastive op: operands prepared, rules turned into vectors, tiles visited in a fixed order.
#pragma once

#include <cmath>

#include "clead/contrastive.h"
#include "clead/contrastive_bf16.h"
#include "contrastive_arguments.h"
#include "contrastive_labels.h"

namespace clead {
namespace {

// One call: operands prepared, rules turned into vectors.
template <class T>
class Call {
 public:
  explicit Call(const Arguments& x)
      : args(x), m(x.anchors.size(0)), n(x.candidates ? x.candidates->size(0) : m), d(x.anchors.size(1)),
        losses(losses_of(x)),
        symmetric(!x.candidates && x.self_offset <= 0 && !x.self_index && x.positive_offset < 0 && !x.positive_index &&
                  !x.candidate_groups && x.topk == 0 && x.spread == 0),
        positives(m, padded(m), n, padded(n), x.self_offset, Ids(x.self_index, m, "self_index"), x.positive_offset,
                  Ids(x.positive_index, m, "positive_index"), Ids(x.groups, m, "groups"),
                  x.candidate_groups ? Ids(x.candidate_groups, n, "candidate_groups") : Ids(x.groups, n, "groups")) {
    STD_TORCH_CHECK(x.temperature > kLeastTemperature && x.temperature < kMostTemperature,
                    "temperature must be in [1e-8, 1e18]");
    bf16 = sizeof(T) == 4 && x.anchors.scalar_type() == ScalarType::BFloat16 && products16() != Products16::none &&
           !x.euclidean;
    p.d = d, p.ld = (d + kPanel16 - 1) / kPanel16 * kPanel16;
    if (p.ld % 256 == 0) p.ld += 16;  // rows a power of two apart would share cache sets
    p.block = block_of(m, n);
    p.symmetric = symmetric, p.both = symmetric || x.both_ways;
    p.euclidean = x.euclidean, p.sigmoid = x.bias.has_value();
    p.k = static_cast<T>(kLog2e / x.temperature), p.bias = static_cast<T>(kLog2e * x.bias.value_or(0));
    raise_negatives(1);
    p.weight = static_cast<T>(x.weight), p.all_rules = x.all_rules, p.inside = x.inside;
    p.self = positives.self.size() ? positives.self.data() : nullptr;
    p.list_start = positives.grouped ? nullptr : positives.start.data(), p.list = positives.list.data();
    load(x.anchors, a, units[0]);
    if (symmetric) {
      b = a;
    } else {
      load(x.candidates ? *x.candidates : x.anchors, b, units[1]);
    }
    if (!bf16) pack();
    if (positives.grouped) a.group = positives.row_group.data(), b.group = positives.column_group.data();
    p.a = &a, p.b = &b;
  }

  // Calls task(I, J, scratch) for all pairs of blocks, no two at once with a common I or J, in a fixed order for each.
  template <class Task>
  void for_each_tile(bool rows_only, Task&& task) {
    const int64_t row_blocks = blocks(m), column_blocks = blocks(n);
    const int64_t period = std::max(row_blocks, column_blocks);
    if (rows_only)
      return for_each_row_block([&](int64_t i, T* strip) {
        for (int64_t j = 0; j < column_blocks; ++j) task(i, j, strip);
      });
    const int64_t steps = symmetric ? row_blocks / 2 + 1 : period;
    for (int64_t t = 0; t < steps; ++t) {
      const bool half = symmetric && row_blocks % 2 == 0 && t == row_blocks / 2;
      parallel_chunks(half ? t : row_blocks, [&](int64_t i, T* strip) {
        const int64_t j = (i + t) % period;
        if (j < column_blocks) task(i, j, strip);
      });
    }
  }

  // Calls task(I, scratch) for all blocks of rows.
  template <class Task>
  void for_each_row_block(Task&& task) {
    parallel_chunks(blocks(m), task);
  }

  int64_t blocks(int64_t rows) const { return (rows + p.block - 1) / p.block; }

  static int64_t padded(int64_t rows) { return (rows + kStrip - 1) / kStrip * kStrip; }

  // Negatives count by e^(power s_ij).
  void raise_negatives(double power) {
    const double k = kLog2e / args.temperature * power, room = sizeof(T) == 4 ? 55 : 500;
    p.k_negatives = static_cast<T>(k), p.top = args.euclidean ? T(0) : p.k_negatives;
    p.normalized = args.normalize && std::max(p.k, p.k_negatives) < 1e5;
    p.bounded = args.normalize && k * (args.euclidean ? 2 : 1) <= room && (power == 1 || a.group == nullptr);
  }

  // Mean c_ij of the positives of row i.
  double mean_positive(int64_t i) const {
    if (means.size() > 0) return means[i];
    const int64_t count = positives.count[i];
    if (count == 0) return 0;
    double sum = 0;
    if (!positives.grouped) {
      for (int64_t at = positives.start[i]; at < positives.start[i + 1]; ++at) sum += listed_score(i, at);
      return sum / count;
    }
    const T* const row = a.unit + i * p.ld;
    const int64_t g = positives.row_group[i];
    if (p.euclidean)
      sum = -(positives.members_in(g) * from_mean(row, g) + group_spreads[g]);
    else
      for (int64_t k = 0; k < d; ++k) sum += static_cast<double>(row[k]) * group_sums[g * d + k];
    if (positives.self_is_positive(i)) sum -= score(row, b.unit + positives.self[i] * p.ld);
    return sum / count;
  }

  // One of the first kRests statistics of row i, with all digits.
  double statistic(const T* statistics, int64_t row, int64_t i) const {
    return static_cast<double>(statistics[row * losses + i]) +
           static_cast<double>(statistics[(row + kRests) * losses + i]);
  }

  // What rounding takes from them, up to 1e-5 of the gradient at low temperatures, is kept in as many more rows.
  void keep(T* statistics, int64_t row, int64_t i, double value) const {
    const T rounded = static_cast<T>(value);
    const double rest = value - static_cast<double>(rounded);
    statistics[row * losses + i] = rounded;
    statistics[(row + kRests) * losses + i] = std::isfinite(rest) ? static_cast<T>(rest) : T(0);
  }

  double listed_score(int64_t i, int64_t at) const {
    return score(a.unit + i * p.ld, b.unit + positives.list[at] * p.ld);
  }

  // c_ij of two rows.
  double score(const T* x, const T* y) const {
    double value = 0;
    if (!p.euclidean) {
      CLEAD_ISA_CALL(contrast_set(value, x, y, d));
      return value;
    }
    CLEAD_ISA_CALL(contrast_distance(value, x, y, d));
    return -value;
  }

  // The sums of the rows of all groups. Of distances, their means and the sums of squared distances to them: those of a
  // row to all of a group are the latter and the squared distance to the mean as often; nothing cancels.
  void sum_groups() {
    if (!positives.grouped) return;
    const auto groups = static_cast<int64_t>(positives.members_start.size()) - 1;
    group_sums = Buffer<double>(groups * d, 0.0);
    parallel(groups, [&](int64_t g) {
      for (int64_t at = positives.members_start[g]; at < positives.members_start[g + 1]; ++at)
        CLEAD_ISA_CALL(contrast_add(b.unit + positives.members[at] * p.ld, 1.0, group_sums.data() + g * d, d));
    });
    if (!p.euclidean) return;
    group_spreads = Buffer<double>(groups, 0.0);
    parallel(groups, [&](int64_t g) {
      for (int64_t k = 0; k < d; ++k) group_sums[g * d + k] /= std::max<int64_t>(positives.members_in(g), 1);
      for (int64_t at = positives.members_start[g]; at < positives.members_start[g + 1]; ++at)
        group_spreads[g] += from_mean(b.unit + positives.members[at] * p.ld, g);
    });
  }

  // The operands of bfloat16 products: for the forward pass, or for the backward pass.
  void load_bf16(bool backward) {
    const bool rows = backward && p.need_b, columns = backward && p.need_a;
    const Tensor& candidates = args.candidates ? *args.candidates : args.anchors;
    fill_bf16(args.anchors, a, q.a, symmetric, rows, symmetric && columns);
    if (symmetric)
      q.b = q.a;
    else
      fill_bf16(candidates, b, q.b, true, false, columns);
    if (rows) {
      q.b.sum_step = q.b.padded + 16;
      q.b.gradient_sum = own(floats, Buffer<float>(q.b.depth * q.b.sum_step, 0.0f));
    }
  }

  T* vector(int64_t rows, T value) { return own(vectors, Buffer<T>(padded(rows), value)); }
  double* doubles(int64_t rows, double value) { return own(wide_vectors, Buffer<double>(padded(rows), value)); }

  const Arguments& args;
  const int64_t m, n, d, losses;
  const bool symmetric;
  Positives positives;
  Buffer<double> means;  // once positives are attracted and counted: of all of each row, else empty
  bool bf16 = false;  // operands are in q
  Contrast16 q{};
  Contrast<T> p{};
  Rows<T> a{}, b{};
  Labels labels, no_groups;

 private:
  // Depends on sizes alone: sums are grouped by blocks.
  static int64_t block_of(int64_t m, int64_t n) {
    const int64_t rows = std::min(m, n);
    return rows <= 2048 ? kStrip : rows <= 6144 ? 2 * kStrip : 4 * kStrip;
  }

  template <class Task>
  void parallel_chunks(int64_t size, Task&& task) {
    const int64_t extra = bf16 ? kStrip * p.block / 2 : p.euclidean ? kStrip * p.block : 0;
    const int64_t scratch = (kStrip + kColumnSums) * p.block + extra;
    parallel_for(size, 1, [&](int64_t begin, int64_t end) {
      const Buffer<T> strip(scratch, T(0));
      // Backwards: of uneven shares the first is the larger one, and gets the last block, which may be short.
      for (int64_t i = begin; i < end; ++i) task(size - 1 - i, strip.data());
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

  void fill_bf16(const Tensor& x, const Rows<T>& from, Rows16& to, bool forward, bool as_row, bool as_column) {
    to.depth = (d + kPanel16 - 1) / kPanel16 * kPanel16, to.padded = padded(from.size);
    const auto bits = [&] { return own(halves, Buffer<uint16_t>(to.padded * to.depth)); };
    to.rows = bits();
    std::fill(to.rows + from.size * to.depth, to.rows + to.padded * to.depth, uint16_t(0));
    to.scale = own(floats, Buffer<float>(to.padded, 0.0f));
    if (forward) to.across = bits();
    if (as_column) to.along = bits();
    if (as_row) to.transposed = bits();
    const Bf16* const data = const_data<Bf16>(x);
    const int64_t step = x.stride(0), inner = x.stride(1);
    parallel_rows(from.size, [&](int64_t i) {
      CLEAD_BF16_CALL(bf16_load(data + i * step, inner, from.inverse_norm[i], args.normalize, to, i, d));
    });
    parallel(to.padded / kStrip, [&](int64_t strip) {
      CLEAD_BF16_CALL(bf16_pack(to, strip * kStrip, (strip + 1) * kStrip, forward, as_row, as_column));
    });
  }

  template <class S>
  void load_as(const Tensor& x, Rows<T>& rows) {
    const S* const from = const_data<S>(x);
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

  // The squared distance of a row to the mean of a group.
  double from_mean(const T* row, int64_t g) const {
    double sum = 0;
    for (int64_t k = 0; k < d; ++k) {
      const double difference = static_cast<double>(row[k]) - group_sums[g * d + k];
      sum += difference * difference;
    }
    return sum;
  }

  Buffer<T> units[2], panels;
  Buffer<double> group_sums, group_spreads;
  std::vector<Buffer<T>> vectors;
  std::vector<Buffer<double>> wide_vectors;
  std::vector<Buffer<float>> floats;
  std::vector<Buffer<uint16_t>> halves;
  std::vector<Buffer<bool>> flags;
};

}  // namespace
}  // namespace clead
