// Clusters: ranks, barriers and distributed shared memory, and what a launch refuses.
#pragma once

#include <vector>

#include "conformance/check.h"

namespace conformance {

// Each block passes a number to the next by writing, and gets the other neighbour's by reading.
__global__ inline void neighbours(int* out) {
  SIMT_SHARED(int, box, 2);
  const auto cluster = cooperative_groups::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank());
  const int size = static_cast<int>(cluster.num_blocks());
  const int block = static_cast<int>(blockIdx.x + gridDim.x * blockIdx.y);
  if (threadIdx.x == 0) box[0] = block;
  cluster.sync();
  if (threadIdx.x == blockDim.x - 1) {
    *cluster.map_shared_rank(box + 1, (rank + 1) % size) =
        *cluster.map_shared_rank(box, (rank + size - 1) % size);
  }
  cluster.sync();
  if (threadIdx.x == 0) {
    out[2 * block] = box[1];
    out[2 * block + 1] = static_cast<int>(cluster.thread_rank() * 10000 + cluster.num_threads());
  }
}

inline void check_neighbours() {
  for (const int size : {1, 2, 4, 8}) {
    std::vector<int> out(2 * 16 * 2);
    simt::launch(neighbours, simt::Config{dim3(16, 2), dim3(40), 0, static_cast<unsigned>(size)},
                 out.data());
    for (int block = 0; block < 32; ++block) {
      const auto at = static_cast<std::size_t>(2 * block);
      const int rank = block % size, first = block - rank;
      expect(out[at] == first + (rank + size - 2 + size) % size, "distributed shared memory");
      expect(out[at + 1] == rank * 40 * 10000 + size * 40, "ranks in a cluster");
    }
  }
}

__global__ inline void nothing() {}

// A kernel's address alone does not say which launches the device will take.
inline void check_refusals() {
  const auto launch = [](dim3 grid, dim3 block, std::size_t bytes = 0, unsigned cluster = 1) {
    return simt::launch(nothing, simt::Config{grid, block, bytes, cluster});
  };
  expect(launch(dim3(1), dim3(1024), 227 << 10) == cudaSuccess, "the largest launch");
  expect(launch(dim3(0), dim3(32)) == cudaErrorInvalidConfiguration, "an empty grid");
  expect(launch(dim3(1, 65536), dim3(32)) == cudaErrorInvalidConfiguration, "a grid too high");
  expect(launch(dim3(1), dim3(33, 32)) == cudaErrorInvalidConfiguration, "a block too large");
  expect(launch(dim3(1), dim3(32), (227 << 10) + 1) == cudaErrorInvalidValue, "too much shared");
  expect(launch(dim3(3), dim3(32), 0, 2) == cudaErrorInvalidClusterSize, "half a cluster");
  expect(launch(dim3(16), dim3(32), 0, 16) == cudaErrorInvalidClusterSize, "a large cluster");
}

inline void check_device() {
  int value = 0;
  cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0);
  expect(value == simt::device().multiprocessors, "cudaDeviceGetAttribute");
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&value, nothing, 256, 100 << 10);
  expect(value == 2, "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {8, 1, 1};
  cudaLaunchConfig_t config{};
  config.attrs = &attribute;
  config.numAttrs = 1;
  config.blockDim = dim3(256);
  // Two blocks on each of four multiprocessors: one cluster of eight. Eight blocks each: four.
  config.dynamicSmemBytes = 100 << 10;
  cudaOccupancyMaxActiveClusters(&value, nothing, &config);
  expect(value == 1, "cudaOccupancyMaxActiveClusters");
  config.dynamicSmemBytes = 0;
  cudaOccupancyMaxActiveClusters(&value, nothing, &config);
  expect(value == 4, "cudaOccupancyMaxActiveClusters of small blocks");
  const simt::Device usual = simt::device();
  simt::device().cluster_limit = 1;
  cudaOccupancyMaxActiveClusters(&value, nothing, &config);
  expect(value == 0, "a device without clusters");
  simt::device() = usual;
}

inline void check_clusters() {
  check_neighbours();
  check_refusals();
  check_device();
}

}  // namespace conformance
