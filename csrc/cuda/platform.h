// The compiler that reads the kernels: nvcc, or g++ for the emulator of tests/simt
// (MARGIN_EXT_SIMT). Both compile the same sources through the names of this file.
#pragma once

#include "core/platform.h"

#if defined(MARGIN_EXT_SIMT)

#include <simt/simt.h>

#define MARGIN_DEVICE inline
#define MARGIN_DEVICE_CALL inline

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>

#define MARGIN_DEVICE __device__ __forceinline__
// For code that runs once a launch: it is called, so that kernels stay small and builds short.
#define MARGIN_DEVICE_CALL __device__ __noinline__

// T must not need a constructor, which nvcc does not allow in shared memory.
#define SIMT_SHARED(T, name, count) __shared__ T name[count]
#define SIMT_DYN_SHARED(T, name)                                         \
  extern __shared__ __align__(16) unsigned char margin_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(margin_dynamic_shared)

namespace simt {

struct Config {
  dim3 grid;
  dim3 block;
  size_t dynamic_shared_bytes = 0;
  unsigned cluster_size = 1;
  cudaStream_t stream = nullptr;
  const char* name = nullptr;  // read by the emulator
};

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Config& config, Arguments&&... arguments) {
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.dynamic_shared_bytes;
  launch_config.stream = config.stream;
  cudaLaunchAttribute cluster{};
  if (config.cluster_size > 1) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = config.cluster_size;
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
    launch_config.attrs = &cluster;
    launch_config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&launch_config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace simt

#endif

namespace margin::cuda {

inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kMaxThreads = 256;  // of a block
inline constexpr unsigned kMaxWarps = kMaxThreads / kWarp;
inline constexpr unsigned kMaxCluster = 8;  // every device with clusters supports this size

// Thread-block clusters exist from compute capability 9.0 on. For older targets these functions
// describe a cluster of one block, the only one that is launched there. nvcc's built-ins replace
// <cooperative_groups.h>, which would double the time of every build.
#if defined(MARGIN_EXT_SIMT)

inline unsigned cluster_rank() { return cooperative_groups::this_cluster().block_rank(); }
inline void cluster_sync() { cooperative_groups::this_cluster().sync(); }

// The variable at `address` of this block's shared memory, as it lies in block `rank`.
template <typename T>
T* in_cluster_block(T* address, unsigned rank) {
  return cooperative_groups::this_cluster().map_shared_rank(address, static_cast<int>(rank));
}

#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

MARGIN_DEVICE unsigned cluster_rank() { return __clusterRelativeBlockRank(); }
// Orders writes to any shared memory of the cluster before later reads of it.
MARGIN_DEVICE void cluster_sync() {
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}
template <typename T>
MARGIN_DEVICE T* in_cluster_block(T* address, unsigned rank) {
  return static_cast<T*>(__cluster_map_shared_rank(address, rank));
}

#else

MARGIN_DEVICE unsigned cluster_rank() { return 0; }
MARGIN_DEVICE void cluster_sync() {}
template <typename T>
MARGIN_DEVICE T* in_cluster_block(T* address, unsigned) {
  return address;
}

#endif

// Copies 16 bytes from global to shared memory. The copy is in flight until wait_for_copies(); only
// the thread that started it may then read it without a barrier.
MARGIN_DEVICE void copy_async(uint4* shared, const uint4* global) {
#if defined(MARGIN_EXT_SIMT)
  simt::copy_async(shared, global);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#elif defined(__CUDA_ARCH__)
  *shared = __ldcs(global);
#endif
}
MARGIN_DEVICE void wait_for_copies() {
#if defined(MARGIN_EXT_SIMT)
  simt::wait_for_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Asks for the whole 16-byte units of some bytes of global memory to be brought to the second-level
// cache; at most 2^31 bytes. One thread asks for all. Before sm_90 nothing happens.
MARGIN_DEVICE void prefetch(const void* bytes, int64_t count) {
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(bytes) + 15) & ~uintptr_t{15};
  const uintptr_t end = (reinterpret_cast<uintptr_t>(bytes) + count) & ~uintptr_t{15};
  if (begin >= end) return;
#if defined(MARGIN_EXT_SIMT)
  simt::touch(begin, end);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const unsigned size = static_cast<unsigned>(end - begin);
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(begin), "r"(size) : "memory");
#endif
}

// Returns x, and hides from the compiler where it came from. Whatever depends on the result is then
// computed where it is used, and not once for all samples, which would take registers in every
// loop.
MARGIN_DEVICE int opaque(int x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// Room in shared memory for a T that has a constructor.
template <typename T>
struct alignas(alignof(T)) Raw {
  unsigned char bytes[sizeof(T)];

  MARGIN_DEVICE T& get() { return *reinterpret_cast<T*>(bytes); }
  MARGIN_DEVICE const T& get() const { return *reinterpret_cast<const T*>(bytes); }
};

}  // namespace margin::cuda
