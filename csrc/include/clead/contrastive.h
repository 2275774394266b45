// The contrastive family on raw pointers: what the tile kernels read and write. Torch-free.
//
// Row i is an anchor, column j a candidate, c_ij = <a_i, b_j> or -|a_i - b_j|^2, and s_ij = c_ij / temperature. Pairs of blocks of rows and
// columns are visited in steps in which no two tasks share a row block or a column block, so every sum is added in one
// order whatever the number of threads. Nothing of size rows x columns is ever held: a task holds a strip of one tile.
#pragma once

#include <cstdint>

#include "clead/isa.h"
#include "clead/pixel.h"

namespace clead {

constexpr int64_t kStrip = 96;         // rows of a strip; every register tile's height and width divides it
constexpr int64_t kColumnSums = 6;  // vectors as wide as a block behind a strip
constexpr double kTinyNorm = 1e-12;    // rows with a smaller norm are divided by this and get no gradient
constexpr double kLog2e = 1.4426950408889634074;

// A sum of powers of two: sum * 2^max.
template <class T>
struct Sums {
  double* sum;
  T* max;
};

// For -sum log(1 - p_ij) over the negatives of a row, p_ij = share * 2^(k c_ij - shift). Where p_ij exceeds kDominant,
// which only one can, 1 - p_ij would lose its digits: it comes from the sum of the others.
constexpr double kDominant = 0.6;
template <class T>
struct Spread {
  T* share;
  double *logs, *odds;    // forward: sums over the others of -log(1 - p) and p / (1 - p)
  Sums<T> others;         // forward: of what p is share times
  bool* dominant;         // forward: there is one
  T *weight, *factor;     // backward: the gradient is weight * p * factor, and for the others
  T *scale, *shift;       // weight * (p * (factor + p / (1 - p)) - scale * 2^(k c_ij - shift)); scale 0: no dominant one
};

// Positives in the tile with denominators of their own: y = k c_ij - log2 of the sum of row i's negatives, which is shift +
// rest, and 1 / (1 + 2^-y) the probability of the positive.
template <class T>
struct Own {
  T *shift, *rest;
  double *logs, *complements;  // forward: sums over positives of -log(probability) and 1 - probability
  Sums<T> shares, products;    // forward: of probabilities, and of these times their complements
  T* weight;                   // backward: the gradient by s_ij is weight * share * (1 - probability); share is 1, or
  T *share_shift, *share_scale;  // if averaged inside the logarithm 2^(k c_ij - share_shift) * share_scale / (1 + 2^y),
  T* share;                    // which is share / (1 + 2^-y)
};

// False negatives that became positives, of each row: how many, and the sum of their c_ij.
struct Attracted {
  double *count, *dots;
};

// The largest cosines of negatives in each row, descending, and their columns.
template <class T>
struct Search {
  int64_t k;
  T* best;           // [rows of a block, k]
  int32_t* column;   // the same, or null
};

// A set of rows. Padded rows and columns are zero.
template <class T>
struct Rows {
  int64_t size;
  T* unit;                // [padded, ld]: the rows, divided by their norms if the loss asks for it
  T* panels;              // [padded / panel, d, panel]: the same, transposed in panels
  double* inverse_norm;   // 1 / max(norm, tiny)
  bool* gradient;         // norm >= tiny
  const int32_t* group;   // positives of other rows by equality; null if they are listed and none is attracted
  const int32_t* cluster_as_row;     // false negatives by equality of one's as_row and the other's as_column
  const int32_t* cluster_as_column;  // [levels, padded] each
  int64_t cluster_step;              // padded
  const T* threshold;     // cosines above are false negatives; of anchors, and of candidates if symmetric
  const T* cosine_scale;  // inverse norms where c_ij is no cosine but the rules need one, else 1
  const T* square;        // squared norms of the rows as they are in unit, where c_ij is a distance
  Sums<T> negatives, positives;      // forward: seen as row (anchors), seen as column (candidates)
  Attracted attracted;               // the same
  T *alpha, *gamma, *rho;            // backward: weights of e_ij for negatives, for positives, and what is subtracted
  T *shift, *positive_shift;         // backward: integers; e_ij is 2^(k c_ij - shift) where exponents range too far
  T *soft_alpha, *soft_shift;        // backward: of a second exponential of negatives
  T* gradient_sum;                   // backward: [padded, ld]
  double* weight_sum;                // backward: sums of the gradients by s_ij; null if nobody needs them
  double* score_sum;                 // backward, anchors: of these times c_ij (symmetric: twice); null likewise
  Spread<T> spread;
  Own<T> own;
};

template <class T>
struct Contrast {
  int64_t d, ld, block;
  Rows<T> *a, *b;         // the same if symmetric, but for the state that b has of its own
  bool symmetric;         // b is a
  bool both;              // a tile serves c_ij and c_ji: so it is if b is a, or its rows are anchors of a's as well
  bool normalized;        // |c_ij| <= 1, or 4 for distances
  bool bounded;           // and the temperature is such that 2^(k_negatives c_ij - top) never flushes to 0
  bool spread;            // the loss has the term of Spread
  bool euclidean;         // c_ij is minus a squared distance
  bool sigmoid;           // every pair is classified on its own
  bool soft;              // backward: negatives have a second exponential, 2^(k_soft c_ij - soft_shift)
  bool own;               // positives are as in Own
  bool inside;            // and averaged inside the logarithm
  bool false_negatives;   // some rule is given
  bool threshold_only;    // and it is a threshold on c_ij itself
  bool all_rules;
  bool attract;           // false negatives are positives, else they have a weight
  int64_t levels;         // of clusters, one of which suffices
  bool need_a, need_b;
  T weight;               // of a false negative
  T k;                    // log2(e) / temperature
  T k_negatives, k_soft;  // the same for negatives, if they count by another power of their exponential
  T top;                  // if bounded, what k_negatives c_ij does not exceed
  T bias;                 // sigmoid: log2(e) times the bias
  const int32_t* self;    // [rows]: the column that is left out; -1: none; null: of no row
  const int64_t* list_start;  // [rows + 1] into list: positive columns of each row, ascending; null if grouped
  const int32_t* list;
};

#define CLEAD_DECLARE_FOR(T)                                                                           \
  int64_t contrast_panel(T);                                                                           \
  void contrast_forward(const Contrast<T>&, int64_t row_block, int64_t column_block, T* strip);        \
  void contrast_backward(const Contrast<T>&, int64_t row_block, int64_t column_block, T* strip);       \
  void contrast_spread(const Contrast<T>&, int64_t row_block, int64_t column_block, T* strip);         \
  void contrast_own(const Contrast<T>&, int64_t row_block, int64_t column_block, T* strip);            \
  void contrast_search(const Contrast<T>&, int64_t row_block, int64_t column_block, T* strip, const Search<T>&); \
  void contrast_pack(const Contrast<T>&, Rows<T>&, int64_t begin, int64_t end);                        \
  void contrast_set(double& dot, const T*, const T*, int64_t);                                          \
  void contrast_distance(double& square, const T*, const T*, int64_t);                                  \
  void contrast_add(const T* x, double scale, double* sum, int64_t);                                   \
  void contrast_project_to(double& radial, const double* sum, double scale, const T* unit, double inverse, bool gradient, bool normalize, \
                          T* out, int64_t);                                                            \
  void contrast_load(const double* x, int64_t stride, T* out, double* inverse, bool* gradient, bool normalize, int64_t); \
  void contrast_load(const float* x, int64_t stride, T* out, double* inverse, bool* gradient, bool normalize, int64_t);  \
  void contrast_load(const Bf16* x, int64_t stride, T* out, double* inverse, bool* gradient, bool normalize, int64_t);   \
  void contrast_load(const Half* x, int64_t stride, T* out, double* inverse, bool* gradient, bool normalize, int64_t);
#define CLEAD_DECLARE(isa)  \
  namespace isa {           \
  CLEAD_DECLARE_FOR(float)  \
  CLEAD_DECLARE_FOR(double) \
  }
CLEAD_FOR_EACH_ISA(CLEAD_DECLARE)
#undef CLEAD_DECLARE
#undef CLEAD_DECLARE_FOR

}  // namespace clead
