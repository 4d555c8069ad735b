// data *= upstream * gradient_scale for the stored gradients, in place and in one launch; where the
// product is exactly 1 nothing but these two numbers is read.
#pragma once

#include "core/arguments.h"
#include "cuda/path.h"
#include "cuda/row.h"

namespace margin::cuda {

inline constexpr unsigned kScaleThreads = 256;
inline constexpr int kScaleUnroll = 4;  // packs under way at a time

// The grid's threads over one dense array.
template <typename T>
MARGIN_DEVICE void scale_array(const ScaleArguments::Block& block, AccOf<T> factor) {
  using Acc = AccOf<T>;
  constexpr int kPack = kPackSize<T>;
  T* const data = static_cast<T*>(block.data);
  const RowSlice<T, int64_t> row(data, block.size, 0, 1);
  const RowOutput<T> output(data, row, block.dtype);
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t start = thread; start < row.packs; start += kScaleUnroll * threads) {
    uint4 bits[kScaleUnroll];
#pragma unroll
    for (int u = 0; u < kScaleUnroll; ++u) {
      const int64_t i = start + u * threads;
      bits[u] = uint4{0, 0, 0, 0};
      if (i < row.packs) bits[u] = load_streaming(row.first_pack() + i);
    }
#pragma unroll
    for (int u = 0; u < kScaleUnroll; ++u) {
      const int64_t i = start + u * threads;
      if (i >= row.packs) break;
      Acc x[kPack];
      output.format.unpack(bits[u], x);
#pragma unroll
      for (int k = 0; k < kPack; ++k) x[k] *= factor;
      output.template store_pack<PlainPath>(i, x, {});
    }
  }
  if (thread < row.edges) {
    const int64_t offset = row.offset_of_edge(static_cast<int>(thread));
    output.store_element(offset, output.format.widen(row.first[offset]) * factor);
  }
}

// Acc is double where the arrays are float64, else float.
template <typename Acc>
__global__ void __launch_bounds__(kScaleThreads)
    scale_kernel(const __grid_constant__ ScaleArguments arguments) {
  const Acc factor = static_cast<const Acc*>(arguments.upstream)[0] *
                     static_cast<const Acc*>(arguments.gradient_scale)[0];
  if (factor == Acc(1)) return;
#pragma unroll 1
  for (const ScaleArguments::Block& block : arguments.blocks) {
    if (block.data == nullptr) continue;
    if constexpr (std::is_same_v<Acc, double>) {
      scale_array<double>(block, factor);
    } else if (block.dtype == Dtype::kFloat32) {
      scale_array<float>(block, factor);
    } else {
      scale_array<SixteenBit>(block, factor);
    }
  }
}

}  // namespace margin::cuda
