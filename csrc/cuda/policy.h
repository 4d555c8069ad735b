// The policy: which kernel variant a row takes, with how many threads, blocks and bytes of shared
// memory. It is host code without CUDA calls, so it can be tested anywhere.
//
// Figures marked (reasoned) follow from the hardware's limits and from the bytes that must be in
// flight; those marked (H200) were chosen by measuring alternatives on one (docs/kernels.md).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/ops.h"

namespace margin::cuda {

struct DeviceTraits {
  int multiprocessors = 1;
  int64_t shared_per_block = 48 << 10;  // the most that a block may ask for
  int64_t shared_per_multiprocessor = 64 << 10;
  int threads_per_multiprocessor = 1024;
  int64_t cache_bytes = 4 << 20;  // of the second level
  unsigned max_cluster = 1;       // the largest cluster that can be resident; 1: none
};

// The work of a sample, and the variants that can do it.
struct SampleShape {
  int64_t batch = 0;
  int64_t row_bytes = 0;
  int64_t classes = 0;  // 0: no logits are read
  int pack_bytes = 0;   // shared memory for each 16 bytes of the row, where it is kept
  int element_bytes = 4;
  bool rereads = false;  // later passes read the row again
  bool serves[kVariantCount] = {true, true, true};

  bool served_by(Variant variant) const { return serves[static_cast<int>(variant)]; }
};

struct Plan {
  Variant variant = Variant::kBlock;
  unsigned threads = 0;  // of a block
  unsigned cluster_size = 1;
  unsigned groups_of_block = 1;
  int kept_packs = 0;       // of a group, in its block
  int64_t kept_bytes = 0;   // of a group, in its block
  size_t shared_bytes = 0;  // of a block
  unsigned blocks = 0;
  bool prefetches = false;
};

struct Limits {
  // warp: any batch has enough rows of this size in flight: 24 a multiprocessor, by their
  // registers.
  static constexpr int64_t kShortRow = 4 << 10;
  // warp: 13 rows a multiprocessor, by their shared memory. A group of warps would spend most
  // instructions on its reduction (docs/kernels.md has the counts).
  static constexpr int64_t kWarpRow = 16 << 10;
  // warp: 64 logits a lane; for more, a block has more loads in flight (reasoned).
  static constexpr int64_t kWarpClasses = 2048;
  // warp: 4 rows a block, fewer for small batches so that every multiprocessor gets some.
  static constexpr int64_t kWarpsPerBlock = 4;
  // The samples for each multiprocessor that hide each other's latency. Below, a longer row takes a
  // wide block of its own. (H200: at 3.9, narrow blocks took 15 % less time.)
  static constexpr int64_t kManySamples = 2;
  // block: slices up to this size are one round of 4 packs for 128 threads.
  static constexpr int64_t kNarrowSlice = 8 << 10;
  // block, many samples: up to this size 128 threads copy a slice with fewer instructions than 256;
  // three blocks fit a multiprocessor. Above, two fit, and 256 threads are needed to issue.
  static constexpr int64_t kMediumSlice = 64 << 10;
  // block, many samples of 16 bits: up to this size 64 threads, whose packs unfold to twice as many
  // elements (H200: 13 to 16 % less time than 128).
  static constexpr int64_t kMediumSlice16Bit = 32 << 10;
  // cluster: at least two blocks on a multiprocessor, so that one reads while the other writes.
  static constexpr int64_t kBlocksPerMultiprocessor = 2;
  // cluster, for few samples: a smaller slice is read in less time than the exchange takes
  // (about a microsecond, reasoned).
  static constexpr int64_t kSmallestSlice = 8 << 10;
  // What the clusters of a launch prefetch may take this part of the cache, where what is written
  // goes too. (H200: 4 to 14 % less time for rows of 600 KB. Where each block has a row of its own,
  // others hide its latency, and what was prefetched was often gone again.)
  static constexpr int64_t kPrefetchPart = 3;
  // Rows that are read again should fit this part of the cache together (H200: 25 % less time).
  static constexpr int64_t kRereadPart = 2;
  // The blocks of a multiprocessor that read rows again, at least.
  static constexpr int64_t kRereadBlocks = 3;
  // The static shared memory of the largest kernel, and CUDA's own share of each block's.
  static constexpr int64_t kReservedShared = 4 << 10;
  // Registers a thread: the kernels' budgets, set by their launch bounds (group.h) and checked by
  // tests/test_cuda_compile.py.
  static constexpr int kWarpRegisters = 80;
  static constexpr int kBlockRegisters = 80;
  static constexpr int kBlockRegisters16Bit = 128;
  // What a warp issues for each byte that is moved, for rows from 784 elements on, and the bytes
  // that a multiprocessor has requested at most: what an H100 can hide. tests/test_kernel_model.py
  // holds them, by following the machine code. For 784 elements of 16 bits the goal is .22; a
  // sample's scalars alone take .15.
  static constexpr double kInstructionsPerByte = 0.16;
  static constexpr double kInstructionsPerByte16Bit = 0.22;
  static constexpr double kInstructionsPerByteShort16Bit = 0.32;
  // The additive margin reads a sample's logits once more, and its cross-entropy is computed twice.
  static constexpr double kInstructionsPerByteShortAdditive = 0.19;
  static constexpr double kInstructionsPerByteShortAdditive16Bit = 0.40;
  // An attack step reads its rows in two or three passes, which are counted, and moves them once.
  // p = 1 also counts the ties of the largest element, and may search for the steepest ones.
  static constexpr double kInstructionsPerByteAttack16Bit = 0.26;
  static constexpr double kInstructionsPerByteAttackOne = 0.17;
  static constexpr double kInstructionsPerByteAttackOne16Bit = 0.34;
  static constexpr double kInstructionsPerByteAttackSteepest = 0.36;
  // class_margins writes nothing, so its scalars weigh twice.
  static constexpr double kInstructionsPerByteClasses = 0.17;
  static constexpr double kInstructionsPerByteClasses16Bit = 0.34;
  static constexpr int64_t kBytesInFlight = 48 << 10;
  // The most blocks of a launch. It bounds the buffer of partial totals.
  static constexpr int64_t kGroups = 4096;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t packs_of_slice(const SampleShape& shape, unsigned cluster) {
  return ceil_div(shape.row_bytes / 16, cluster);
}

// Whether every block of a cluster gets at least one pack.
inline bool splits(const SampleShape& shape, unsigned cluster) {
  const int64_t packs = (shape.row_bytes - 15) / 16;  // at least, whatever the alignment
  return cluster == 1 || (packs > 0 && ceil_div(packs, ceil_div(packs, cluster)) == cluster);
}

inline bool fits(const SampleShape& shape, unsigned cluster, int64_t bytes) {
  return packs_of_slice(shape, cluster) * shape.pack_bytes + Limits::kReservedShared <= bytes;
}

inline int64_t work_bytes(const SampleShape& shape) { return shape.row_bytes + 4 * shape.classes; }

inline bool many_samples(const DeviceTraits& device, const SampleShape& shape, unsigned cluster) {
  return shape.batch * cluster >= Limits::kManySamples * device.multiprocessors;
}

// The smallest cluster whose blocks keep the row on chip (or the largest, if none does), enlarged
// while the batch leaves multiprocessors idle.
inline unsigned choose_cluster(const DeviceTraits& device, const SampleShape& shape, bool keeps) {
  unsigned cluster = 1;
  const int64_t comfortable = device.shared_per_multiprocessor / Limits::kBlocksPerMultiprocessor;
  while (keeps && 2 * cluster <= device.max_cluster && splits(shape, 2 * cluster) &&
         !fits(shape, cluster, comfortable)) {
    cluster *= 2;
  }
  // Blocks that keep nothing have few bytes in flight, so two share a multiprocessor.
  const int64_t places =
      device.multiprocessors * (shape.pack_bytes == 0 ? Limits::kBlocksPerMultiprocessor : 1);
  while (2 * cluster <= device.max_cluster && splits(shape, 2 * cluster) &&
         shape.batch * 2 * cluster <= places &&
         work_bytes(shape) / (2 * cluster) >= Limits::kSmallestSlice) {
    cluster *= 2;
  }
  // Rows that are read again, of as many samples as are resident, should find room in the cache; if
  // no cluster is large enough, they are not split for it.
  if (shape.rereads) {
    const int64_t room = device.cache_bytes / Limits::kRereadPart;
    const int64_t blocks = Limits::kRereadBlocks * device.multiprocessors;
    const auto fit_the_cache = [&](unsigned size) {
      return std::max<int64_t>(1, blocks / size) * work_bytes(shape) <= room;
    };
    unsigned wanted = cluster;
    while (!fit_the_cache(wanted) && 2 * wanted <= device.max_cluster &&
           splits(shape, 2 * wanted)) {
      wanted *= 2;
    }
    if (fit_the_cache(wanted)) cluster = wanted;
  }
  return cluster;
}

inline unsigned threads_of_block(const DeviceTraits& device, const SampleShape& shape,
                                 unsigned cluster) {
  const int64_t slice = work_bytes(shape) / cluster;
  const bool many = many_samples(device, shape, cluster);
  if (many && shape.element_bytes == 2 && slice <= Limits::kMediumSlice16Bit) return 64;
  return slice <= Limits::kNarrowSlice || (many && slice <= Limits::kMediumSlice) ? 128 : 256;
}

inline bool fits_warp(const DeviceTraits& device, const SampleShape& shape) {
  return shape.served_by(Variant::kWarp) && shape.row_bytes <= Limits::kWarpRow &&
         fits(shape, 1, device.shared_per_block);
}

// False: the forced variant or cluster size cannot serve this shape.
inline bool choose_variant(const DeviceTraits& device, const SampleShape& shape,
                           const LaunchOptions& options, Plan& plan) {
  const unsigned forced = options.cluster_size;
  if (forced > 1 && (forced > device.max_cluster || !splits(shape, forced))) return false;
  plan.variant = options.variant;
  if (plan.variant == Variant::kAuto) {
    const bool in_a_warp = forced <= 1 && fits_warp(device, shape) &&
                           shape.classes <= Limits::kWarpClasses &&
                           (shape.row_bytes <= Limits::kShortRow || many_samples(device, shape, 1));
    plan.variant = in_a_warp                          ? Variant::kWarp
                   : shape.served_by(Variant::kBlock) ? Variant::kBlock
                                                      : Variant::kReread;
  }
  if (plan.variant == Variant::kWarp) return fits_warp(device, shape) && forced <= 1;
  const bool keeps = plan.variant == Variant::kBlock;
  plan.cluster_size = forced != 0 ? forced : choose_cluster(device, shape, keeps);
  return shape.served_by(plan.variant);
}

// Everything but the number of blocks. False: the forced variant or cluster size cannot serve this
// shape.
inline bool make_plan(const DeviceTraits& device, const SampleShape& shape,
                      const LaunchOptions& options, Plan& plan) {
  plan = Plan();
  if (!choose_variant(device, shape, options, plan)) return false;
  int64_t room = device.shared_per_block - Limits::kReservedShared;
  if (plan.variant == Variant::kWarp) {
    plan.groups_of_block = static_cast<unsigned>(std::clamp<int64_t>(
        ceil_div(shape.batch, device.multiprocessors), 1, Limits::kWarpsPerBlock));
    while (plan.groups_of_block > 1 &&
           !fits(shape, 1, device.shared_per_block / plan.groups_of_block)) {
      --plan.groups_of_block;
    }
    plan.threads = 32 * plan.groups_of_block;
    room /= plan.groups_of_block;
  } else {
    plan.threads = threads_of_block(device, shape, plan.cluster_size);
  }
  if (plan.variant == Variant::kReread || shape.pack_bytes == 0) return true;
  const int64_t slice = packs_of_slice(shape, plan.cluster_size);
  const int64_t capacity = room / 16 * 16 / shape.pack_bytes / plan.threads * plan.threads;
  const int64_t packs = std::min(slice, capacity);
  plan.kept_packs = static_cast<int>(packs);
  plan.kept_bytes = ceil_div(packs * shape.pack_bytes, 16) * 16;
  plan.shared_bytes = static_cast<size_t>(plan.kept_bytes) * plan.groups_of_block;
  return true;
}

// As many blocks as can be resident: each group takes samples in turn, so the batch reduction has
// few partial totals to combine. `resident`: the clusters that the device holds at a time.
inline void set_blocks(const DeviceTraits& device, const SampleShape& shape, int64_t resident,
                       Plan& plan) {
  const int64_t wanted = ceil_div(shape.batch, plan.groups_of_block);
  const int64_t most = std::min(std::max<int64_t>(1, resident), Limits::kGroups);
  const int64_t clusters = std::clamp<int64_t>(wanted, 1, most);
  plan.blocks = static_cast<unsigned>(clusters) * plan.cluster_size;
  plan.prefetches = plan.cluster_size > 1 && clusters < shape.batch &&
                    clusters * work_bytes(shape) <= device.cache_bytes / Limits::kPrefetchPart;
}

}  // namespace margin::cuda
