// data *= factor in place; where the factor is exactly 1 nothing but the factor is read.
#pragma once

#include "core/arguments.h"
#include "cuda/row.h"

namespace margin::cuda {

inline constexpr unsigned kScaleThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kScaleThreads)
    scale_kernel(T* data, int64_t size, const AccOf<T>* factor_address) {
  using Acc = AccOf<T>;
  constexpr int kPack = kPackSize<T>;
  constexpr int kUnroll = 4;
  const Acc factor = *factor_address;
  if (factor == Acc(1)) return;

  const RowSlice<T> row(data, size, 0, 1);
  const RowOutput<T> output(data, row);
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t start = thread; start < row.packs; start += kUnroll * threads) {
    uint4 bits[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (start + u * threads < row.packs) bits[u] = load_streaming(row.pack(start + u * threads));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = start + u * threads;
      if (i < row.packs) {
        const Pack<T> pack = as_pack<T>(bits[u]);
        Acc x[kPack];
#pragma unroll
        for (int k = 0; k < kPack; ++k) x[k] = widen(pack.value[k]) * factor;
        output.store_pack(row.element_of_pack(i), x, {});
      }
    }
  }
  if (thread < row.edges) {
    const int64_t element = row.element_of_edge(static_cast<int>(thread));
    output.store_element(element, widen(data[element]) * factor);
  }
}

}  // namespace margin::cuda
