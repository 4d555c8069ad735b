// The threads that share one sample: a warp, or the blocks of a cluster. A group assigns the
// samples of the batch, and combines the states that its threads have found.
#pragma once

#include "core/statistics.h"
#include "cuda/platform.h"
#include "cuda/variants.h"

namespace margin::cuda {

// What a launch tells its kernel besides its task. A kernel's parameters take no registers.
struct LaunchShape {
  unsigned cluster_size = 1;
  int kept_packs = 0;  // the packs of a group's slice of a row for which there is shared memory
  unsigned kept_bytes = 0;  // of a group in its block's shared memory
  bool prefetches = false;  // whether a group asks for its next sample while it has another
};

template <typename Value>
MARGIN_DEVICE Value from_lane_xor(Value value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}
template <typename Acc>
MARGIN_DEVICE NormState<Acc> from_lane_xor(const NormState<Acc>& state, int lanes) {
  return {from_lane_xor(state.sum, lanes), from_lane_xor(state.extra, lanes)};
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

template <typename Acc>
MARGIN_DEVICE Acc not_a_number() {
  const Acc infinity = -minus_infinity<Acc>();
  return infinity - infinity;
}

// Butterflies: every lane ends with the same value, always combined in the same order.
template <typename Number>
MARGIN_DEVICE Number sum_of_warp(Number value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += from_lane_xor(value, lanes);
  return value;
}

// The largest value, or NaN if there is one.
template <typename Number>
MARGIN_DEVICE Number max_of_warp(Number value) {
  const bool any_nan = __any_sync(0xffffffffu, is_nan(value)) != 0;
  Number largest = value;
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    largest = max(largest, from_lane_xor(largest, lanes));  // drops a NaN
  }
  return any_nan ? not_a_number<Number>() : largest;
}

MARGIN_DEVICE int min_of_warp(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_min_sync(0xffffffffu, value);
#else
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    value = min(value, from_lane_xor(value, lanes));
  return value;
#endif
}

// For states that need many instructions to combine. Not unrolled, to keep the code short.
template <typename State, typename Combine>
MARGIN_DEVICE State reduce_warp(State state, const Combine& combine) {
#pragma unroll 1
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) combine(state, from_lane_xor(state, lanes));
  return state;
}

// The norm's state of a warp. `norm` is a ServedNorm (row_pass.h).
template <typename ServedNorm, typename Acc>
MARGIN_DEVICE NormState<Acc> norm_of_warp(const ServedNorm& norm, NormState<Acc> state) {
  norm.apply([&](auto n) {
    if constexpr (is_plain_sum(n.value)) {
      state.sum = sum_of_warp(state.sum);
    } else {
      state = reduce_warp(state, [&](NormState<Acc>& a, const NormState<Acc>& b) {
        norm_combine<n.value>(a, b, norm.q);
      });
    }
  });
  return state;
}

// One warp a sample: the warps of a block are independent.
class WarpGroup {
 public:
  static constexpr unsigned kThreads = kMaxThreads / 2;  // more samples a block would gain nothing
  static constexpr unsigned kResidentBlocks = 6;

  // The number goes through a shuffle to show the compiler that it is uniform in a warp. It then
  // keeps addresses and loop counters in uniform registers.
  MARGIN_DEVICE explicit WarpGroup(const LaunchShape& shape)
      : shape_(shape), number_(__shfl_sync(0xffffffffu, threadIdx.x / kWarp, 0)) {}

  MARGIN_DEVICE int64_t first_sample() const {
    return static_cast<int64_t>(blockIdx.x) * warps() + number();
  }
  MARGIN_DEVICE int64_t sample_step() const { return static_cast<int64_t>(gridDim.x) * warps(); }

  // The thread's number among those that share this block's slice of the row.
  MARGIN_DEVICE unsigned thread() const { return threadIdx.x % kWarp; }
  MARGIN_DEVICE unsigned threads() const { return kWarp; }
  // The blocks that share a row.
  MARGIN_DEVICE unsigned rank() const { return 0; }
  MARGIN_DEVICE unsigned ranks() const { return 1; }
  // The number of this group among the groups of its block.
  MARGIN_DEVICE unsigned number() const { return number_; }
  MARGIN_DEVICE unsigned groups() const { return warps(); }
  // The group's part of the dynamic shared memory.
  MARGIN_DEVICE unsigned char* kept(unsigned char* shared) const {
    return shared + number() * shape_.kept_bytes;
  }
  MARGIN_DEVICE bool in_first_warp() const { return true; }

  // Combines the states of all threads, for all threads. `of_warp` combines those of a warp.
  template <typename State, typename OfWarp>
  MARGIN_DEVICE State reduce(const State& state, const OfWarp& of_warp) {
    return of_warp(state);
  }
  // The same, for the first warp of each block only.
  template <typename State, typename OfWarp>
  MARGIN_DEVICE State gather(const State& state, const OfWarp& of_warp) {
    return of_warp(state);
  }
  // The value of the block's first warp, for all of the block.
  template <typename Value>
  MARGIN_DEVICE Value broadcast(const Value& value) {
    return value;
  }

 private:
  MARGIN_DEVICE static unsigned warps() { return blockDim.x / kWarp; }

  const LaunchShape& shape_;
  unsigned number_;
};

// A cluster of blocks a sample. A single block is a cluster of one.
class BlockGroup {
 public:
  static constexpr unsigned kThreads = kMaxThreads;
  static constexpr unsigned kResidentBlocks = 3;

