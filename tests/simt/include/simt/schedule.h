// Runs the threads of a launch one after another, in the order that the schedule says, until all
// have left the kernel.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <utility>

#include "simt/machine.h"
#include "simt/warp.h"

namespace [[gnu::visibility("hidden")]] simt {

// schedule 0: the first thread that can run runs, blocks in ascending order
//          1: the last one, blocks in descending order
//          2: lockstep: all in turn, several clusters at a time
//         >2: random with this seed, several clusters at a time, blocks in random order; an even
//             seed chooses a thread anew at every step, an odd one the warp that comes first in a
//             random order, drawn anew at barriers and fences: some run far ahead of others
struct Settings {
  int schedule;
  unsigned char poison;  // what fresh shared memory holds: 0xff is NaN, 0x7e a large number
};
inline Settings& settings() {
  const auto number = [](const char* variable, int otherwise) {
    const char* value = std::getenv(variable);
    return value != nullptr ? static_cast<int>(std::strtol(value, nullptr, 0)) : otherwise;
  };
  static Settings settings{number("SIMT_SCHEDULE", 0),
                           static_cast<unsigned char>(number("SIMT_POISON", 0xff))};
  return settings;
}
inline void set_schedule(int schedule) { settings().schedule = schedule; }
inline void set_poison(unsigned char poison) { settings().poison = poison; }

// The life of a fiber. No exception crosses a switch of stacks: the scheduler rethrows it.
inline void run_thread() {
  Thread& self = *machine.current;
  self.fiber.entered();
  try {
    machine.body(machine.arguments);
    leave_warp(self);
    self.block->barrier.leave(self);
    self.block->cluster->barrier.leave(self);
  } catch (...) {
    machine.failure = std::current_exception();
  }
  self.exited = true;
  self.fiber.finish();
}

// Makes the blocks of one cluster from a block's number in the grid on.
inline void start_cluster(Cluster& cluster, std::size_t first_block) {
  const std::size_t per_block = cluster.blocks.front().threads.size();
  cluster.live = cluster.blocks.size() * per_block;
  cluster.barrier.reset(cluster.live);
  for (Block& block : cluster.blocks) {
    const std::size_t number = first_block + block.rank;
    block.index = {static_cast<unsigned>(number % gridDim.x),
                   static_cast<unsigned>(number / gridDim.x % gridDim.y),
                   static_cast<unsigned>(number / gridDim.x / gridDim.y)};
    block.live = per_block;
    block.started = false;
    block.barrier.reset(per_block);
    block.shared.reset(machine.dynamic_bytes, settings().poison);
    block.alive.assign((per_block + 31) / 32, kFullMask);
    if (per_block % 32 != 0) block.alive.back() >>= 32 - per_block % 32;
    for (Thread& thread : block.threads) {
      thread.exited = false;
      thread.fiber.start(run_thread);
      wake(thread);
    }
  }
}

// Runs `thread` until it waits, yields or leaves, and does what its leaving brings about.
inline void step(Thread& thread) {
  Block& block = *thread.block;
  Cluster& cluster = *block.cluster;
  machine.current = &thread;
  if (!std::exchange(block.started, true)) {
    if (!block.shared.undisturbed()) {
      fail("another block wrote into this block's shared memory before it started");
    }
    block.shared.open();
  }
  threadIdx = thread.index;
  blockIdx = block.index;
  thread.fiber.resume();
  if (machine.failure) std::rethrow_exception(std::exchange(machine.failure, nullptr));
  if (!thread.exited) return;

  machine.ready.erase(thread.slot);
  --cluster.live;
  if (--block.live == 0 && !block.shared.close(machine.statics)) {
    fail("the block wrote into its shared memory outside the arrays");
  }
  if (cluster.live > 0) return;
  for (Block& ended : cluster.blocks) {
    if (!ended.shared.undisturbed()) {
      fail(text("shared memory of block ", ended.rank, " of the cluster written after its end"));
    }
  }
}

inline std::ptrdiff_t choose(std::ptrdiff_t previous) {
  switch (machine.schedule) {
    case 0:
      return machine.ready.next(0);
    case 1:
      return machine.ready.last();
    case 2:
      return machine.ready.next(static_cast<std::size_t>(previous + 1));
    default:
      return machine.schedule % 2 == 0 ? machine.ready.next(next_random() % machine.threads.size())
                                       : machine.ready.first_by(machine.precedence);
  }
}

// All threads that have not left wait, and nobody is left to wake them.
[[noreturn]] inline void fail_deadlock() {
  std::vector<std::pair<const Thread*, int>> groups;  // of threads that wait at one place
  for (const Thread& thread : machine.threads) {
    if (thread.place.operation == nullptr) continue;
    const auto same = [&](const auto& group) {
      return group.first->block == thread.block && group.first->place == thread.place;
    };
    const auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) {
      groups.emplace_back(&thread, 1);
    } else {
      ++group->second;
    }
  }
  std::string report = "deadlock";
  for (const auto& [first, count] : groups) {
    report +=
        text("; ", count, " thread(s) wait in ", name(first->place), ", first ", name(*first));
  }
  machine.current = nullptr;
  fail(report);
}

// Runs the blocks of a grid, cluster by cluster, in as many places as furnish() has made.
inline void run_grid(std::size_t blocks, std::size_t cluster_size) {
  std::vector<std::size_t> order(blocks / cluster_size);
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (machine.schedule == 1) std::reverse(order.begin(), order.end());
  for (std::size_t i = order.size(); machine.schedule > 2 && i > 1; --i) {
    std::swap(order[i - 1], order[next_random() % i]);
  }
  std::size_t started = 0;
  for (std::ptrdiff_t chosen = -1;;) {
    for (Cluster& cluster : machine.clusters) {
      if (cluster.live == 0 && started < order.size()) {
        start_cluster(cluster, order[started++] * cluster_size);
      }
    }
    chosen = choose(chosen);
    if (chosen < 0) break;
    step(machine.threads[static_cast<std::size_t>(chosen)]);
  }
  for (const Cluster& cluster : machine.clusters) {
    if (cluster.live > 0) fail_deadlock();
  }
}

// Lays out the machine: `places` clusters can be resident at a time.
inline void furnish(std::size_t places, std::size_t cluster_size, dim3 size) {
  const std::size_t per_block = std::size_t{size.x} * size.y * size.z;
  const std::size_t blocks = places * cluster_size, threads = blocks * per_block;
  if (machine.pool.size() < threads) machine.pool = std::vector<Thread>(threads);
  if (machine.blocks.size() < blocks) machine.blocks = std::vector<Block>(blocks);
  machine.threads = std::span(machine.pool).first(threads);
  machine.clusters = std::vector<Cluster>(places);
  machine.ready.resize(threads);
  for (std::size_t b = 0; b < blocks; ++b) {
    Block& block = machine.blocks[b];
    block.rank = static_cast<unsigned>(b % cluster_size);
    block.cluster = &machine.clusters[b / cluster_size];
    block.cluster->blocks = std::span(machine.blocks).subspan(b - block.rank, cluster_size);
    block.threads = machine.threads.subspan(b * per_block, per_block);
  }
  for (std::size_t slot = 0; slot < threads; ++slot) {
    Thread& thread = machine.threads[slot];
    const unsigned rank = static_cast<unsigned>(slot % per_block);
    thread.slot = slot;
    thread.rank = rank;
    thread.block = &machine.blocks[slot / per_block];
    thread.index = {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
  }
  machine.precedence.resize((threads + 31) / 32);
  for (std::uint64_t& precedence : machine.precedence) precedence = next_random();
}

}  // namespace simt
