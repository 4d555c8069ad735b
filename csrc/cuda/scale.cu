// scale: data *= upstream * gradient_scale for both stored gradients, in place and in one launch.
// Where the product is exactly 1, only these two numbers are read.
#include "cuda/launch.h"
#include "cuda/row.h"

namespace margin::cuda {
namespace {

inline constexpr unsigned kScaleThreads = 256;
inline constexpr int kScaleUnroll = 4;  // packs in flight at a time

// All threads of the grid share one dense array.
template <typename T>
MARGIN_DEVICE void scale_array(const ScaleArguments::Block& block, AccOf<T> factor) {
  using Acc = AccOf<T>;
  constexpr int kPack = kPackSize<T>;
  T* const data = static_cast<T*>(block.data);
  const RowSlice<T, int64_t> row(data, block.size, 0, 1);
  const RowOutput<T> output(data, row);
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
      Format<T>::unpack(bits[u], x);
#pragma unroll
      for (int k = 0; k < kPack; ++k) x[k] *= factor;
      output.template store_pack<PlainPath>(i, x, {});
    }
  }
  if (thread < row.ends) {
    const int64_t offset = row.offset_of_end(static_cast<int>(thread));
    output.store_element(offset, Format<T>::widen(row.first[offset]) * factor);
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
    } else if (block.dtype == Dtype::kBFloat16) {
      scale_array<BFloat16>(block, factor);
    } else {
      scale_array<Float16>(block, factor);
    }
  }
}

template <typename Acc>
cudaError_t launch_scale(const ScaleArguments& arguments, const LaunchOptions& options,
                         cudaStream_t stream) {
  int64_t packs = 0;
  for (const ScaleArguments::Block& block : arguments.blocks) {
    if (block.data != nullptr) packs += ceil_div(block.size * size_of(block.dtype), 16);
  }
  if (packs == 0) return cudaSuccess;
  int device = 0;
  DeviceTraits traits;
  const cudaError_t error = current_device(&device, &traits);
  if (error != cudaSuccess) return error;
  // One round of loads for each thread, and at most as many blocks as can be resident.
  const int64_t resident = static_cast<int64_t>(traits.multiprocessors) *
                           (traits.threads_per_multiprocessor / static_cast<int>(kScaleThreads));
  const unsigned blocks = static_cast<unsigned>(
      std::min(ceil_div(packs, kScaleUnroll * static_cast<int64_t>(kScaleThreads)), resident));
  if (options.report != nullptr) {
    *options.report = {"scale_gradients", Variant::kBlock, 1, kScaleThreads, blocks, 0};
  }
  return simt::launch(
      scale_kernel<Acc>,
      simt::Config{dim3(blocks), dim3(kScaleThreads), 0, 1, stream, "scale_gradients"}, arguments);
}

}  // namespace

cudaError_t scale(const ScaleArguments& arguments, const LaunchOptions& options,
                  cudaStream_t stream) {
  bool any_double = false;
  for (const ScaleArguments::Block& block : arguments.blocks) {
    any_double |= block.data != nullptr && block.dtype == Dtype::kFloat64;
  }
  return any_double ? launch_scale<double>(arguments, options, stream)
                    : launch_scale<float>(arguments, options, stream);
}

}  // namespace margin::cuda
