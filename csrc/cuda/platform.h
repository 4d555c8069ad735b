// The one place that knows which compiler reads the kernels: nvcc, or g++ for the emulator of
// tests/simt (MARGIN_EXT_SIMT). Both see the same kernel sources through these few names.
#pragma once

#include "core/platform.h"

#if defined(MARGIN_EXT_SIMT)

#include <simt/simt.h>

#define MARGIN_DEVICE inline

#else

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>

#define MARGIN_DEVICE __device__ __forceinline__

// T must need no constructor: nvcc allows none in shared memory.
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

// Thread-block clusters exist from compute capability 9.0 on; compiled for an older target these
// functions describe a cluster of one block, which is all that is ever launched there.
#if defined(MARGIN_EXT_SIMT) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define MARGIN_EXT_CLUSTERS 1
#else
#define MARGIN_EXT_CLUSTERS 0
#endif

namespace margin::cuda {

MARGIN_DEVICE unsigned cluster_rank() {
#if MARGIN_EXT_CLUSTERS
  return cooperative_groups::this_cluster().block_rank();
#else
  return 0;
#endif
}

MARGIN_DEVICE unsigned cluster_size() {
#if MARGIN_EXT_CLUSTERS
  return cooperative_groups::this_cluster().num_blocks();
#else
  return 1;
#endif
}

MARGIN_DEVICE void cluster_sync() {
#if MARGIN_EXT_CLUSTERS
  cooperative_groups::this_cluster().sync();
#endif
}

// The variable at `address` of this block's shared memory, as it lies in block `rank`.
template <typename T>
MARGIN_DEVICE T* in_cluster_block(T* address, unsigned rank) {
#if MARGIN_EXT_CLUSTERS
  return cooperative_groups::this_cluster().map_shared_rank(address, static_cast<int>(rank));
#else
  return rank == 0 ? address : nullptr;
#endif
}

// A place in shared memory for a T that has a constructor.
template <typename T>
struct alignas(alignof(T)) Raw {
  unsigned char bytes[sizeof(T)];

  MARGIN_DEVICE void store(const T& value) { *reinterpret_cast<T*>(bytes) = value; }
  MARGIN_DEVICE const T& load() const { return *reinterpret_cast<const T*>(bytes); }
};

}  // namespace margin::cuda
