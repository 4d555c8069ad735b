// The threads that share one sample: a warp, or a block and the blocks of its cluster. A group
// deals out the samples of the batch and combines what its threads have found; all of them get the
// same combined state, so that each can go on without another exchange.
#pragma once

#include "cuda/exchange.h"

namespace margin::cuda {

// One warp a sample, so the warps of a block go their own ways.
class WarpGroup {
 public:
  static constexpr unsigned kThreads = kMaxThreads / 2;  // more samples a block gain nothing
  static constexpr unsigned kResidentBlocks = 4;

  MARGIN_DEVICE explicit WarpGroup(unsigned) {}

  MARGIN_DEVICE int64_t first_sample() const {
    return static_cast<int64_t>(blockIdx.x) * warps() + threadIdx.x / kWarp;
  }
  MARGIN_DEVICE int64_t sample_step() const { return static_cast<int64_t>(gridDim.x) * warps(); }

  // The thread's place among those that share this block's slice of the row.
  MARGIN_DEVICE unsigned thread() const { return threadIdx.x % kWarp; }
  MARGIN_DEVICE unsigned threads() const { return kWarp; }
  // The blocks that share a row.
  MARGIN_DEVICE unsigned rank() const { return 0; }
  MARGIN_DEVICE unsigned ranks() const { return 1; }
  // The groups in a block that keep totals of their own.
  MARGIN_DEVICE unsigned lead() const { return threadIdx.x / kWarp; }
  MARGIN_DEVICE unsigned leads() const { return warps(); }

  template <typename State, typename Combine>
  MARGIN_DEVICE State reduce(const State& state, const Combine& combine) {
    return reduce_warp(state, combine);
  }

 private:
  MARGIN_DEVICE static unsigned warps() { return blockDim.x / kWarp; }
};

// A block or a cluster a sample: a cluster of one block is a block.
class BlockGroup {
 public:
  static constexpr unsigned kThreads = kMaxThreads;
  static constexpr unsigned kResidentBlocks = 3;

  // The size is handed over, since a kernel's parameters take no registers.
  MARGIN_DEVICE explicit BlockGroup(unsigned cluster_size)
      : rank_(cluster_rank()), ranks_(cluster_size) {
    // Shared memory of another block may be touched only once that block has started.
    if (ranks_ > 1) cluster_sync();
  }

  MARGIN_DEVICE int64_t first_sample() const { return blockIdx.x / ranks_; }
  MARGIN_DEVICE int64_t sample_step() const { return gridDim.x / ranks_; }
  MARGIN_DEVICE unsigned thread() const { return threadIdx.x; }
  MARGIN_DEVICE unsigned threads() const { return blockDim.x; }
  MARGIN_DEVICE unsigned rank() const { return rank_; }
  MARGIN_DEVICE unsigned ranks() const { return ranks_; }
  MARGIN_DEVICE unsigned lead() const { return 0; }
  MARGIN_DEVICE unsigned leads() const { return 1; }

  // All threads of the group must call it alike. The buffers alternate, so one barrier a stage
  // suffices: who writes a buffer again has passed the barrier of the call in between, which
  // everybody reaches only after reading.
  //
  // First the lanes of a warp, then the warps of the block, then the blocks of the cluster: one
  // packed exchange, in which every block puts its state into every block. Since states are pushed,
  // not fetched, no block has to wait for another before it ends.
  template <typename State, typename Combine>
  MARGIN_DEVICE State reduce(State state, const Combine& combine) {
    SIMT_SHARED(Raw<State>, of_warps, 2 * kMaxWarps);
    SIMT_SHARED(Raw<State>, of_blocks, 2 * kMaxCluster);
    turn_ ^= 1;
    Raw<State>* const warps = of_warps + turn_ * kMaxWarps;
    Raw<State>* const blocks = of_blocks + turn_ * kMaxCluster;
    const unsigned lane = threadIdx.x % kWarp;
    const int last_stage = ranks_ == 1 ? 1 : 2;
    // A loop only so that the long code of the combination stands in the kernel once.
#pragma unroll 1
    for (int stage = 0;; ++stage) {
      state = reduce_warp(state, combine);
      if (stage == last_stage) return state;
      const Raw<State>* parts = warps;
      unsigned count = blockDim.x / kWarp;
      if (stage == 0) {
        if (lane == 0) warps[threadIdx.x / kWarp].get() = state;
        __syncthreads();
      } else {
        if (threadIdx.x < ranks_) in_cluster_block(&blocks[rank_], threadIdx.x)->get() = state;
        cluster_sync();
        parts = blocks;
        count = ranks_;
      }
      state = lane < count ? parts[lane].get() : State();
    }
  }

 private:
  unsigned rank_;
  unsigned ranks_;
  unsigned turn_ = 0;
};

// With kThreads the kernels' launch bounds: they set how many registers a thread may have, on which
// policy.h builds. float64 may have as many as it needs.
template <typename Group, typename T>
inline constexpr unsigned kResidentBlocks = std::is_same_v<T, double> ? 1 : Group::kResidentBlocks;

}  // namespace margin::cuda
