// The policy: which kernel variant a row takes, with how many threads, blocks and bytes of shared
// memory. It is host code without CUDA calls, so it can be tested anywhere.
//
// Figures marked (reasoned) follow from the hardware's limits and from the bytes that must be in
// flight. No GPU has measured them yet.
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
  unsigned max_cluster = 1;  // the largest cluster that can be resident; 1: none
};

// The work of a sample, and the variants that can do it.
struct SampleShape {
  int64_t batch = 0;
  int64_t row_bytes = 0;
  int64_t classes = 0;  // 0: no logits are read
  int pack_bytes = 0;   // shared memory for each 16 bytes of the row, in the block variant
  bool serves[kVariantCount] = {true, true, true};

  bool served_by(Variant variant) const { return serves[static_cast<int>(variant)]; }
};

struct Plan {
  Variant variant = Variant::kBlock;
  unsigned threads = 0;
  unsigned cluster_size = 1;
  unsigned blocks = 0;
  size_t shared_bytes = 0;
};

// The threads of a block, by the bytes of its slice of the row and 4 bytes for each logit.
struct BlockSize {
  int64_t up_to_bytes;
  unsigned threads;
  const char* reason;
};

inline constexpr BlockSize kBlockSizes[] = {
    {8 << 10, 128,
     "one round of loads, at most 4 packs a thread; small blocks, so that many rows are in flight "
     "(reasoned)"},
    {INT64_MAX, 256,
     "3 such blocks fit a multiprocessor by their registers, and keep 3 x 256 x 4 packs = 48 KB of "
     "loads in flight: its share of the bandwidth times the latency is about 25 KB (reasoned)"},
};

