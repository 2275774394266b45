// Pseudo-labels of one call, from tensors to the numbers the tile kernels compare.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "contrastive_pairs.h"

namespace clead {

// Small numbers, of which unknown labels, which are negative, match nothing. Where labels must agree at each of several
// levels, those of all levels together have one number.
struct Labels {
  int64_t levels = 1;
  Buffer<int32_t> of_rows, of_columns;  // [levels, padded]; a row may be -1, a column -2

  Labels() = default;
  Labels(int64_t m, int64_t padded_m, int64_t n, int64_t padded_n)
      : of_rows(padded_m, kUnknownRow), of_columns(padded_n, kUnknownColumn) {}
  Labels(const Tensor& rows, int64_t m, int64_t padded_m, const Tensor& columns, int64_t n, int64_t padded_n, bool each) {
    const int64_t given = rows.dim() == 2 ? rows.size(0) : 1;
    STD_TORCH_CHECK(given >= 1 && given <= kMostLevels && rows.dim() == columns.dim() &&
                        (columns.dim() != 2 || columns.size(0) == given),
                    "clusters and candidate_clusters must have the same levels, in [1, ", kMostLevels, "]");
    levels = each ? 1 : given;
    of_rows = Buffer<int32_t>(levels * padded_m, kUnknownRow);
    of_columns = Buffer<int32_t>(levels * padded_n, kUnknownColumn);
    for (int64_t level = 0; level < given; ++level) {
      const Ids row_ids = at_level(rows, level, m, "clusters"), column_ids = at_level(columns, level, n, "candidate_clusters");
      Numbering number(row_ids, m, column_ids, n);
      Pairings pairings;
      const bool join = each && level > 0;
      const int64_t at = each ? 0 : level;
      fill(row_ids, m, kUnknownRow, number, join ? &pairings : nullptr, of_rows.data() + at * padded_m);
      fill(column_ids, n, kUnknownColumn, number, join ? &pairings : nullptr, of_columns.data() + at * padded_n);
    }
  }

 private:
  static constexpr int64_t kMostLevels = 1 << 20;
  using Pairings = std::unordered_map<int64_t, int32_t>;
  static constexpr int32_t kUnknownRow = -1, kUnknownColumn = -2;

  static Ids at_level(const Tensor& t, int64_t level, int64_t size, const char* name) {
    const int64_t last = t.dim() - 1;
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && (last == 0 || last == 1) && t.size(last) == size, name,
                    " must be int64 [", size, "] or [levels, ", size, "]");
    const int64_t offset = last == 1 ? level * t.stride(0) : 0;
    return {const_data<int64_t>(t) + offset, t.stride(last)};
  }

  // With pairings, the numbers in to are those of the levels before and become those of these and this level.
  static void fill(const Ids& ids, int64_t size, int32_t unknown, Numbering& number, Pairings* pairings, int32_t* to) {
    for (int64_t i = 0; i < size; ++i) {
      const int32_t own = ids[i] >= 0 ? number(ids[i]) : unknown;
      if (pairings == nullptr || own < 0)
        to[i] = own;
      else if (to[i] >= 0)
        to[i] = pairings->try_emplace(int64_t{to[i]} << 32 | own, static_cast<int32_t>(pairings->size())).first->second;
    }
  }
};

}  // namespace clead
