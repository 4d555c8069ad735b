// One cluster per row: every block sums the squares of its slice, and reads the other sums through
// distributed shared memory.
#pragma once

#include <simt/simt.h>

#include "gallery/bugs.h"

struct ClusterArguments {
  const float* input;  // [rows, columns]
  int columns;
  float* norm;  // [rows, blocks of a cluster]: each block's own result
};

// For blocks of one warp.
template <int BUG>
__global__ void cluster_norm(ClusterArguments a) {
  SIMT_SHARED(float, slice, 1);
  const auto cluster = cooperative_groups::this_cluster();
  const int blocks = static_cast<int>(cluster.num_blocks());
  const int rank = static_cast<int>(cluster.block_rank());
  const int row = static_cast<int>(blockIdx.x) / blocks;
  const int length = (a.columns + blocks - 1) / blocks;
  const int end = min(a.columns, (rank + 1) * length);
  const float* x = a.input + static_cast<long long>(row) * a.columns;

  float sum = 0.0f;
  for (int i = rank * length + static_cast<int>(threadIdx.x); i < end; i += 32) sum += x[i] * x[i];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x == 0) slice[0] = sum;

  const bool skips = BUG == kOneBlockSkipsSync && rank == 1;
  if (BUG != kMissingFirstClusterSync && !skips) cluster.sync();
  sum = 0.0f;
  for (int r = 0; r < blocks; ++r) {
    sum += *cluster.map_shared_rank(slice, BUG == kRankOutOfRange ? r + 1 : r);
  }
  if (threadIdx.x == 0) a.norm[row * blocks + rank] = sqrtf(sum);
  if (BUG != kMissingLastClusterSync) cluster.sync();  // the others may still read
}