  MARGIN_DEVICE explicit BlockGroup(const LaunchShape& shape)
      : rank_(shape.cluster_size == 1 ? 0 : cluster_rank()), ranks_(shape.cluster_size) {
    // The shared memory of another block may be accessed only once that block has started.
    if (ranks_ > 1) cluster_sync();
  }

  MARGIN_DEVICE int64_t first_sample() const {
    return ranks_ == 1 ? blockIdx.x : blockIdx.x / ranks_;
  }
  MARGIN_DEVICE int64_t sample_step() const { return ranks_ == 1 ? gridDim.x : gridDim.x / ranks_; }
  MARGIN_DEVICE unsigned thread() const { return threadIdx.x; }
  MARGIN_DEVICE unsigned threads() const { return blockDim.x; }
  MARGIN_DEVICE unsigned rank() const { return rank_; }
  MARGIN_DEVICE unsigned ranks() const { return ranks_; }
  MARGIN_DEVICE unsigned number() const { return 0; }
  MARGIN_DEVICE unsigned groups() const { return 1; }
  MARGIN_DEVICE unsigned char* kept(unsigned char* shared) const { return shared; }
  MARGIN_DEVICE bool in_first_warp() const { return threadIdx.x < kWarp; }

  // First the lanes of each warp, then the warps of each block, then the blocks of the cluster:
  // each block writes its state into all blocks. No block reads from another, so none has to wait
  // for others before it ends.
  //
  // All threads of the group must call it. The buffers alternate, so one barrier a stage is enough:
  // a thread that writes a buffer again has passed the barrier of the call in between, and all
  // threads reach that barrier after their reads.
  template <typename State, typename OfWarp>
  MARGIN_DEVICE State reduce(const State& state, const OfWarp& of_warp) {
    return combine<true>(state, of_warp);
  }
  template <typename State, typename OfWarp>
  MARGIN_DEVICE State gather(const State& state, const OfWarp& of_warp) {
    return combine<false>(state, of_warp);
  }
  // Between two calls there must be a barrier, such as that of gather().
  template <typename Value>
  MARGIN_DEVICE Value broadcast(const Value& value) {
    SIMT_SHARED(Raw<Value>, of_block, 1);
    if (threadIdx.x == 0) of_block[0].get() = value;
    __syncthreads();
    return of_block[0].get();
  }

 private:
  template <bool everywhere, typename State, typename OfWarp>
  MARGIN_DEVICE State combine(State state, const OfWarp& of_warp) {
    SIMT_SHARED(Raw<State>, of_warps, 2 * kMaxWarps);
    SIMT_SHARED(Raw<State>, of_blocks, 2 * kMaxCluster);
    turn_ ^= 1;
    Raw<State>* const warps = of_warps + turn_ * kMaxWarps;
    Raw<State>* const blocks = of_blocks + turn_ * kMaxCluster;
    const unsigned lane = threadIdx.x % kWarp;
    const int last_stage = ranks_ == 1 ? 1 : 2;
    // A loop, so that the kernel holds the code of the combination once.
#pragma unroll 1
    for (int stage = 0;; ++stage) {
      if (everywhere || stage == 0 || in_first_warp()) state = of_warp(state);
      if (stage == last_stage) return state;
      const Raw<State>* parts = warps;
      unsigned count = blockDim.x / kWarp;
      if (stage == 0) {
        if (lane == 0) warps[threadIdx.x / kWarp].get() = state;
        __syncthreads();
      } else {
        if (threadIdx.x < ranks_) copy_words(in_cluster_block(&blocks[rank_], threadIdx.x), state);
        cluster_sync();
        parts = blocks;
        count = ranks_;
      }
      if (everywhere || in_first_warp()) state = lane < count ? parts[lane].get() : State();
    }
  }

  // Through a mapped address, whose alignment the compiler does not see: it would store bytes.
  template <typename State>
  MARGIN_DEVICE static void copy_words(Raw<State>* to, const State& state) {
    static_assert(sizeof(State) % sizeof(unsigned) == 0);
    unsigned words[sizeof(State) / sizeof(unsigned)];
    memcpy(words, static_cast<const void*>(&state), sizeof(state));
#pragma unroll
    for (unsigned i = 0; i < sizeof(State) / sizeof(unsigned); ++i) {
      reinterpret_cast<unsigned*>(to)[i] = words[i];
    }
  }

  unsigned rank_;
  unsigned ranks_;
  unsigned turn_ = 0;
};

template <Variant variant>
using GroupOf = std::conditional_t<variant == Variant::kWarp, WarpGroup, BlockGroup>;

// The norm's state of a group, for all its threads.
template <typename ServedNorm, typename Acc, typename Group>
MARGIN_DEVICE NormState<Acc> norm_of_group(const ServedNorm& norm, const NormState<Acc>& state,
                                           Group& group) {
  return group.reduce(state, [&](const NormState<Acc>& s) { return norm_of_warp(norm, s); });
}

// The launch bounds of the kernels: with kThreads they limit the registers of a thread. float64 has
// no limit, and blocks with 16-bit rows, whose packs unfold to eight registers, a wider one: the
// limit of 80 made them spill on sm_80.
template <typename Group, typename T>
inline constexpr unsigned kResidentBlocks =
    std::is_same_v<T, double>                       ? 1
    : sizeof(T) == 2 && Group::kResidentBlocks == 3 ? 2
                                                    : Group::kResidentBlocks;

}  // namespace margin::cuda
