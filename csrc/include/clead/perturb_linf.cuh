// The linf step on the GPU. Torch-free: pointers, sizes and a stream.
#pragma once

#include <cuda_runtime.h>

#include "clead/perturb_linf.h"

namespace clead::cuda {

constexpr int kThreads = 256;
constexpr int kBlocks = 8192;  // at most; a block strides over what is left
constexpr int kBytes = 16;     // per access
constexpr int kMaxDims = 8;

// The dimensions of clead/strided.h by value, innermost first, and the operands: x_adv, grad, x, eps, step.
template <class T, class Wide>
struct LinfGrid {
  int64_t numel;
  int dims;
  int64_t size[kMaxDims];
  int64_t stride[kMaxDims][5];
  T* x_adv;
  const T* grad;
  const T* x;
  const Wide* eps;   // null: eps_scalar
  const Wide* step;  // null: step_scalar
  Wide eps_scalar, step_scalar, sign, low, high;
};

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

// Dense operands in one memory order, scalar eps and step: 16 bytes per access.
template <class T, class Wide, int N>
__global__ void __launch_bounds__(kThreads) pgd_step_linf_dense_kernel(LinfGrid<T, Wide> g) {
  using P = Pack<T, N>;
  const Wide step = g.sign * g.step_scalar;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; p < g.numel / N; p += stride) {
    P adv = reinterpret_cast<P*>(g.x_adv)[p];
    const P grad = reinterpret_cast<const P*>(g.grad)[p], x = reinterpret_cast<const P*>(g.x)[p];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const Wide centre = widen(x.at[k]);
      narrow(linf_step<Wide>(widen(adv.at[k]), widen(grad.at[k]), centre, g.eps_scalar, step, g.low, g.high), centre,
             adv.at[k]);
    }
    reinterpret_cast<P*>(g.x_adv)[p] = adv;
  }
}

// Any strides, any broadcast.
template <class T, class Wide>
__global__ void __launch_bounds__(kThreads) pgd_step_linf_strided_kernel(LinfGrid<T, Wide> g) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < g.numel; i += stride) {
    int64_t at[5] = {0, 0, 0, 0, 0}, rest = i;
    for (int d = 0; d < g.dims; ++d) {
      const int64_t index = rest % g.size[d];
      rest /= g.size[d];
      for (int k = 0; k < 5; ++k) at[k] += index * g.stride[d][k];
    }
    const Wide centre = widen(g.x[at[2]]);
    const Wide eps = g.eps == nullptr ? g.eps_scalar : g.eps[at[3]];
    const Wide step = g.sign * (g.step == nullptr ? g.step_scalar : g.step[at[4]]);
    T* const out = g.x_adv + at[0];
    narrow(linf_step<Wide>(widen(*out), widen(g.grad[at[1]]), centre, eps, step, g.low, g.high), centre, *out);
  }
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kBytes == 0; }

template <class T, class Wide>
void pgd_step_linf(const LinfGrid<T, Wide>& g, cudaStream_t stream) {
  constexpr int N = kBytes / sizeof(T);
  const int64_t* inner = g.stride[0];
  const bool dense = g.dims == 1 && inner[0] == 1 && inner[1] == 1 && inner[2] == 1 && g.eps == nullptr &&
                     g.step == nullptr && g.numel % N == 0 && aligned(g.x_adv) && aligned(g.grad) && aligned(g.x);
  const int64_t blocks = (g.numel / (dense ? N : 1) + kThreads - 1) / kThreads;
  const auto kernel = dense ? &pgd_step_linf_dense_kernel<T, Wide, N> : &pgd_step_linf_strided_kernel<T, Wide>;
  kernel<<<static_cast<int>(blocks < kBlocks ? blocks : kBlocks), kThreads, 0, stream>>>(g);
}

}  // namespace clead::cuda
