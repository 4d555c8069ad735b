// Launching dual_direction.
#pragma once

#include "cuda/direction_kernel.h"
#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace margin::cuda {

template <typename T, Norm norm>
cudaError_t launch_direction_for(const DirectionArguments& arguments, const LaunchOptions& options,
                                 cudaStream_t stream) {
  static ClusterMemory memory;
  using Task = DirectionTask<AccOf<T>>;
  KernelSet<Task> kernels{"dual_direction", nullptr, nullptr, nullptr, memory};
  if constexpr (kHasWarp<T, norm>) {
    kernels.warp = direction_kernel<T, norm, Keeping::kRegisters, WarpGroup>;
  }
  kernels.block = direction_kernel<T, norm, kBlockKeeping<norm>, BlockGroup>;
  if constexpr (kHasReread<norm>) {
    kernels.reread = direction_kernel<T, norm, Keeping::kReread, BlockGroup>;
  }
  SampleShape shape;
  shape.batch = arguments.batch;
  shape.row_bytes = arguments.grad.size * static_cast<int64_t>(sizeof(T));
  shape.pack_bytes = kept_bytes<T>(kBlockKeeping<norm>);
  const Task task{arguments, static_cast<AccOf<T>>(arguments.norm.q)};
  return launch_samples(kernels, task, shape, options, stream);
}

template <typename T>
cudaError_t launch_direction(const DirectionArguments& arguments, const LaunchOptions& options,
                             cudaStream_t stream) {
  if (arguments.batch == 0 || arguments.grad.size == 0) return cudaSuccess;
  switch (arguments.norm.norm) {
    case Norm::kOne:
      return launch_direction_for<T, Norm::kOne>(arguments, options, stream);
    case Norm::kTwo:
      return launch_direction_for<T, Norm::kTwo>(arguments, options, stream);
    case Norm::kMax:
      return launch_direction_for<T, Norm::kMax>(arguments, options, stream);
    default:
      return launch_direction_for<T, Norm::kGeneral>(arguments, options, stream);
  }
}

}  // namespace margin::cuda
