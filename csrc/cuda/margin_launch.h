// Launching first_order_margin. Nothing is kept of a row, so a warp or a block serves every norm,
// and a block rows of any size.
#pragma once

#include "cuda/launch.h"
#include "cuda/launchers.h"
#include "cuda/margin_kernel.h"

namespace margin::cuda {

template <typename T>
cudaError_t launch_margin(const MarginArguments& arguments, const LaunchOptions& options,
                          cudaStream_t stream) {
  using Task = MarginTask<AccOf<T>>;
  static ClusterMemory memory;
  if (arguments.batch == 0) return cudaSuccess;
  if (!channels_fit(arguments.grad.channels)) return cudaErrorInvalidValue;
  KernelSet<Task> kernels{"first_order_margin", nullptr, margin_kernel<T, BlockGroup>, nullptr,
                          memory};
  if constexpr (kHasWarp<T>) kernels.warp = margin_kernel<T, WarpGroup>;
  SampleShape shape;
  shape.batch = arguments.batch;
  shape.row_bytes = arguments.grad.size * static_cast<int64_t>(sizeof(T));
  const bool plain = arguments.grad.channels.scale == nullptr;
  const Task task{arguments, plain, static_cast<AccOf<T>>(arguments.norm.q),
                  static_cast<AccOf<T>>(arguments.eps)};
  return launch_samples(kernels, task, shape, options, stream);
}

}  // namespace margin::cuda
