// The batch reduction within one launch: every block stores its totals, and the last block to
// finish combines them in the order of the blocks, so results repeat bit for bit. Who is last is
// found by a ticket counter that goes back to 0 by itself: no memset, nothing kept between calls.
#pragma once

#include "core/statistics.h"
#include "cuda/group.h"
#include "cuda/tickets.h"

namespace margin::cuda {

struct CombineTotals {
  MARGIN_DEVICE void operator()(BatchTotals& totals, const BatchTotals& other) const {
    totals.combine(other);
  }
};

// Totals that other blocks have stored: past the first-level cache, which is not coherent.
MARGIN_DEVICE BatchTotals load_totals(const BatchTotals* address) {
  constexpr int kWords = sizeof(BatchTotals) / sizeof(double);
  double words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __ldcg(reinterpret_cast<const double*>(address) + i);
  BatchTotals totals;
  memcpy(static_cast<void*>(&totals), words, sizeof(totals));
  return totals;
}

// Where the totals of a batch go.
template <typename Acc>
struct TotalsOutput {
  BatchTotals* partials;  // one a group of blocks; null: totals are not wanted
  unsigned ticket;
  Reduction reduction;
  int64_t batch;
  Acc* statistics;
  Acc* loss;  // null under Reduction::kNone
};

// Stores the totals of this block, which stand in `count` entries in shared memory; the last block
// combines those of all. Of each `ranks` neighbouring blocks one takes part. The entries are
// overwritten.
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
    __threadfence();  // the totals are visible before the ticket is drawn
    is_last[0] = atomicInc(&tickets[output.ticket], blocks - 1) == blocks - 1;
  }
  __syncthreads();
  if (is_last[0] == 0) return;
  __threadfence();  // and after it all others' are

  const CombineTotals combine;
  BatchTotals totals;
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

// One entry for every group of a block; only the group's first thread touches it. In shared memory,
// because the twenty registers of the sums would be taken from every thread.
class BlockTotals {
 public:
  template <typename Group>
  MARGIN_DEVICE static void start(const Group& group) {
    if (group.thread() == 0) entries()[group.lead()].get() = BatchTotals();
  }

  template <typename Group, typename Acc>
  MARGIN_DEVICE static void add(const Group& group, const SampleLoss<Acc>& sample, Acc norm,
                                Acc weight, bool is_correct) {
    entries()[group.lead()].get().add(sample, norm, weight, is_correct);
  }

  // All threads of the block must call it; blocks of a cluster other than its first take no part.
  template <typename Group, typename Acc>
  MARGIN_DEVICE static void finish(const Group& group, const TotalsOutput<Acc>& output) {
    if (group.rank() != 0) return;
    finish_totals(entries(), group.leads(), group.ranks(), output);
  }

 private:
  MARGIN_DEVICE static Raw<BatchTotals>* entries() {
    SIMT_SHARED(Raw<BatchTotals>, entries, kMaxWarps);
    return entries;
  }
};

}  // namespace margin::cuda
