// What the launchers ask of the CUDA runtime: once for a device or kernel, then remembered.
#pragma once

#include <atomic>

#include "cuda/platform.h"
#include "cuda/policy.h"

namespace margin::cuda {

inline constexpr int kMaxDevices = 64;  // beyond these nothing is remembered

// Of the current device; max_cluster stays 1, because that depends on the kernel.
cudaError_t current_device(int* number, DeviceTraits* traits);

// The largest cluster in which a kernel can run, by device; 0: not asked yet.
using ClusterMemory = std::atomic<unsigned char>[kMaxDevices];

// Sets traits->max_cluster for the kernel and lets it have all the shared memory of a block.
cudaError_t prepare_kernel(const void* kernel, ClusterMemory& memory, int device,
                           DeviceTraits* traits);

// The number of the next launch's ticket counter (tickets.h). Does not synchronise.
cudaError_t next_ticket(cudaStream_t stream, unsigned* number);

}  // namespace margin::cuda
