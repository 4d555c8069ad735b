// The batch reduction within one launch. Every block stores its totals, and the last block to
// finish combines them in the order of the blocks, so results repeat bit for bit. A ticket counter
// tells which block is last, and returns to 0 by itself: nothing is cleared or kept between calls.
#pragma once

#include <atomic>

#include "core/statistics.h"
#include "cuda/group.h"

namespace margin::cuda {

// The ticket counters, one a launch: an array of the module that is zero at the start, and that
// every launch leaves at zero. next_ticket() gives out their numbers.
//
// Two launches may use the same counter if they do not overlap in time. Eager launches take the
// counters of their range in turn. Launches on one stream follow each other, and a device runs at
// most 128 kernels at a time, so a counter is free long before its next turn. (They could meet only
// if a launch is held back on its stream while kEagerTickets later ones start on other streams, and
// then starts during the last of these.) A captured launch keeps its counter, because its graph may
// be replayed at any time. The first kCapturedTickets captured launches of a process share theirs
// with no other launch; later ones start again at the beginning of that range. One graph must not
// run twice at the same time, which CUDA does not allow either: both runs would write the same
// outputs.
inline constexpr unsigned kEagerTickets = 1024;
inline constexpr unsigned kCapturedTickets = 15 * 1024;
static __device__ unsigned tickets[kEagerTickets + kCapturedTickets];

// The number of the next launch's ticket counter. It does not synchronise.
inline cudaError_t next_ticket(cudaStream_t stream, unsigned* number) {
  static std::atomic<unsigned> eager{0};
  static std::atomic<unsigned> captured{0};
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error != cudaSuccess) return error;
  if (status == cudaStreamCaptureStatusNone) {
    *number = eager.fetch_add(1, std::memory_order_relaxed) % kEagerTickets;
  } else {
    *number = kEagerTickets + captured.fetch_add(1, std::memory_order_relaxed) % kCapturedTickets;
  }
  return cudaSuccess;
}

struct CombineTotals {
  MARGIN_DEVICE void operator()(BatchTotals& totals, const BatchTotals& other) const {
    totals.combine(other);
  }
};

// Loads totals that another block has stored. The first-level cache is not coherent, so it is
// bypassed.
MARGIN_DEVICE BatchTotals load_totals(const BatchTotals* address) {
  constexpr int kWords = sizeof(BatchTotals) / sizeof(double);
  double words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __ldcg(reinterpret_cast<const double*>(address) + i);
  BatchTotals totals;
  memcpy(static_cast<void*>(&totals), words, sizeof(totals));
  return totals;
}

// Where the totals of a batch are written.
template <typename Acc>
struct TotalsOutput {
  BatchTotals* partials;  // one for each group of `ranks` blocks; null: no totals are wanted
  unsigned ticket;
  Reduction reduction;
  int64_t batch;
  Acc* statistics;
  Acc* loss;  // null under Reduction::kNone
};

// Stores the totals of this block, the sum of `count` entries in shared memory. The last block
// combines the totals of all blocks. One of every `ranks` neighbouring blocks takes part. The
// entries are overwritten.
template <typename Acc>
MARGIN_DEVICE_CALL void finish_totals(Raw<BatchTotals>* entries, unsigned count, unsigned ranks,
                                      const TotalsOutput<Acc>& output) {
  const unsigned blocks = gridDim.x / ranks;
  SIMT_SHARED(unsigned, is_last, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    BatchTotals of_block;
    for (unsigned i = 0; i < count; ++i) of_block.combine(entries[i].get());
    output.partials[blockIdx.x / ranks] = of_block;
    __threadfence();  // the totals are visible before the ticket is taken
    is_last[0] = atomicInc(&tickets[output.ticket], blocks - 1) == blocks - 1;
    __threadfence();  // and those of the other blocks are visible after it
  }
  __syncthreads();
  if (is_last[0] == 0) return;

  const CombineTotals combine;
  BatchTotals totals;
#pragma unroll 2
  for (unsigned i = threadIdx.x; i < blocks; i += blockDim.x) {
    totals.combine(load_totals(output.partials + i));
  }
  totals = reduce_warp(totals, combine);
  if (threadIdx.x % kWarp == 0) entries[threadIdx.x / kWarp].get() = totals;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned i = 1; i < blockDim.x / kWarp; ++i) totals.combine(entries[i].get());
  totals.write(output.reduction, output.batch, output.statistics, output.loss);
}

// One entry for every group of a block, which only the group's first thread accesses. It is in
// shared memory, because registers for the sums would take twenty of every thread.
class BlockTotals {
 public:
  template <typename Group>
  MARGIN_DEVICE static void start(const Group& group) {
    if (group.thread() == 0) entries()[group.number()].get() = BatchTotals();
  }

  template <typename Group, typename Acc>
  MARGIN_DEVICE static void add(const Group& group, const SampleLoss<Acc>& sample, Acc norm,
                                Acc weight, bool is_correct) {
    entries()[group.number()].get().add(sample, norm, weight, is_correct);
  }

  // All threads of the block must call it. Only the first block of a cluster takes part.
  template <typename Group, typename Acc>
  MARGIN_DEVICE static void finish(const Group& group, const TotalsOutput<Acc>& output) {
    if (group.rank() != 0) return;
    finish_totals(entries(), group.groups(), group.ranks(), output);
  }

 private:
  MARGIN_DEVICE static Raw<BatchTotals>* entries() {
    SIMT_SHARED(Raw<BatchTotals>, entries, kMaxWarps);
    return entries;
  }
};

}  // namespace margin::cuda
