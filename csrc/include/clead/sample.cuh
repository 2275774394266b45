// One sample shared by the blocks of a cluster (one block before Hopper), on chip where it fits. Torch-free.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "clead/pixel.h"

namespace clead::cuda {

constexpr int kTeamThreads = 512, kTeamWarps = kTeamThreads / 32;
constexpr int kBlockPiece = 128;  // terms summed together, as in perturb/arithmetic.py
constexpr int kMaxTeam = 8;       // blocks in a portable cluster
constexpr int kSampleDims = 6;
constexpr int kMaxSample = kBlockPiece * kBlockPiece * kBlockPiece;

// A number per sample: from a tensor where given.
template <class T>
struct PerSampleNumber {
  const Wide<T>* tensor;
  int64_t stride;
  double scalar;
  __device__ double at(int64_t sample) const { return tensor != nullptr ? tensor[sample * stride] : scalar; }
};

// Operands x_adv, grad, x, in this order; element e of a sample counts in C order, innermost dimension first here.
template <class T>
struct Samples {
  int64_t count;
  int size;
  int dims, dim[kSampleDims];
  int64_t stride[kSampleDims][3], sample_stride[3];
  T* x_adv;
  const T *grad, *x;  // grad null: projection only
  PerSampleNumber<T> eps, step, sparsity;
  double low, high;
  bool down;          // descend
  int pieces;         // of a sample, per block
  bool staged;        // in shared memory
};

__device__ inline int team_size() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(cooperative_groups::this_cluster().num_blocks());
#else
  return 1;
#endif
}

__device__ inline void team_sync() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#else
  __syncthreads();
#endif
}

// The same shared variable of another block of the team.
template <class V>
__device__ V* of_block(V* shared, int rank) {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
#else
  return shared;
#endif
}

__device__ inline double narrow_towards(double value, double, double) { return value; }
template <class T>
__device__ T narrow_towards(double value, double x, T) {
  const float near = value > x ? __double2float_rd(value) : __double2float_ru(value);
  T out;
  narrow(near, static_cast<float>(x), out);
  return out;
}

__device__ inline double clamped(double value, double low, double high) {
  value = value < low ? low : value;  // NaN stays
  return value > high ? high : value;
}

__device__ inline double power_of_two(double value) {
  int exponent;
  return value / (2.0 * frexp(value, &exponent));
}

// What a block sees of its sample: elements [0, count) are numbers first, … of it.
template <class T>
class Sample {
 public:
  // memory: shared, `shared_bytes(…)` of it.
  __device__ Sample(const Samples<T>& samples, unsigned char* memory)
      : s(samples),
        index(static_cast<int>(blockIdx.x) / team_size()),
        rank(static_cast<int>(blockIdx.x) % team_size()),
        first_(rank * s.pieces * kBlockPiece) {
    const int left = s.size - first_, most = s.pieces * kBlockPiece;
    count = left < 0 ? 0 : (left < most ? left : most);
    part_ = reinterpret_cast<double*>(memory);
    staged_ = reinterpret_cast<T*>(part_ + s.pieces);
    if (s.staged) {
      for (int i = threadIdx.x; i < count; i += kTeamThreads) {
        int64_t at[3];
        offsets(i, at);
        staged_[i] = s.x_adv[at[0]];
        staged_[most + i] = s.x[at[2]];
        if (s.grad != nullptr) staged_[2 * most + i] = s.grad[at[1]];
      }
      __syncthreads();
    }
  }

  static int64_t shared_bytes(int pieces, bool staged, int operands) {
    return pieces * static_cast<int64_t>(sizeof(double) + (staged ? operands * kBlockPiece * sizeof(T) : 0));
  }

  __device__ Wide<T> x_adv(int i) const { return widen(s.staged ? staged_[i] : s.x_adv[offset(i, 0)]); }
  __device__ Wide<T> x(int i) const { return widen(s.staged ? staged_[most() + i] : s.x[offset(i, 2)]); }
  __device__ Wide<T> grad(int i) const { return widen(s.staged ? staged_[2 * most() + i] : s.grad[offset(i, 1)]); }

  __device__ void write(int i, double value, double x) const {
    s.x_adv[offset(i, 0)] = narrow_towards(value, x, T{});
  }

  __device__ void store(int i, Wide<T> value, Wide<T> x) const { narrow(value, x, s.x_adv[offset(i, 0)]); }

  // Calls visit(i) for the elements of this thread.
  template <class Visit>
  __device__ void each(Visit&& visit) const {
    for (int i = threadIdx.x; i < count; i += kTeamThreads) visit(i);
  }

