#include "clead/winograd.h"

#include "clead/tile_product.h"

namespace clead::CLEAD_ISA {
namespace {

constexpr double kA = 0.75, kB = 1.5;  // the points are 0, kA, -kA, kB, -kB, infinity
constexpr double kAA = kA * kA, kBB = kB * kB;
// One over the derivative, at each point, of the polynomial whose roots the points are.
constexpr double kOf0 = 1 / (kAA * kBB), kOfA = 1 / (2 * kAA * (kAA - kBB)), kOfB = 1 / (2 * kBB * (kBB - kAA));

template <class T>
constexpr int64_t kPanel = 2 * kLanes<T>;  // columns of tile_product's register tiles

constexpr int64_t kSummed = 64;  // channels of a sum in registers: sums of sums keep more digits than one long one

template <class T>
CLEAD_INLINE Vec<T> times(double factor, Vec<T> x) {
  return static_cast<T>(factor) * x;
}
template <class T>
CLEAD_INLINE Vec<T> times(double factor, Vec<T> x, Vec<T> plus) {
  return fma(all(static_cast<T>(factor)), x, plus);
}

// Six values of a row or column of x at the points.
template <class T>
CLEAD_INLINE void of_values(const Vec<T> x[6], Vec<T> at[6]) {
  const Vec<T> even_a = times<T>(-kBB, x[2], x[4]), odd_a = times<T>(-kBB, x[1], x[3]);
  const Vec<T> even_b = times<T>(-kAA, x[2], x[4]), odd_b = times<T>(-kAA, x[1], x[3]);
  at[0] = times<T>(kAA * kBB, x[0], times<T>(-(kAA + kBB), x[2], x[4]));
  at[1] = times<T>(kA, odd_a, even_a);
  at[2] = times<T>(-kA, odd_a, even_a);
  at[3] = times<T>(kB, odd_b, even_b);
  at[4] = times<T>(-kB, odd_b, even_b);
  at[5] = times<T>(kAA * kBB, x[1], times<T>(-(kAA + kBB), x[3], x[5]));
}

// Four results from the sums at the points.
template <class T>
CLEAD_INLINE void to_results(const Vec<T> at[6], Vec<T> y[4]) {
  const Vec<T> even_a = at[1] + at[2], odd_a = at[1] - at[2], even_b = at[3] + at[4], odd_b = at[3] - at[4];
  y[0] = at[0] + even_a + even_b;
  y[1] = times<T>(kA, odd_a, times<T>(kB, odd_b));
  y[2] = times<T>(kAA, even_a, times<T>(kBB, even_b));
  y[3] = times<T>(kA * kAA, odd_a, times<T>(kB * kBB, odd_b, at[5]));
}

// Its transpose.
template <class T>
CLEAD_INLINE void of_results(const Vec<T> y[4], Vec<T> at[6]) {
  const Vec<T> even_a = times<T>(kAA, y[2], y[0]), odd_a = times<T>(kA, times<T>(kAA, y[3], y[1]));
  const Vec<T> even_b = times<T>(kBB, y[2], y[0]), odd_b = times<T>(kB, times<T>(kBB, y[3], y[1]));
  at[0] = y[0];
  at[1] = even_a + odd_a;
  at[2] = even_a - odd_a;
  at[3] = even_b + odd_b;
  at[4] = even_b - odd_b;
  at[5] = y[3];
}

// Three taps at the points.
template <class T>
CLEAD_INLINE void of_taps(const Vec<T> w[3], Vec<T> at[6]) {
  const Vec<T> even_a = times<T>(kOfA, times<T>(kAA, w[2], w[0])), odd_a = times<T>(kOfA * kA, w[1]);
  const Vec<T> even_b = times<T>(kOfB, times<T>(kBB, w[2], w[0])), odd_b = times<T>(kOfB * kB, w[1]);
  at[0] = times<T>(kOf0, w[0]);
  at[1] = even_a + odd_a;
  at[2] = even_a - odd_a;
  at[3] = even_b + odd_b;
  at[4] = even_b - odd_b;
  at[5] = w[2];
}

// Its transpose.
template <class T>
CLEAD_INLINE void to_taps(const Vec<T> at[6], Vec<T> w[3]) {
  const Vec<T> even_a = times<T>(kOfA, at[1] + at[2]), even_b = times<T>(kOfB, at[3] + at[4]);
  w[0] = times<T>(kOf0, at[0], even_a + even_b);
  w[1] = times<T>(kOfA * kA, at[1] - at[2], times<T>(kOfB * kB, at[3] - at[4]));
  w[2] = times<T>(kAA, even_a, times<T>(kBB, even_b, at[5]));
}

// A transform of both dimensions: from [From][From] to [To][To].
template <class T, int From, int To, class Transform>
CLEAD_INLINE void both(const Vec<T> from[From][From], Vec<T> to[To][To], const Transform& transform) {
  Vec<T> half[To][From];
#pragma GCC unroll 6
  for (int j = 0; j < From; ++j) {
    Vec<T> column[From], turned[To];
    for (int i = 0; i < From; ++i) column[i] = from[i][j];
    transform(column, turned);
    for (int i = 0; i < To; ++i) half[i][j] = turned[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < To; ++i) transform(half[i], to[i]);
}

// Where a tile begins: its row and column in an image, and the address of that place.
template <class T>
struct Corner {
  Corner(const Tiled<T>& images, int64_t tile) {
    const int64_t image = tile / images.per_image(), within = tile % images.per_image();
    row = within / images.across() * 4;
    column = within % images.across() * 4;
    data = images.data + image * images.image_step + row * images.row_step + column * images.column_step;
  }

  int64_t row, column;
  T* data;
};

// Size x Size values from (row, column) on, and zeros beyond the image.
template <class T, int Size>
CLEAD_INLINE void load_tile(const Tiled<const T>& x, const T* from, int64_t row, int64_t column,
                            Vec<T> to[Size][Size]) {
  const bool inside = row >= 0 && column >= 0 && row + Size <= x.height && column + Size <= x.width;
  for (int i = 0; i < Size; ++i)
    for (int j = 0; j < Size; ++j) {
      const bool there = inside || (row + i >= 0 && row + i < x.height && column + j >= 0 && column + j < x.width);
      to[i][j] = there ? load(from + i * x.row_step + j * x.column_step) : Vec<T>{};
    }
}

template <class T, int Size>
CLEAD_INLINE void store_points(const Vec<T> at[Size][Size], T* to, int64_t step) {
  for (int i = 0; i < Size; ++i)
    for (int j = 0; j < Size; ++j) store(to + (i * Size + j) * step, at[i][j]);
}

template <class T, int Size>
CLEAD_INLINE void load_points(const T* from, int64_t step, Vec<T> at[Size][Size]) {
  for (int i = 0; i < Size; ++i)
    for (int j = 0; j < Size; ++j) at[i][j] = load(from + (i * Size + j) * step);
}

// Tiles of From x From values, Before of them in each direction before the corner, at the points.
template <class T, int From, int Before, class Transform>
CLEAD_INLINE void tiles_of(const Tiled<const T>& x, int64_t first, int64_t count, T* to, int64_t rows, int64_t panel,
                           const Transform& transform) {
  const int64_t plane = winograd_plane(rows, (x.channels + panel - 1) / panel * panel);
  for (int64_t t = 0; t < count; ++t) {
    const Corner<const T> corner(x, first + t);
    const T* const from = corner.data - Before * (x.row_step + x.column_step);
    for (int64_t c = 0; c < x.channels; c += kLanes<T>) {
      Vec<T> tile[From][From], at[6][6];
      load_tile<T, From>(x, from + c, corner.row - Before, corner.column - Before, tile);
      both<T, From, 6>(tile, at, transform);
      store_points<T, 6>(at, to + (c / panel * rows + t) * panel + c % panel, plane);
    }
  }
}

template <class T>
void store_results(const T* sums, int64_t rows, const T* bias, int64_t begin, int64_t end, const Tiled<T>& out,
                   int64_t first, int64_t count) {
  for (int64_t t = 0; t < count; ++t) {
    const Corner<T> corner(out, first + t);
    const int64_t down = std::min<int64_t>(4, out.height - corner.row);
    const int64_t across = std::min<int64_t>(4, out.width - corner.column);
    for (int64_t c = begin; c < end; c += kLanes<T>) {
      Vec<T> at[6][6], y[4][4];
      load_points<T, 6>(sums + t * kColumnBlock + c - begin, winograd_plane(rows, kColumnBlock), at);
      both<T, 6, 4>(at, y, to_results<T>);
      const Vec<T> shift = bias == nullptr ? Vec<T>{} : load(bias + c);
      for (int64_t i = 0; i < down; ++i)
        for (int64_t j = 0; j < across; ++j)
          store(corner.data + i * out.row_step + j * out.column_step + c, y[i][j] + shift);
    }
  }
}

template <class T>
void multiply(const T* values, int64_t rows, int64_t in, const T* packed, const T* bias, int64_t begin, int64_t end,
              T* sums, const Tiled<T>& out, int64_t first, int64_t count) {
  const int64_t plane = winograd_plane(rows, in), kernel = winograd_plane(kColumnBlock, in);
  for (int64_t c = begin; c < end; c += kColumnBlock) {
    const int64_t columns = std::min(kColumnBlock, end - c);
    for (int64_t p = 0; p < kPoints; ++p)
      for (int64_t k = 0; k < in; k += kSummed) {
        const int64_t depth = std::min(kSummed, in - k);
        const T* const right = packed + (c / kColumnBlock * kPoints + p) * kernel + k * kColumnBlock;
        tile_product<T>(values + p * plane + k, in, 1, right, kPanel<T>, kPanel<T> * depth,
                        sums + p * winograd_plane(rows, kColumnBlock), kColumnBlock, count, columns, depth, k > 0);
      }
    store_results(sums, rows, bias, c, c + columns, out, first, count);
  }
}

// packed, in the order in which multiply reads it: for kColumnBlock channels out 36 planes of parts of kSummed channels
// in, each [kColumnBlock / panel, channels in, panel] as tile_product takes it.
template <class T>
void pack(const Kernel<const T>& kernel, int64_t begin, int64_t end, T* packed) {
  constexpr int64_t kDepth = 16;  // a part of the kernel that stays in the cache
  const int64_t plane = winograd_plane(kColumnBlock, kernel.in);
  T part[kDepth * 9 * kPanel<T>];
  for (int64_t o = begin; o < winograd_padded(end); o += kPanel<T>)
    for (int64_t first = 0; first < kernel.in; first += kDepth) {
      const int64_t depth = std::min(kDepth, kernel.in - first), summed = first / kSummed * kSummed;
      T* const to = packed + o / kColumnBlock * kPoints * plane + summed * kColumnBlock +
                    o % kColumnBlock * std::min(kSummed, kernel.in - summed) + (first - summed) * kPanel<T>;
      for (int64_t lane = 0; lane < kPanel<T>; ++lane)
        for (int64_t c = 0; c < depth; ++c)
          for (int64_t tap = 0; tap < 9; ++tap) {
            const T* const from = kernel.data + (o + lane) * kernel.out_step + (first + c) * kernel.in_step;
            part[(c * 9 + tap) * kPanel<T> + lane] =
                o + lane < kernel.out ? from[tap / 3 * kernel.row_step + tap % 3 * kernel.column_step] : T(0);
          }
      for (int64_t c = 0; c < depth; ++c)
        for (int64_t lane = 0; lane < kPanel<T>; lane += kLanes<T>) {
          Vec<T> taps[3][3], at[6][6];
          load_points<T, 3>(part + c * 9 * kPanel<T> + lane, kPanel<T>, taps);
          both<T, 3, 6>(taps, at, of_taps<T>);
          store_points<T, 6>(at, to + c * kPanel<T> + lane, plane);
        }
    }
}

template <class T>
void correlate(const T* gradients, int64_t out, const T* values, int64_t in, int64_t rows, int64_t count,
               const Part& part, T* sums, bool add) {
  const int64_t plane_out = winograd_plane(rows, (out + kRowPanel - 1) / kRowPanel * kRowPanel);
  const int64_t plane_in = winograd_plane(rows, (in + kPanel<T> - 1) / kPanel<T> * kPanel<T>);
  for (int64_t p = 0; p < kPoints; ++p)
    for (int64_t o = part.out; o < part.out_end; o += kRowPanel)
      tile_product<T>(gradients + p * plane_out + o * rows, 1, kRowPanel, values + p * plane_in + part.in * rows,
                      kPanel<T>, kPanel<T> * rows, sums + p * kSumsPlane + (o - part.out) * kColumnBlock, kColumnBlock,
                      std::min(kRowPanel, part.out_end - o), part.in_end - part.in, count, add);
}

template <class T>
void unpack(const T* sums, int64_t groups, int64_t step, const Part& part, const Kernel<T>& gradient) {
  for (int64_t o = part.out; o < part.out_end; ++o)
    for (int64_t c = part.in; c < part.in_end; c += kLanes<T>) {
      const T* const from = sums + (o - part.out) * kColumnBlock + c - part.in;
      Vec<T> at[6][6], taps[3][3];
      load_points<T, 6>(from, kSumsPlane, at);
      for (int64_t g = 1; g < groups; ++g)
        for (int p = 0; p < kPoints; ++p) at[p / 6][p % 6] += load(from + g * step + p * kSumsPlane);
      both<T, 6, 3>(at, taps, to_taps<T>);
      T* const to = gradient.data + o * gradient.out_step + c * gradient.in_step;
      for (int lane = 0; lane < kLanes<T>; ++lane)
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j)
            to[lane * gradient.in_step + i * gradient.row_step + j * gradient.column_step] = taps[i][j][lane];
    }
}

}  // namespace

#define CLEAD_DEFINE(T)                                                                                                \
  void winograd_pack(const Kernel<const T>& kernel, int64_t begin, int64_t end, T* packed) {                           \
    pack(kernel, begin, end, packed);                                                                                  \
  }                                                                                                                    \
  void winograd_values(const Tiled<const T>& x, int64_t first, int64_t count, T* values, int64_t rows,                 \
                       int64_t panel) {                                                                                \
    tiles_of<T, 6, 1>(x, first, count, values, rows, panel, of_values<T>);                                             \
  }                                                                                                                    \
  void winograd_gradients(const Tiled<const T>& grad, int64_t first, int64_t count, T* gradients, int64_t rows) {      \
    tiles_of<T, 4, 0>(grad, first, count, gradients, rows, kRowPanel, of_results<T>);                                  \
  }                                                                                                                    \
  void winograd_multiply(const T* values, int64_t rows, int64_t in, const T* packed, const T* bias, int64_t begin,     \
                         int64_t end, T* sums, const Tiled<T>& out, int64_t first, int64_t count) {                    \
    multiply(values, rows, in, packed, bias, begin, end, sums, out, first, count);                                     \
  }                                                                                                                    \
  void winograd_correlate(const T* gradients, int64_t out, const T* values, int64_t in, int64_t rows, int64_t count,   \
                          const Part& part, T* sums, bool add) {                                                       \
    correlate(gradients, out, values, in, rows, count, part, sums, add);                                               \
  }                                                                                                                    \
  void winograd_unpack(const T* sums, int64_t groups, int64_t step, const Part& part, const Kernel<T>& gradient) {     \
    unpack(sums, groups, step, part, gradient);                                                                        \
  }                                                                                                                    \
  void winograd_panel(T, int64_t* panel) { *panel = kPanel<T>; }
CLEAD_DEFINE(float)
CLEAD_DEFINE(double)

}  // namespace clead::CLEAD_ISA
