#include "cuda/device.h"

#include <mutex>

#include "cuda/constants.h"

namespace margin::cuda {
namespace {

cudaError_t ask_device(int device, DeviceTraits* traits) {
  int shared_per_block = 0, shared_per_multiprocessor = 0;
  const std::pair<cudaDeviceAttr, int*> questions[] = {
      {cudaDevAttrMultiProcessorCount, &traits->multiprocessors},
      {cudaDevAttrMaxThreadsPerMultiProcessor, &traits->threads_per_multiprocessor},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared_per_block},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &shared_per_multiprocessor},
  };
  for (const auto& [attribute, answer] : questions) {
    const cudaError_t error = cudaDeviceGetAttribute(answer, attribute, device);
    if (error != cudaSuccess) return error;
  }
  traits->shared_per_block = shared_per_block;
  traits->shared_per_multiprocessor = shared_per_multiprocessor;
  return cudaSuccess;
}

// Some parts refuse clusters, or hold none of this size (slices of a partitioned device), so the
// runtime is asked, and for a block that is as large as any of ours.
cudaError_t ask_clusters(const void* kernel, int device, int64_t shared_bytes, unsigned* largest) {
  *largest = 1;
  int supported = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&supported, cudaDevAttrClusterLaunch, device);
  if (error != cudaSuccess || supported == 0) return error;
  for (unsigned size = kMaxCluster; size > 1; size /= 2) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = size;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(size);
    config.blockDim = dim3(kMaxThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) {
      cudaGetLastError();  // a refusal is an answer, not an error of ours
    } else if (clusters > 0) {
      *largest = size;
      break;
    }
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t current_device(int* number, DeviceTraits* traits) {
  static DeviceTraits known[kMaxDevices];
  static std::atomic<bool> is_known[kMaxDevices];
  static std::mutex writing;
  cudaError_t error = cudaGetDevice(number);
  if (error != cudaSuccess) return error;
  const bool remembered = *number < kMaxDevices;
  if (remembered && is_known[*number].load(std::memory_order_acquire)) {
    *traits = known[*number];
    return cudaSuccess;
  }
  error = ask_device(*number, traits);
  if (error == cudaSuccess && remembered) {
    const std::lock_guard<std::mutex> lock(writing);
    known[*number] = *traits;
    is_known[*number].store(true, std::memory_order_release);
  }
  return error;
}

cudaError_t prepare_kernel(const void* kernel, ClusterMemory& memory, int device,
                           DeviceTraits* traits) {
  const bool remembered = device < kMaxDevices;
  if (remembered) {
    traits->max_cluster = memory[device].load(std::memory_order_acquire);
    if (traits->max_cluster != 0) return cudaSuccess;
  }
  const int64_t bytes = traits->shared_per_block - Limits::kReservedShared;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  // Rows are kept in shared memory and hardly anything in the cache that shares its storage.
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  error = ask_clusters(kernel, device, bytes, &traits->max_cluster);
  if (error == cudaSuccess && remembered) {
    memory[device].store(static_cast<unsigned char>(traits->max_cluster),
                         std::memory_order_release);
  }
  return error;
}

cudaError_t next_ticket(cudaStream_t stream, unsigned* number) {
  static std::atomic<unsigned> eager{0};
  static std::atomic<unsigned> captured{0};
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error != cudaSuccess) return error;
  if (status == cudaStreamCaptureStatusNone) {
    *number = eager.fetch_add(1, std::memory_order_relaxed) % kEagerTickets;
  } else {
    *number = kEagerTickets + captured.fetch_add(1, std::memory_order_relaxed) % kCapturedTickets;
  }
  return cudaSuccess;
}

}  // namespace margin::cuda
