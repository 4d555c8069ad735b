// Stand-ins for the CUDA runtime functions that a launcher calls. They answer for the device
// described by simt::device(), which a test may change to force another regime. Hidden, so that
// they stay apart from a real CUDA runtime in the same process.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "simt/cuda_types.h"

namespace [[gnu::visibility("hidden")]] simt {

struct Device {
  int number = 0;  // launchers remember the traits of a device by its number
  int multiprocessors = 4;
  int major = 9;
  int minor = 0;
  int dynamic_shared_limit = 227 << 10;  // bytes a block may ask for
  int shared_per_multiprocessor = 228 << 10;
  int cache_bytes = 50 << 20;  // of the second level
  int threads_per_multiprocessor = 2048;
  int cluster_limit = 8;   // the largest cluster that fits; 1: none is supported
  bool capturing = false;  // what cudaStreamIsCapturing says of every stream
};
inline Device& device() {
  static Device device;
  return device;
}

}  // namespace simt

#pragma GCC visibility push(hidden)
extern "C" {

inline cudaError_t cudaGetDevice(int* device) {
  *device = simt::device().number;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  return device == simt::device().number ? cudaSuccess : cudaErrorInvalidDevice;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
// A launch reports its errors by its return value or by an exception, and leaves none behind.
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaError (emulated)";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "error of the emulated device";
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = simt::device().capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& device = simt::device();
  const std::pair<cudaDeviceAttr, int> known[] = {
      {cudaDevAttrMultiProcessorCount, device.multiprocessors},
      {cudaDevAttrComputeCapabilityMajor, device.major},
      {cudaDevAttrComputeCapabilityMinor, device.minor},
      {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, device.dynamic_shared_limit},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, device.shared_per_multiprocessor},
      {cudaDevAttrMaxThreadsPerMultiProcessor, device.threads_per_multiprocessor},
      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrL2CacheSize, device.cache_bytes},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrClusterLaunch, device.cluster_limit > 1},
  };
  for (const auto& [name, answer] : known) {
    if (name != attribute) continue;
    *value = answer;
    return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  const bool too_large = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize &&
                         value > simt::device().dynamic_shared_limit;
  return too_large ? cudaErrorInvalidValue : cudaSuccess;
}

inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*,
                                                                 int threads,
                                                                 std::size_t shared_bytes) {
  const auto& device = simt::device();
  const int each = static_cast<int>(shared_bytes) + 1024;  // CUDA keeps 1 KB of each block's
  *blocks = std::min({32, device.threads_per_multiprocessor / std::max(threads, 1),
                      device.shared_per_multiprocessor / each});
  return cudaSuccess;
}

inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel,
                                                  const cudaLaunchConfig_t* config) {
  int size = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) {
      size = static_cast<int>(config->attrs[i].val.clusterDim.x);
    }
  }
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &blocks, kernel, static_cast<int>(config->blockDim.x), config->dynamicSmemBytes);
  const bool fits = size <= simt::device().cluster_limit;
  *clusters = fits ? std::max(1, simt::device().multiprocessors * blocks / size) : 0;
  return cudaSuccess;
}

}  // extern "C"
#pragma GCC visibility pop

// The forms for a kernel's own pointer type, which CUDA's C++ header has besides.
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads,
                                                          std::size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      blocks, reinterpret_cast<const void*>(kernel), threads, shared_bytes);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel* kernel,
                                           const cudaLaunchConfig_t* config) {
  return cudaOccupancyMaxActiveClusters(clusters, reinterpret_cast<const void*>(kernel), config);
}
