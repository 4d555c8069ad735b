// From a plan to a launch: what a device can do, asked once, and the one place where kernels are
// launched and errors are looked for.
#pragma once

#include <atomic>
#include <utility>

#include "cuda/platform.h"
#include "cuda/policy.h"

namespace margin::cuda {

inline constexpr int kMaxDevices = 64;

// Of the current device, apart from max_cluster, which depends on the kernel.
cudaError_t current_device(int* number, DeviceTraits* traits);

template <typename Task>
using Kernel = void (*)(Task);

// What is remembered of a kernel, by device: one byte, 0 until asked.
using KernelMemory = std::atomic<unsigned char>[kMaxDevices];

// The largest cluster of the kernel that can be resident, and the permission to use all of a
// block's shared memory. `memory` belongs to the kernel.
cudaError_t prepare(const void* kernel, KernelMemory& memory, int device, DeviceTraits* traits);

// Every kernel with dynamic shared memory or clusters comes through here. `kernel` is a template
// argument, so that each has a memory of its own.
template <auto kernel, typename Task>
cudaError_t launch_rows(const Task& task, const char* name, const SampleShape& shape,
                        const LaunchOptions& options, const Plan& plan, cudaStream_t stream) {
  if (options.report != nullptr) {
    *options.report = {name,         plan.regime, plan.cluster_size,
                       plan.threads, plan.blocks, plan.shared_bytes};
  }
  const cudaError_t error =
      simt::launch(kernel,
                   simt::Config{dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes,
                                plan.cluster_size, stream, name},
                   task);
  return error != cudaSuccess ? error : cudaPeekAtLastError();
}

}  // namespace margin::cuda
