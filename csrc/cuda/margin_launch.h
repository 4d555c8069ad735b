// Launching first_order_margin. Nothing is kept of a row, so a block serves rows of any size.
#pragma once

#include "cuda/launch.h"
#include "cuda/launchers.h"
#include "cuda/margin_kernel.h"

namespace margin::cuda {

template <typename T, Norm norm>
cudaError_t launch_margin_for(const MarginArguments& arguments, const LaunchOptions& options,
                              cudaStream_t stream) {
  static ClusterMemory memory;
  using Acc = AccOf<T>;
  KernelSet<MarginTask<Acc>> kernels{"first_order_margin", nullptr,
                                     margin_kernel<T, norm, BlockGroup>, nullptr, memory};
  if constexpr (kHasWarp<T, norm>) kernels.warp = margin_kernel<T, norm, WarpGroup>;
  SampleShape shape;
  shape.batch = arguments.batch;
  shape.row_bytes = arguments.grad.size * static_cast<int64_t>(sizeof(T));
  const MarginTask<Acc> task{arguments, static_cast<Acc>(arguments.norm.q),
                             static_cast<Acc>(arguments.eps)};
  return launch_samples(kernels, task, shape, options, stream);
}

template <typename T>
cudaError_t launch_margin(const MarginArguments& arguments, const LaunchOptions& options,
                          cudaStream_t stream) {
  if (arguments.batch == 0) return cudaSuccess;
  switch (arguments.norm.norm) {
    case Norm::kOne:
      return launch_margin_for<T, Norm::kOne>(arguments, options, stream);
    case Norm::kTwo:
      return launch_margin_for<T, Norm::kTwo>(arguments, options, stream);
    case Norm::kMax:
      return launch_margin_for<T, Norm::kMax>(arguments, options, stream);
    default:
      return launch_margin_for<T, Norm::kGeneral>(arguments, options, stream);
  }
}

}  // namespace margin::cuda
