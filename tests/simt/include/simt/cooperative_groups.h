// The part of cooperative groups that names blocks and clusters. (CUDA's own header is empty
// for a host compiler.)
#pragma once

#include "simt/warp.h"

namespace cooperative_groups {

using simt::Where;

class thread_block {
 public:
  void sync(Where where = Where::current()) const {
    simt::machine.current->block->barrier.wait("thread_block::sync", where);
  }
  unsigned thread_rank() const { return simt::machine.current->rank; }
  unsigned size() const { return blockDim.x * blockDim.y * blockDim.z; }
  unsigned num_threads() const { return size(); }
  dim3 group_index() const { return blockIdx; }
  dim3 thread_index() const { return threadIdx; }
};

inline thread_block this_thread_block() { return {}; }

class cluster_group {
 public:
  void sync(Where where = Where::current()) const {
    simt::machine.current->block->cluster->barrier.wait("cluster_group::sync", where);
  }
  unsigned block_rank() const { return simt::machine.current->block->rank; }
  unsigned num_blocks() const {
    return static_cast<unsigned>(simt::machine.current->block->cluster->blocks.size());
  }
  unsigned num_threads() const { return num_blocks() * this_thread_block().size(); }
  unsigned thread_rank() const {
    return block_rank() * this_thread_block().size() + this_thread_block().thread_rank();
  }

  // The variable at `address` in this block's shared memory, as it lies in block `rank`.
  template <class T>
  T* map_shared_rank(T* address, int rank) const {
    auto& block = *simt::machine.current->block;
    const auto blocks = block.cluster->blocks;
    if (rank < 0 || static_cast<unsigned>(rank) >= blocks.size()) {
      simt::fail(simt::text("map_shared_rank: rank ", rank, ", but the cluster has ", blocks.size(),
                            " blocks"));
    }
    auto& other = blocks[static_cast<unsigned>(rank)];
    if (other.started && other.live == 0) {
      simt::fail(simt::text("map_shared_rank: block ", rank, " of the cluster has ended"));
    }
    void* there = block.shared.translate(address, other.shared);
    if (there == nullptr) {
      simt::fail("map_shared_rank: the address is not in this block's shared memory");
    }
    return static_cast<T*>(there);
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
