// One block per row: its l2 norm, its largest absolute element, and the row divided by the norm.
// Then the last block sums up (last_block.h).
#pragma once

#include <simt/simt.h>

#include "gallery/last_block.h"

struct RowArguments {
  const float* input;  // [rows, columns], rows without padding
  int columns;
  float* scaled;  // [rows, columns]
  Batch batch;
};

inline constexpr unsigned kRowWarps = 4;

__device__ inline float add(float a, float b) { return a + b; }

// `value` combined over the block, for every thread. `part` may be used again at once.
template <int BUG>
__device__ float block_reduce(float value, float* part, float (*combine)(float, float)) {
  constexpr unsigned mask = BUG == kHalfMask ? 0xffffu : 0xffffffffu;
  constexpr int width = BUG == kNarrowShuffle ? 16 : 32;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int d = 16; d > 0; d /= 2) {
    value = combine(value, __shfl_xor_sync(mask, value, d, width));
  }
  if (BUG == kTwoBarriers) {
    if (warp % 2 == 0) {
      if (lane == 0) part[warp] = value;
      __syncthreads();
    } else {
      if (lane == 0) part[warp] = value;
      __syncthreads();
    }
  } else {
    if (lane == 0) part[warp + (BUG == kStaticOverrun)] = value;
    if (BUG != kMissingBarrier) __syncthreads();
  }
  value = 0.0f;
  if (BUG == kShuffleUnderCondition) {
    if (lane < kRowWarps) {
      value = part[lane];
      for (int d = 2; d > 0; d /= 2) value = combine(value, __shfl_xor_sync(mask, value, d));
    }
    value = __shfl_sync(mask, value, 0);
  } else {
    constexpr unsigned warps = BUG == kMissedWarp ? kRowWarps - 1 : kRowWarps;
    for (unsigned i = 0; i < warps; ++i) value = combine(value, part[i]);
  }
  if (BUG != kReuseWithoutBarrier) __syncthreads();
  return value;
}

template <int BUG>
__global__ void row_norm(RowArguments a) {
  SIMT_SHARED(float, part, kRowWarps);
  SIMT_SHARED(float, peak, 1);
  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const float* x = a.input + static_cast<long long>(row) * a.columns;

  float sum = 0.0f, largest = 0.0f;
  const auto take = [&](float v) {
    sum += v * v;
    largest = fmaxf(largest, fabsf(v));
  };
  const bool vectors = BUG == kUnalignedVector || reinterpret_cast<std::uintptr_t>(x) % 16 == 0;
  const int packed = vectors ? a.columns / 4 * 4 : 0;
  for (int i = thread * 4; i < packed; i += threads * 4) {
    const float4 v = __ldcs(reinterpret_cast<const float4*>(x + i));
    take(v.x), take(v.y), take(v.z), take(v.w);
  }
  const int end = a.columns + (BUG == kReadPastEnd);
  for (int i = packed + thread; i < end; i += threads) take(__ldcs(x + i));

  if (BUG == kEarlyReturn && thread >= a.columns % threads) return;
  const float norm = sqrtf(block_reduce<BUG>(sum, part, add));
  largest = block_reduce<BUG>(largest, part, fmaxf);
  if (BUG == kUninitialisedShared) {
    if (thread == 0) peak[0] = fmaxf(peak[0], largest);
    __syncthreads();
    largest = peak[0];
  }

  float* y = a.scaled + static_cast<long long>(row) * a.columns;
  const int written = a.columns + (BUG == kWritePastEnd);
  for (int i = thread; i < written; i += threads) y[i] = i < a.columns ? x[i] / norm : 0.0f;

  // Two warps write, so that the last block depends on more than one.
  if (thread == 0) a.batch.norm[row] = norm;
  if (thread == 32) a.batch.largest[row] = largest;
  finish_batch<BUG>(a.batch);
}