  // Over all threads of the team; op is associative and commutative to the bit.
  template <class V, class Op>
  __device__ V reduce(V value, Op op) const {
    __shared__ V warps[kTeamWarps];
    __shared__ V block;
    for (int offset = 16; offset > 0; offset /= 2) value = op(value, __shfl_xor_sync(~0u, value, offset));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kTeamWarps; ++w) value = op(value, warps[w]);
      block = value;
    }
    team_sync();
    V total = *of_block(&block, 0);
    for (int r = 1; r < team_size(); ++r) total = op(total, *of_block(&block, r));
    team_sync();
    return total;
  }

  __device__ int64_t sum(int64_t value) const {
    return reduce(value, [](int64_t a, int64_t b) { return a + b; });
  }

  __device__ double largest(double value) const {
    return reduce(value, [](double a, double b) { return a > b ? a : b; });
  }

  // Σ term(i) over the sample in the order of perturb/arithmetic.py.
  template <class Term>
  __device__ double ordered_sum(Term&& term) const {
    __shared__ double groups[kBlockPiece];
    __shared__ double total;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int piece = warp; piece * kBlockPiece < count; piece += kTeamWarps) {
      const double sum = folded([&](int j) {
        const int i = piece * kBlockPiece + j;
        return i < count ? term(i) : 0.0;
      });
      if (lane == 0) part_[piece] = sum;
    }
    team_sync();
    if (rank == 0) {
      const int all = (s.size + kBlockPiece - 1) / kBlockPiece;
      if (threadIdx.x < kBlockPiece) groups[threadIdx.x] = 0.0;
      __syncthreads();
      for (int group = warp; group * kBlockPiece < all; group += kTeamWarps) {
        const double sum = folded([&](int j) {
          const int p = group * kBlockPiece + j;
          return p < all ? of_block(part_, p / s.pieces)[p % s.pieces] : 0.0;
        });
        if (lane == 0) groups[group] = sum;
      }
      __syncthreads();
      if (warp == 0) {
        const double sum = folded([&](int j) { return groups[j]; });
        if (lane == 0) total = sum;
      }
    }
    team_sync();
    const double sum = *of_block(&total, 0);
    team_sync();
    return sum;
  }

  const Samples<T>& s;
  const int64_t index;
  const int rank;
  int count;

 private:
  __device__ int most() const { return s.pieces * kBlockPiece; }

  // 128 terms by one warp, each half onto the other.
  template <class Term>
  __device__ static double folded(Term&& term) {
    const int lane = threadIdx.x % 32;
    double sum = (term(lane) + term(lane + 64)) + (term(lane + 32) + term(lane + 96));
    for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
    return sum;
  }

  __device__ void offsets(int i, int64_t (&at)[3]) const {
#pragma unroll
    for (int k = 0; k < 3; ++k) at[k] = index * s.sample_stride[k];
    int rest = first_ + i;
#pragma unroll 1
    for (int d = 0; d < s.dims; ++d) {
      const int digit = d + 1 < s.dims ? rest % s.dim[d] : rest;
      if (d + 1 < s.dims) rest /= s.dim[d];
#pragma unroll
      for (int k = 0; k < 3; ++k) at[k] += digit * s.stride[d][k];
    }
  }

  __device__ int64_t offset(int i, int operand) const {
    int64_t at[3];
    offsets(i, at);
    return at[operand];
  }

  int first_;
  double* part_;
  T* staged_;
};

// Shares every sample among as few blocks as hold it on chip; where even the largest team cannot, it stays in L2.
template <class T>
cudaError_t launch_samples(void (*kernel)(Samples<T>), Samples<T> s, int operands, cudaStream_t stream) {
  int device, most, major;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  most -= 4096;  // what the kernels declare themselves
  const int pieces = (s.size + kBlockPiece - 1) / kBlockPiece;
  int team = 1;
  const auto shared = [&](bool staged) { return Sample<T>::shared_bytes(s.pieces, staged, operands); };
  for (;; team *= 2) {
    s.pieces = (pieces + team - 1) / team;
    if (shared(true) <= most || major < 9 || team == kMaxTeam) break;
  }
  s.staged = shared(true) <= most;
  const int64_t bytes = shared(s.staged);
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(s.count * team)), config.blockDim = dim3(kTeamThreads);
  config.dynamicSmemBytes = bytes, config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = team, cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster, config.numAttrs = team > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, s);
}

}  // namespace clead::cuda
