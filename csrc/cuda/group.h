// The threads that share one sample: a warp, or the blocks of a cluster. A group assigns the
// samples of the batch and combines the states that its threads have found. All threads receive the
// combined state, so each can continue without another exchange.
#pragma once

#include "core/statistics.h"
#include "cuda/platform.h"
#include "cuda/variants.h"

namespace margin::cuda {

template <typename Value>
MARGIN_DEVICE Value from_lane_xor(Value value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}
MARGIN_DEVICE int64_t from_lane_xor(int64_t value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, static_cast<long long>(value), lanes);
}
template <typename Acc>
MARGIN_DEVICE NormState<Acc> from_lane_xor(const NormState<Acc>& state, int lanes) {
  return {from_lane_xor(state.sum, lanes), from_lane_xor(state.extra, lanes)};
}
template <typename Acc>
MARGIN_DEVICE RunnerUp<Acc> from_lane_xor(const RunnerUp<Acc>& state, int lanes) {
  return {from_lane_xor(state.value, lanes), from_lane_xor(state.index, lanes)};
}
template <typename Acc>
MARGIN_DEVICE LogSumExp<Acc> from_lane_xor(const LogSumExp<Acc>& state, int lanes) {
  return {from_lane_xor(state.max, lanes), from_lane_xor(state.sum, lanes)};
}

MARGIN_DEVICE BatchTotals from_lane_xor(const BatchTotals& totals, int lanes) {
  BatchTotals out;
  out.loss = from_lane_xor(totals.loss, lanes);
  out.weight = from_lane_xor(totals.weight, lanes);
  out.cross_entropy = from_lane_xor(totals.cross_entropy, lanes);
  out.regularizer = from_lane_xor(totals.regularizer, lanes);
  out.margin = from_lane_xor(totals.margin, lanes);
  out.gap = from_lane_xor(totals.gap, lanes);
  out.norm = from_lane_xor(totals.norm, lanes);
  out.correct = from_lane_xor(totals.correct, lanes);
  out.count = from_lane_xor(totals.count, lanes);
  out.minimum = from_lane_xor(totals.minimum, lanes);
  return out;
}

// A butterfly: every lane ends with the same state, always combined in the same order. It is not
// unrolled, because it was most of the code of every kernel and takes few instructions a sample.
template <typename State, typename Combine>
MARGIN_DEVICE State reduce_warp(State state, const Combine& combine) {
#pragma unroll 1
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) combine(state, from_lane_xor(state, lanes));
  return state;
}

// One warp a sample: the warps of a block are independent.
class WarpGroup {
 public:
  static constexpr unsigned kThreads = kMaxThreads / 2;  // more samples a block would gain nothing
  static constexpr unsigned kResidentBlocks = 4;

  MARGIN_DEVICE explicit WarpGroup(unsigned) {}

  MARGIN_DEVICE int64_t first_sample() const {
    return static_cast<int64_t>(blockIdx.x) * warps() + threadIdx.x / kWarp;
  }
  MARGIN_DEVICE int64_t sample_step() const { return static_cast<int64_t>(gridDim.x) * warps(); }

  // The thread's number among those that share this block's slice of the row.
  MARGIN_DEVICE unsigned thread() const { return threadIdx.x % kWarp; }
  MARGIN_DEVICE unsigned threads() const { return kWarp; }
  // The blocks that share a row.
  MARGIN_DEVICE unsigned rank() const { return 0; }
  MARGIN_DEVICE unsigned ranks() const { return 1; }
  // The number of this group among the groups of its block.
  MARGIN_DEVICE unsigned lead() const { return threadIdx.x / kWarp; }
  MARGIN_DEVICE unsigned leads() const { return warps(); }

  template <typename State, typename Combine>
  MARGIN_DEVICE State reduce(const State& state, const Combine& combine) {
    return reduce_warp(state, combine);
  }

 private:
  MARGIN_DEVICE static unsigned warps() { return blockDim.x / kWarp; }
};

// A cluster of blocks a sample. A single block is a cluster of one.
class BlockGroup {
 public:
  static constexpr unsigned kThreads = kMaxThreads;
  static constexpr unsigned kResidentBlocks = 3;

  // The size is a parameter because a kernel's parameters take no registers.
  MARGIN_DEVICE explicit BlockGroup(unsigned cluster_size)
      : rank_(cluster_rank()), ranks_(cluster_size) {
    // The shared memory of another block may be accessed only once that block has started.
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

  // Combines the states of the lanes of each warp, then those of the warps of each block, then
  // those of the blocks of the cluster: each block writes its state into all blocks. No block reads
  // from another, so none has to wait for others before it ends.
  //
  // All threads of the group must call it. The buffers alternate, so one barrier a stage is enough:
  // a thread that writes a buffer again has passed the barrier of the call in between, and all
  // threads reach that barrier after their reads.
  template <typename State, typename Combine>
  MARGIN_DEVICE State reduce(State state, const Combine& combine) {
    SIMT_SHARED(Raw<State>, of_warps, 2 * kMaxWarps);
    SIMT_SHARED(Raw<State>, of_blocks, 2 * kMaxCluster);
    turn_ ^= 1;
    Raw<State>* const warps = of_warps + turn_ * kMaxWarps;
    Raw<State>* const blocks = of_blocks + turn_ * kMaxCluster;
    const unsigned lane = threadIdx.x % kWarp;
    const int last_stage = ranks_ == 1 ? 1 : 2;
    // A loop, so that the kernel holds the long code of the combination once.
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

template <Variant variant>
using GroupOf = std::conditional_t<variant == Variant::kWarp, WarpGroup, BlockGroup>;

// The launch bounds of the kernels: with kThreads they limit the registers of a thread, and
// policy.h relies on that limit. float64 has no limit.
template <typename Group, typename T>
inline constexpr unsigned kResidentBlocks = std::is_same_v<T, double> ? 1 : Group::kResidentBlocks;

}  // namespace margin::cuda
