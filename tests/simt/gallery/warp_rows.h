// One warp per row, several rows a block: every row reversed, by way of dynamic shared memory, and
// its sum.
#pragma once

#include <simt/simt.h>

#include "gallery/bugs.h"

struct WarpArguments {
  const float* input;  // [rows, columns]
  int rows, columns;
  float* reversed;  // [rows, columns]
  float* sum;       // [rows]
};

inline constexpr int kWarpRows = 3;  // rows, and warps, per block

template <int BUG>
__global__ void warp_rows(WarpArguments a) {
  SIMT_DYN_SHARED(float, stage);  // [kWarpRows, columns]
  SIMT_SHARED(float, sums, 4);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int row = static_cast<int>(blockIdx.x) * kWarpRows + warp;
  if (BUG == kLaneLeavesEarly && lane >= a.columns % 32) return;
  if (row >= a.rows) return;  // a whole warp, and no barrier of the block follows
  const float* x = a.input + static_cast<long long>(row) * a.columns;
  float* y = a.reversed + static_cast<long long>(row) * a.columns;
  float* mine = stage + warp * a.columns;

  const int end = a.columns + (BUG == kDynamicOverrun);
  for (int i = lane; i < end; i += 32) mine[i] = i < a.columns ? x[i] : 0.0f;
  if (BUG != kMissingSyncwarp) __syncwarp();

  float sum = 0.0f;
  for (int i = lane; i < a.columns; i += 32) {
    y[i] = mine[a.columns - 1 - i];
    sum += y[i];
  }
  for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffffu, sum, d);
  if (lane != 0) return;
  sums[warp] = sum;
  if (BUG == kUnalignedStatic) {  // an array of float is aligned to 4 bytes only
    const float4 all = *reinterpret_cast<const float4*>(sums);
    sum = warp == 0 ? all.x : warp == 1 ? all.y : all.z;
  }
  a.sum[row] = sum;
}
