#include "clead/similarity_topk.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "clead/buffer.h"
#include "clead/similarity_rows.h"
#include "parallel.h"
#include "torch_operands.h"

namespace clead {
namespace {

constexpr int64_t kSlack = 32;                 // candidates a query collects beyond 2 k before it forgets
constexpr int64_t kMostQueries = 10 * kStrip;  // of a group: its strip of scores stays in the second-level cache
constexpr int64_t kMostNumbers = 1 << 19;      // and so do its queries
constexpr int64_t kMostKeys = 1 << 20;         // of a group
constexpr int64_t kLeastSegment = 4096;        // rows of the bank worth a thread

template <class T>
void keep(Best<T>& best, int64_t query) {
  Key<T>* const keys = best.keys + query * best.capacity;
  std::nth_element(keys, keys + best.k - 1, keys + best.count[query], std::greater<Key<T>>());
  best.count[query] = best.k;
  best.cut[query] = keys[best.k - 1];
  best.least[query] = score_of<T>(best.cut[query]);
}

int64_t round_to(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// How queries are grouped and the bank is cut into segments: one task for each group and segment.
struct Plan {
  Plan(int64_t queries, int64_t bank, int64_t d, int64_t k) : capacity(std::min(bank, 2 * k + kSlack)) {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t most = std::min(kMostQueries, kMostNumbers / std::max<int64_t>(d, 1)) / kStrip * kStrip;
    group = std::min(round_to((queries + threads - 1) / threads, kStrip), std::max(most, kStrip));
    group = std::max<int64_t>(1, std::min(group, kMostKeys / capacity));
    groups = (queries + group - 1) / group;
    const int64_t wanted = (threads + groups - 1) / groups, most_segments = bank / std::max(kLeastSegment, 8 * k);
    const int64_t parts = std::max<int64_t>(1, std::min(wanted, most_segments));
    segment = round_to((bank + parts - 1) / parts, kStrip);
    segments = (bank + segment - 1) / segment;
  }

  int64_t capacity, group, groups, segment, segments;
};

// S is what the rows are stored in, T what they are computed in.
template <class S, class T>
class Search {
 public:
  Search(const Tensor& queries, const Tensor& bank, int64_t k, bool normalize, T* values, int64_t* indices)
      : queries_(queries), bank_(bank), k_(k), normalize_(normalize), d_(queries.size(1)),
        plan_(queries.size(0), bank.size(0), d_, k), values_(values), indices_(indices) {
    if (plan_.segments > 1) keys_ = Buffer<Key<T>>(queries.size(0) * plan_.segments * k, Key<T>(0));
  }

  void run() {
    parallel_for(plan_.groups * plan_.segments, 1, [&](int64_t begin, int64_t end) {
      const Scratch scratch(*this);
      for (int64_t task = begin; task < end; ++task) search(task / plan_.segments, task % plan_.segments, scratch);
    });
    if (plan_.segments == 1) return;
    const int64_t all = plan_.segments * k_;
    parallel_for(queries_.size(0), 16, [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q) finish(q, keys_.data() + q * all, all);
    });
  }

 private:
  struct Scratch {
    explicit Scratch(const Search& x)
        : padded(round_to(x.plan_.group, kStrip)),
          ld(x.d_ + (x.d_ % 256 == 0 ? 16 : 0)),  // rows a power of two apart would share cache sets
          keys(x.plan_.group * x.plan_.capacity), cut(x.plan_.group), count(x.plan_.group), least(padded),
          panels(padded * x.d_, T(0)), strip(kStrip * padded, T(0)), rows(kStrip * ld, T(0)) {}

    int64_t padded, ld;
    Buffer<Key<T>> keys, cut;
    Buffer<int64_t> count;
    Buffer<T> least, panels, strip, rows;
  };

  void search(int64_t group, int64_t segment, const Scratch& s) {
    const int64_t q0 = group * plan_.group, n0 = segment * plan_.segment;
    const int64_t size = std::min(plan_.group, queries_.size(0) - q0);
    const int64_t end = std::min(n0 + plan_.segment, bank_.size(0));
    Best<T> best{std::min(k_, end - n0), plan_.capacity, size,         s.keys.data(),
                 s.count.data(),         s.least.data(), s.cut.data()};
    std::fill_n(best.count, size, 0);
    std::fill_n(best.cut, size, Key<T>(0));
    std::fill_n(best.least, size, std::numeric_limits<T>::quiet_NaN());
    std::fill(best.least + size, best.least + s.padded, std::numeric_limits<T>::infinity());
    const Queries<T> group_rows = load_queries(q0, size, s);
    for (int64_t first = n0; first < end; first += kStrip) {
      const int64_t count = std::min(kStrip, end - first);
      for (int64_t r = 0; r < count; ++r) load_row(bank_, first + r, s.rows.data() + r * s.ld);
      CLEAD_ISA_CALL(topk_scan(group_rows, s.rows.data(), count, first, s.strip.data(), best));
    }
    for (int64_t q = 0; q < size; ++q) {
      Key<T>* const keys = best.keys + q * best.capacity;
      if (plan_.segments == 1) {
        finish(q0 + q, keys, best.count[q]);
      } else {
        keep(best, q);
        std::copy_n(keys, best.k, keys_.data() + ((q0 + q) * plan_.segments + segment) * k_);
      }
    }
  }

  Queries<T> load_queries(int64_t first, int64_t size, const Scratch& s) const {
    const Queries<T> queries{d_, s.ld, s.padded, s.panels.data()};
    for (int64_t q = 0; q < size; ++q) {
      load_row(queries_, first + q, s.rows.data());
      CLEAD_ISA_CALL(topk_pack(queries, q, s.rows.data()));
    }
    return queries;
  }

  void load_row(const Tensor& x, int64_t i, T* out) const {
    const S* const row = const_data<S>(x) + i * x.stride(0);
    Norm norm;
    CLEAD_ISA_CALL(unit_row(row, x.stride(1), d_, normalize_, 1.0, out, norm));
  }

  void finish(int64_t query, Key<T>* keys, int64_t count) const {
    if (count > k_) std::nth_element(keys, keys + k_ - 1, keys + count, std::greater<Key<T>>());
    std::sort(keys, keys + k_, std::greater<Key<T>>());
    for (int64_t i = 0; i < k_; ++i) {
      values_[query * k_ + i] = score_of<T>(keys[i]);
      indices_[query * k_ + i] = index_of<T>(keys[i]);
    }
  }

  const Tensor &queries_, &bank_;
  const int64_t k_;
  const bool normalize_;
  const int64_t d_;
  const Plan plan_;
  T* const values_;
  int64_t* const indices_;
  Buffer<Key<T>> keys_;  // [queries, segments, k]
};

void similarity_topk_(Tensor queries, Tensor bank, int64_t k, bool normalize, Tensor values, Tensor indices) {
  const auto dtype = queries.scalar_type();
  STD_TORCH_CHECK(queries.dim() == 2 && bank.dim() == 2 && queries.size(1) == bank.size(1) &&
                      bank.scalar_type() == dtype,
                  "queries and bank must be [rows, d] with one d and one dtype");
  const int64_t m = queries.size(0), n = bank.size(0);
  STD_TORCH_CHECK(m < int64_t(1) << 31 && n < int64_t(1) << 32 && queries.size(1) < int64_t(1) << 28,
                  "similarity_topk takes fewer than 2^31 queries, 2^32 rows of a bank and 2^28 columns");
  STD_TORCH_CHECK(k >= 1 && k <= n, "k must be in [1, ", n, "]");
  STD_TORCH_CHECK(values.is_contiguous() && values.numel() == m * k && indices.is_contiguous() &&
                      indices.numel() == m * k && indices.scalar_type() == ScalarType::Long &&
                      values.scalar_type() == (dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float),
                  "values and indices must be contiguous [", m, ", ", k, "], of the working dtype and int64");
  isa(), const_data<void>(queries), const_data<void>(bank);  // may throw, which must not happen on a worker thread
  if (m == 0) return;
  for_pixels(dtype, "similarity_topk", [&]<class S>() {
    using T = Wide<S>;
    Search<S, T>(queries, bank, k, normalize, mutable_data<T>(values),
                 mutable_data<int64_t>(indices))
        .run();
  });
}

}  // namespace

void keep_best(Best<float>& best, int64_t query) { keep(best, query); }
void keep_best(Best<double>& best, int64_t query) { keep(best, query); }

}  // namespace clead

STABLE_TORCH_LIBRARY_IMPL(clead, CPU, m) { m.impl("similarity_topk_native_", TORCH_BOX(&clead::similarity_topk_)); }
