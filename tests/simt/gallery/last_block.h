// The reduction over the batch by the block that finishes last, in the order of the rows.
#pragma once

#include <simt/simt.h>

#include "gallery/bugs.h"

struct Batch {
  float* norm;        // [rows]
  float* largest;     // [rows]
  float* total;       // sum of both over all rows
  unsigned* counter;  // 0 before and after every launch
};

// Adds in the order in which the blocks come by: right, but not the same bits every time.
__device__ inline void add_in_order_of_arrival(float* total, float value) {
  auto* bits = reinterpret_cast<unsigned*>(total);
  for (unsigned old = *bits;;) {
    const float sum = __uint_as_float(old) + value;
    const unsigned seen = atomicCAS(bits, old, __float_as_uint(sum));
    if (seen == old) return;
    old = seen;
  }
}

template <int BUG>
__device__ unsigned count_block(unsigned* counter) {
  if (BUG == kPlainCounter) {
    const unsigned before = *counter;
    __threadfence();
    *counter = before + 1 == gridDim.x ? 0 : before + 1;
    return before;
  }
  if (BUG == kCounterNotReset) return atomicAdd(counter, 1u);
  return atomicInc(counter, gridDim.x - 1);  // back at 0 after the last block
}

template <int BUG>
__device__ void finish_batch(const Batch& batch) {
  SIMT_SHARED(unsigned, is_last, 1);
  if (BUG == kOrderOfArrival) {
    __syncthreads();
    if (threadIdx.x == 0) {
      add_in_order_of_arrival(batch.total, batch.norm[blockIdx.x] + batch.largest[blockIdx.x]);
    }
    return;
  }
  __threadfence();
  if (BUG != kCountedTooEarly) __syncthreads();
  if (threadIdx.x == 0) is_last[0] = count_block<BUG>(batch.counter) == gridDim.x - 1;
  if (BUG != kFlagWithoutBarrier) __syncthreads();
  if (!is_last[0] && BUG != kEveryBlockIsLast) return;
  if (threadIdx.x >= 32) return;
  float sum = 0.0f;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += 32) {
    sum += __ldcg(batch.norm + i) + __ldcg(batch.largest + i);
  }
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x == 0) *batch.total = sum;
}
