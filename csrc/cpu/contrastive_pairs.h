// The pair rules of one call, from tensors to the vectors the tile kernels read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <unordered_map>
#include <vector>

#include "clead/buffer.h"
#include "torch_operands.h"

namespace clead {

// An int64 vector argument, of any stride.
struct Ids {
  Ids(const std::optional<Tensor>& t, int64_t size, const char* name) {
    if (!t) return;
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Long && t->dim() == 1 && t->size(0) == size, name,
                    " must be int64 [", size, "]");
    data = const_data<int64_t>(*t);
    stride = t->stride(0);
  }
  Ids(const int64_t* data, int64_t stride) : data(data), stride(stride) {}
  explicit operator bool() const { return data != nullptr; }
  int64_t operator[](int64_t i) const { return data[i * stride]; }

  const int64_t* data = nullptr;
  int64_t stride = 0;
};

// Small numbers for the ids of rows and columns: the ids themselves if they are small, else in order of appearance.
class Numbering {
 public:
  Numbering(const Ids& rows, int64_t m, const Ids& columns, int64_t n) : direct_(true) {
    const int64_t limit = std::min<int64_t>(4 * (m + n) + 1024, std::numeric_limits<int32_t>::max());
    for (int64_t i = 0; i < m && direct_; ++i) direct_ = rows[i] >= 0 && rows[i] < limit;
    for (int64_t j = 0; j < n && direct_; ++j) direct_ = columns[j] >= 0 && columns[j] < limit;
  }

  int32_t operator()(int64_t id) {
    if (direct_) return see(static_cast<int32_t>(id));
    return see(numbers_.try_emplace(id, static_cast<int32_t>(numbers_.size())).first->second);
  }

  int32_t size() const { return size_; }  // of the numbers given so far

 private:
  int32_t see(int32_t number) {
    size_ = std::max(size_, number + 1);
    return number;
  }

  bool direct_;
  int32_t size_ = 0;
  std::unordered_map<int64_t, int32_t> numbers_;
};

// Positive columns: listed per row if they are few, else by group.
struct Positives {
  static constexpr int64_t kListed = 8;  // positives a row may have on average to be listed

  bool grouped = false;
  Buffer<int32_t> self;                     // [m]: the column that is the row itself; -1: none; empty: of no row
  Buffer<int32_t> row_group, column_group;  // [padded]; no column is of group -2, no row of group -1
  std::vector<int64_t> start;               // [m + 1] into list
  std::vector<int32_t> list;
  std::vector<int64_t> members_start;       // columns of each group
  std::vector<int32_t> members;
  std::vector<int64_t> count;               // positives of each row

  Positives(int64_t m, int64_t padded_m, int64_t n, int64_t padded_n, int64_t self_offset, const Ids& self_index,
            int64_t positive_offset, const Ids& index, const Ids& groups, const Ids& candidate_groups)
      : start(m + 1, 0), count(m, 0) {
    STD_TORCH_CHECK(self_offset < 0 || !self_index, "the native contrastive op takes self_offset or self_index, not both");
    if (self_offset >= 0 || self_index) self = Buffer<int32_t>(m, -1);
    for (int64_t i = 0; i < self.size(); ++i) {
      const int64_t j = self_index ? self_index[i] : self_offset < n ? i + self_offset : -1;
      if (j >= 0 && j < n) self[i] = static_cast<int32_t>(j);
    }
    int64_t total = 0;
    if (groups) {
      Numbering number(groups, m, candidate_groups, n);
      row_group = Buffer<int32_t>(padded_m, -2), column_group = Buffer<int32_t>(padded_n, -1);
      for (int64_t i = 0; i < m; ++i) row_group[i] = number(groups[i]);
      for (int64_t j = 0; j < n; ++j) column_group[j] = number(candidate_groups[j]);
      members_start.assign(number.size() + 1, 0);
      for (int64_t j = 0; j < n; ++j) ++members_start[column_group[j] + 1];
      for (int32_t g = 0; g < number.size(); ++g) members_start[g + 1] += members_start[g];
      members.resize(n);
      std::vector<int64_t> next(members_start.begin(), members_start.end() - 1);
      for (int64_t j = 0; j < n; ++j) members[next[column_group[j]]++] = static_cast<int32_t>(j);
      for (int64_t i = 0; i < m; ++i) total += members_start[row_group[i] + 1] - members_start[row_group[i]];
    }
    grouped = total > kListed * m + n;
    if (grouped) {
      STD_TORCH_CHECK(!index && positive_offset < 0, "the native contrastive op takes groups or positive_index, not both");
      for (int64_t i = 0; i < m; ++i) {
        const int64_t g = row_group[i];
        count[i] = members_start[g + 1] - members_start[g] - self_is_positive(i);
      }
      return;
    }
    list.reserve(total + 2 * m);
    for (int64_t i = 0; i < m; ++i) {
      const auto begin = static_cast<int64_t>(list.size());
      if (groups) {
        const int64_t g = row_group[i];
        list.insert(list.end(), members.begin() + members_start[g], members.begin() + members_start[g + 1]);
      }
      if (positive_offset >= 0 && positive_offset < n - i) list.push_back(static_cast<int32_t>(i + positive_offset));
      if (index && index[i] >= 0 && index[i] < n) list.push_back(static_cast<int32_t>(index[i]));
      if (self.size()) list.erase(std::remove(list.begin() + begin, list.end(), self[i]), list.end());
      std::sort(list.begin() + begin, list.end());
      list.erase(std::unique(list.begin() + begin, list.end()), list.end());
      start[i + 1] = static_cast<int64_t>(list.size());
      count[i] = start[i + 1] - begin;
    }
  }

  int64_t members_in(int64_t group) const { return members_start[group + 1] - members_start[group]; }

  // Whether the row itself, which is left out, is of the row's group.
  bool self_is_positive(int64_t i) const {
    return self.size() && self[i] >= 0 && column_group[self[i]] == row_group[i];
  }
};

// Columns that rows have in common: the list the other way round, with places in it.
struct Transposed {
  std::vector<int64_t> start;
  std::vector<int32_t> row;
  std::vector<int64_t> place;

  Transposed(const Positives& p, int64_t m, int64_t n) : start(n + 1, 0), row(p.list.size()), place(p.list.size()) {
    for (int32_t j : p.list) ++start[j + 1];
    for (int64_t j = 0; j < n; ++j) start[j + 1] += start[j];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t at = p.start[i]; at < p.start[i + 1]; ++at) {
        const int64_t to = next[p.list[at]]++;
        row[to] = static_cast<int32_t>(i), place[to] = at;
      }
  }
};

}  // namespace clead
