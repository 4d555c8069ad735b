// The planted bugs. Each is a compile-time switch (the template parameter BUG) of one of the three
// gallery kernels; kNone is the kernel as it should be. The table of what catches which bug is in
// tests/test_simt_emulator.py, under the same numbers.
#pragma once

enum Bug {
  kNone = 0,
  // row_norm.h: one block per row
  kMissingBarrier = 1,
  kReadPastEnd = 2,
  kHalfMask = 3,
  kStaticOverrun = 4,
  kMissedWarp = 5,
  kUninitialisedShared = 6,
  kShuffleUnderCondition = 7,
  kReuseWithoutBarrier = 8,
  kUnalignedVector = 9,
  kEarlyReturn = 10,
  kTwoBarriers = 11,
  kNarrowShuffle = 12,
  kWritePastEnd = 13,
  // last_block.h: the reduction by the last block
  kEveryBlockIsLast = 20,
  kCounterNotReset = 21,
  kFlagWithoutBarrier = 22,
  kPlainCounter = 23,
  kCountedTooEarly = 24,
  kOrderOfArrival = 25,
  // warp_rows.h: one warp per row
  kMissingSyncwarp = 30,
  kDynamicOverrun = 31,
  kUnalignedStatic = 32,
  kLaneLeavesEarly = 33,
  // cluster_norm.h: one cluster per row
  kMissingFirstClusterSync = 40,
  kMissingLastClusterSync = 41,
  kRankOutOfRange = 42,
  kOneBlockSkipsSync = 43,
};
