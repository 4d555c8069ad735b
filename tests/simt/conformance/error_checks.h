// Wrong programs: each must end with an error that says what happened, and where. One kernel a
// case; the thread and the line are named in the message.
#pragma once

#include "conformance/check.h"

namespace conformance {

enum Mistake {
  kLeaveAtBarrier,
  kTwoLines,
  kNotInMask,
  kAbsentLane,
  kReadOutsideMask,
  kOddWidth,
  kLeaveAtShuffle,
  kNeverMeet,
  kTooMuchStatic,
  kMisaligned,
  kTrap,
  kThrow,
  kNotShared,
  kNoSuchRank,
  kWriteAfterEnd,
  kWriteBeforeStart,
};

template <Mistake mistake>
__global__ void err() {
  const unsigned i = threadIdx.x;
  constexpr unsigned full = 0xffffffffu;
  if constexpr (mistake == kLeaveAtBarrier) {
    if (i == 5) return;
    __syncthreads();
  } else if constexpr (mistake == kTwoLines) {
    if (i < 32)
      __syncthreads();
    else
      __syncthreads();
  } else if constexpr (mistake == kNotInMask) {
    __syncwarp(1u << (i + 1) % 32);
  } else if constexpr (mistake == kAbsentLane) {
    __shfl_sync(full, i, 0);  // a block of 40 threads
  } else if constexpr (mistake == kReadOutsideMask) {
    if (i < 8) __shfl_sync(0xffu, i, 8);
  } else if constexpr (mistake == kOddWidth) {
    __shfl_sync(full, i, 0, 24);
  } else if constexpr (mistake == kLeaveAtShuffle) {
    if (i % 32 != 3) __ballot_sync(full, 1);
  } else if constexpr (mistake == kNeverMeet) {
    if (i < 4) {
      __any_sync(full, 1);
    } else {
      __syncthreads();
    }
  } else if constexpr (mistake == kTooMuchStatic) {
    SIMT_SHARED(double, first, 6000);
    SIMT_SHARED(double, second, 6000);
    first[0] = second[0] = 0.0;
  } else if constexpr (mistake == kMisaligned) {
    SIMT_DYN_SHARED(float, x);
    __ldcs(reinterpret_cast<const float2*>(x + 1));
  } else if constexpr (mistake == kTrap) {
    if (i == 9) __trap();
    __syncthreads();
  } else if constexpr (mistake == kThrow) {
    if (i == 9) throw std::runtime_error("thrown by a kernel");
    __syncthreads();
  } else {
    SIMT_SHARED(int, box, 1);
    const auto cluster = cooperative_groups::this_cluster();
    const unsigned other = cluster.num_blocks() - 1 - cluster.block_rank();
    int local = 0;
    if constexpr (mistake == kNotShared) cluster.map_shared_rank(&local, 0);
    if constexpr (mistake == kNoSuchRank) cluster.map_shared_rank(box, 2);
    int* theirs = cluster.map_shared_rank(box, static_cast<int>(other));
    if constexpr (mistake == kWriteBeforeStart) *theirs = 1;
    cluster.sync();
    if constexpr (mistake == kWriteAfterEnd) {
      if (cluster.block_rank() == 0) return;
      for (int turn = 0; turn < 1000; ++turn) __threadfence();
      *theirs = 1;
    }
  }
}

template <Mistake mistake>
void check_error(std::initializer_list<const char*> parts, unsigned threads = 64) {
  const bool clusters = mistake >= kNotShared;
  expect_error(parts, [&] {
    simt::launch(err<mistake>, simt::Config{dim3(4), dim3(threads), 64, clusters ? 2u : 1u});
  });
}

inline void check_errors() {
  check_error<kLeaveAtBarrier>({"kernel", "err", "block (", "thread (", "__syncthreads at"});
  check_error<kTwoLines>({"divergent barrier", "__syncthreads at error_checks.h:"});
  check_error<kNotInMask>({"is not in its mask: __syncwarp(mask 0x"});
  check_error<kAbsentLane>({"lanes that do not exist or have left: 0xffffff00"}, 40);
  check_error<kReadOutsideMask>({"reads lane 8, not in the mask: __shfl_sync(mask 0xff)"});
  check_error<kOddWidth>({"width 24 is not a power of two"});
  check_error<kLeaveAtShuffle>({"__ballot_sync(mask 0xffffffff) at error_checks.h:"});
  check_error<kNeverMeet>({"deadlock", "4 thread(s) wait in __any_sync(mask 0xffffffff)",
                           "60 thread(s) wait in __syncthreads", "first block ("});
  check_error<kTooMuchStatic>({"more than 48 KB of static shared memory"});
  check_error<kMisaligned>({"an access of 8 bytes", "not a multiple of 8"});
  check_error<kTrap>({"thread (9,0,0): __trap()"});
  check_error<kThrow>({"thrown by a kernel"});
  check_error<kNotShared>({"not in this block's shared memory"});
  check_error<kNoSuchRank>({"rank 2, but the cluster has 2 blocks"});
#ifndef SIMT_ASAN                        // which stops at the access itself, and ends the process
  if (simt::settings().schedule == 0) {  // in others the blocks' lives may overlap by chance
    check_error<kWriteAfterEnd>({"written after its end"}, 1);
    check_error<kWriteBeforeStart>({"wrote into this block's shared memory before it started"}, 1);
  }
#endif
}

}  // namespace conformance