struct Limits {
  // warp: 8 packs x 32 lanes, which live in 32 registers a thread.
  static constexpr int64_t kWarpRowBytes = 4096;
  // warp: 64 logits a lane; for more, a block has more loads in flight (reasoned).
  static constexpr int64_t kWarpClasses = 2048;
  // warp: 4 rows a block, fewer for small batches so that every multiprocessor gets some.
  static constexpr int64_t kWarpsPerBlock = 4;
  // cluster: at least two blocks on a multiprocessor, so that one reads while the other writes.
  static constexpr int64_t kBlocksPerMultiprocessor = 2;
  // cluster, for few samples: a smaller slice is read in less time than the exchange takes
  // (about a microsecond, reasoned).
  static constexpr int64_t kSmallestSlice = 8 << 10;
  // The static shared memory of the largest kernel, and CUDA's own share of each block's.
  static constexpr int64_t kReservedShared = 4 << 10;
  // Registers a thread: the kernels' budgets, set by their launch bounds (group.h) and checked by
  // tests/test_cuda_compile.py. warp: 16 rows of up to 4 KB on a multiprocessor, 64 KB of loads in
  // flight. block: see kBlockSizes.
  static constexpr int kWarpRegisters = 128;
  static constexpr int kBlockRegisters = 80;
  // The most groups of a launch. It bounds the buffer of partial totals.
  static constexpr int64_t kGroups = 4096;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t kept_bytes_of_slice(const SampleShape& shape, unsigned cluster) {
  return ceil_div(shape.row_bytes / 16, cluster) * shape.pack_bytes;
}

// Whether every block of a cluster gets at least one pack.
inline bool splits(const SampleShape& shape, unsigned cluster) {
  const int64_t packs = (shape.row_bytes - 15) / 16;  // at least, whatever the alignment
  return cluster == 1 || (packs > 0 && ceil_div(packs, ceil_div(packs, cluster)) == cluster);
}

inline bool fits(const SampleShape& shape, unsigned cluster, int64_t bytes) {
  return shape.served_by(Variant::kBlock) &&
         kept_bytes_of_slice(shape, cluster) + Limits::kReservedShared <= bytes;
}

inline int64_t work_bytes(const SampleShape& shape) { return shape.row_bytes + 4 * shape.classes; }

inline unsigned threads_of_block(int64_t slice_bytes) {
  for (const BlockSize& size : kBlockSizes) {
    if (slice_bytes <= size.up_to_bytes) return size.threads;
  }
  return 0;
}

// The smallest cluster that keeps the row on chip, enlarged while the batch leaves multiprocessors
// idle. 0: the row does not fit.
inline unsigned choose_cluster(const DeviceTraits& device, const SampleShape& shape,
                               bool resident) {
  unsigned cluster = 1;
  if (resident) {
    const int64_t comfortable = device.shared_per_multiprocessor / Limits::kBlocksPerMultiprocessor;
    while (cluster < device.max_cluster && !fits(shape, cluster, comfortable)) cluster *= 2;
    if (!fits(shape, cluster, device.shared_per_block)) return 0;
  }
  while (2 * cluster <= device.max_cluster && splits(shape, 2 * cluster) &&
         shape.batch * 2 * cluster <= device.multiprocessors &&
         work_bytes(shape) / (2 * cluster) >= Limits::kSmallestSlice) {
    cluster *= 2;
  }
  return cluster;
}

inline bool fits_warp(const SampleShape& shape) {
  return shape.served_by(Variant::kWarp) && shape.row_bytes <= Limits::kWarpRowBytes;
}

// Sets the cluster size of a block or reread plan. False: the shape does not allow it.
inline bool plan_cluster(const DeviceTraits& device, const SampleShape& shape, unsigned forced,
                         Variant variant, Plan& plan) {
  const bool resident = variant == Variant::kBlock;
  plan.variant = variant;
  plan.cluster_size = forced != 0 ? forced : choose_cluster(device, shape, resident);
  if (!resident) return shape.served_by(variant);
  return plan.cluster_size != 0 && fits(shape, plan.cluster_size, device.shared_per_block);
}

// False: the forced variant or cluster size cannot serve this shape.
inline bool choose_variant(const DeviceTraits& device, const SampleShape& shape,
                           const LaunchOptions& options, Plan& plan) {
  const unsigned forced = options.cluster_size;
  if (forced > 1 && (forced > device.max_cluster || !splits(shape, forced))) return false;
  switch (options.variant) {
    case Variant::kWarp:
      plan.variant = Variant::kWarp;
      return fits_warp(shape) && forced <= 1;
    case Variant::kBlock:
    case Variant::kReread:
      return plan_cluster(device, shape, forced, options.variant, plan);
    case Variant::kAuto:
      break;
  }
  if (forced <= 1 && fits_warp(shape) && shape.classes <= Limits::kWarpClasses) {
    plan.variant = Variant::kWarp;
    return true;
  }
  return plan_cluster(device, shape, forced, Variant::kBlock, plan) ||
         plan_cluster(device, shape, forced, Variant::kReread, plan);
}

// False: the forced variant or cluster size cannot serve this shape.
inline bool make_plan(const DeviceTraits& device, const SampleShape& shape,
                      const LaunchOptions& options, Plan& plan) {
  plan = Plan();
  if (!choose_variant(device, shape, options, plan)) return false;
  int64_t groups_of_block = 1;
  if (plan.variant == Variant::kWarp) {
    groups_of_block = std::clamp<int64_t>(ceil_div(shape.batch, device.multiprocessors), 1,
                                          Limits::kWarpsPerBlock);
    plan.threads = static_cast<unsigned>(32 * groups_of_block);
  } else {
    plan.threads = threads_of_block(work_bytes(shape) / plan.cluster_size);
    if (plan.variant != Variant::kReread) {
      plan.shared_bytes = static_cast<size_t>(kept_bytes_of_slice(shape, plan.cluster_size));
    }
  }
  // As many groups as can be resident. Each takes samples in turn, so the batch reduction has few
  // partial totals to combine.
  const int registers =
      plan.variant == Variant::kWarp ? Limits::kWarpRegisters : Limits::kBlockRegisters;
  const int64_t of_threads =
      std::min<int64_t>(device.threads_per_multiprocessor, 65536 / registers) / plan.threads;
  const int64_t of_shared = device.shared_per_multiprocessor /
                            (static_cast<int64_t>(plan.shared_bytes) + Limits::kReservedShared);
  const int64_t resident = std::max<int64_t>(1, std::min(of_threads, of_shared));
  const int64_t wanted = ceil_div(shape.batch, groups_of_block);
  const int64_t at_most = std::max<int64_t>(
      1, device.multiprocessors * resident / static_cast<int64_t>(plan.cluster_size));
  const int64_t groups = std::clamp<int64_t>(wanted, 1, std::min(at_most, Limits::kGroups));
  plan.blocks = static_cast<unsigned>(groups) * plan.cluster_size;
  return true;
}

}  // namespace margin::cuda
