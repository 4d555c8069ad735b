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

// One entry for every group of a block; only the group's first thread touches it. In shared memory,
// because the twenty registers of the sums would be taken from every thread.
class BlockTotals {
 public:
  template <typename Group>
  MARGIN_DEVICE BlockTotals(const Group& group, bool wanted) : wanted_(wanted) {
    SIMT_SHARED(Raw<BatchTotals>, entries, kMaxWarps);
    entries_ = entries;
    own_ = entries + group.lead();
    if (wanted_ && group.thread() == 0) own_->get() = BatchTotals();
  }

  template <typename Acc>
  MARGIN_DEVICE void add(const SampleLoss<Acc>& sample, Acc norm, Acc weight, bool is_correct) {
    if (wanted_) own_->get().add(sample, norm, weight, is_correct);
  }

  // True in the block that comes last, in whose first thread `totals` is then that of the batch.
  // All threads of the block must call it; blocks of a cluster other than its first take no part.
  template <typename Group>
  MARGIN_DEVICE bool finish(const Group& group, BatchTotals* partials, unsigned* ticket,
                            BatchTotals& totals) {
    if (!wanted_ || group.rank() != 0) return false;
    SIMT_SHARED(unsigned, is_last, 1);
    const unsigned blocks = gridDim.x / group.ranks();
    __syncthreads();
    if (threadIdx.x == 0) {
      BatchTotals of_block;
      for (unsigned i = 0; i < group.leads(); ++i) of_block.combine(entries_[i].get());
      partials[blockIdx.x / group.ranks()] = of_block;
      __threadfence();  // the totals are visible before the ticket is drawn
      is_last[0] = atomicInc(ticket, blocks - 1) == blocks - 1;
    }
    __syncthreads();
    if (is_last[0] == 0) return false;
    __threadfence();  // and after it all others' are

    const CombineTotals combine;
    for (unsigned i = threadIdx.x; i < blocks; i += blockDim.x) {
      totals.combine(load_totals(partials + i));
    }
    totals = reduce_warp(totals, combine);
    if (threadIdx.x % kWarp == 0) entries_[threadIdx.x / kWarp].get() = totals;
    __syncthreads();
    totals = reduce_parts(entries_, blockDim.x / kWarp, combine);
    return true;
  }

 private:
  Raw<BatchTotals>* entries_;
  Raw<BatchTotals>* own_;
  bool wanted_;
};

}  // namespace margin::cuda
