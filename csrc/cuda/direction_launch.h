// Launching dual_direction.
#pragma once

#include "cuda/direction_kernel.h"
#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace margin::cuda {

template <typename T>
cudaError_t launch_direction(const DirectionArguments& arguments, const LaunchOptions& options,
                             cudaStream_t stream) {
  using Task = DirectionTask<AccOf<T>>;
  static ClusterMemory memory;
  const GradientRows& grad = arguments.grad;
  if (arguments.batch == 0 || grad.size == 0) return cudaSuccess;
  if (!channels_fit(grad.channels)) return cudaErrorInvalidValue;
  const bool plain =
      grad.channels.scale == nullptr && lie_alike(grad, arguments.out, arguments.out_stride) &&
      (arguments.base == nullptr || lie_alike(grad, arguments.base, arguments.base_stride));
  KernelSet<Task> kernels{"dual_direction", nullptr,
                          direction_kernel<T, Storage::kOnChip, BlockGroup>,
                          direction_kernel<T, Storage::kReread, BlockGroup>, memory};
  if constexpr (kHasWarp<T>) kernels.warp = direction_kernel<T, Storage::kRegisters, WarpGroup>;
  const Task task{arguments, plain, static_cast<AccOf<T>>(arguments.norm.q)};
  return launch_samples(kernels, task,
                        shape_of<T>(arguments.batch, grad, arguments.norm.norm, plain), options,
                        stream);
}

}  // namespace margin::cuda
