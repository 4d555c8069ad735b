// Launching a kernel: makes the threads of some clusters, and lets one run after another in the
// order that the schedule says, until all have left the kernel.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <tuple>

#include "simt/machine.h"
#include "simt/runtime.h"
#include "simt/warp.h"

namespace [[gnu::visibility("hidden")]] simt {

struct Config {
  dim3 grid;
  dim3 block;
  std::size_t dynamic_shared_bytes = 0;
  unsigned cluster_size = 1;      // blocks along x
  cudaStream_t stream = nullptr;  // a launch is over when launch() returns, on any stream
  const char* name = nullptr;     // for messages; by default the symbol, where it is visible
};

// schedule 0: the first thread that can run runs, blocks in ascending order
//          1: the last one, blocks in descending order
//          2: lockstep: all in turn, several clusters at a time
//         >2: random with this seed, in the order of the blocks as well, several clusters at a time
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

inline std::string symbol(const void* function) {
  Dl_info info{};
  if (dladdr(function, &info) == 0 || info.dli_saddr != function) return "(no name)";
  char* demangled = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
  const std::string name = demangled != nullptr ? demangled : info.dli_sname;
  std::free(demangled);
  return name;
}

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

// Puts the cluster whose first block has this number in the grid into a free place.
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
    for (Thread& thread : block.threads) {
      thread.exited = false;
      thread.fiber.start(run_thread);
      wake(thread);
    }
  }
}

inline std::string name(const Block& block) {
  return text("block (", block.index.x, ",", block.index.y, ",", block.index.z, ")");
}

// Runs `thread` until it waits, yields or leaves, and does what its leaving brings about.
inline void step(Thread& thread) {
  Block& block = *thread.block;
  Cluster& cluster = *block.cluster;
  if (!block.started) {
    block.started = true;
    if (!block.shared.open())
      fail(text("shared memory of ", name(block), " written before its start"));
  }
  machine.current = &thread;
  threadIdx = thread.index;
  blockIdx = block.index;
  thread.fiber.resume();
  machine.current = nullptr;
  if (machine.failure) std::rethrow_exception(std::exchange(machine.failure, nullptr));
  if (!thread.exited) return;

  machine.ready.erase(thread.slot);
  --cluster.live;
  if (--block.live == 0 && !block.shared.close(machine.statics)) {
    fail(text("a write outside the arrays in the shared memory of ", name(block)));
  }
  if (cluster.live > 0) return;
  for (Block& ended : cluster.blocks) {
    if (!ended.shared.still_closed()) {
      fail(text("shared memory of ", name(ended), " written after its end"));
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
      return machine.ready.next(next_random() % machine.threads.size());
  }
}

// All threads that have not left wait, and nobody is left to wake them.
[[noreturn]] inline void fail_deadlock() {
  struct Group {
    const Thread* first;
    std::size_t count;
  };
  std::vector<Group> groups;
  for (const Thread& thread : machine.threads) {
    if (thread.place.operation == nullptr) continue;
    const auto same = [&](const Group& group) {
      return group.first->block == thread.block && group.first->place == thread.place;
    };
    const auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group != groups.end()) {
      ++group->count;
    } else {
      groups.push_back({&thread, 1});
    }
  }
  std::string report = "deadlock";
  for (const Group& group : groups) {
    report += text("; ", group.count, " thread(s), first ", name(*group.first), ", wait in ",
                   name(group.first->place));
  }
  fail(report);
}

inline void run_grid(std::size_t blocks, std::size_t cluster_size) {
  std::vector<std::size_t> order(blocks / cluster_size);
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (machine.schedule == 1) std::reverse(order.begin(), order.end());
  for (std::size_t i = order.size(); machine.schedule > 2 && i > 1; --i) {
    std::swap(order[i - 1], order[next_random() % i]);
  }
  std::size_t started = 0;
  std::ptrdiff_t previous = -1;
  for (;;) {
    for (Cluster& cluster : machine.clusters) {
      if (cluster.live == 0 && started < order.size()) {
        start_cluster(cluster, order[started++] * cluster_size);
      }
    }
    previous = choose(previous);
    if (previous < 0) break;
    step(machine.threads[static_cast<std::size_t>(previous)]);
  }
  for (const Cluster& cluster : machine.clusters) {
    if (cluster.live > 0) fail_deadlock();
  }
}

// Places for as many clusters as run at a time, each with its blocks and threads.
inline void furnish(const Config& config, std::size_t places) {
  const dim3 size = config.block;
  const std::size_t per_block = std::size_t{size.x} * size.y * size.z;
  const std::size_t blocks = places * config.cluster_size;
  const std::size_t threads = blocks * per_block;
  if (machine.pool.size() < threads) machine.pool = std::vector<Thread>(threads);
  machine.threads = std::span(machine.pool).first(threads);
  if (machine.blocks.size() != blocks) machine.blocks = std::vector<Block>(blocks);
  machine.clusters = std::vector<Cluster>(places);
  machine.ready.resize(threads);
  for (std::size_t p = 0; p < places; ++p) {
    machine.clusters[p].blocks =
        std::span(machine.blocks).subspan(p * config.cluster_size, config.cluster_size);
  }
  for (std::size_t b = 0; b < blocks; ++b) {
    Block& block = machine.blocks[b];
    block.rank = static_cast<unsigned>(b % config.cluster_size);
    block.cluster = &machine.clusters[b / config.cluster_size];
    block.threads = machine.threads.subspan(b * per_block, per_block);
    for (std::size_t t = 0; t < per_block; ++t) {
      Thread& thread = block.threads[t];
      thread.block = &block;
      thread.rank = static_cast<unsigned>(t);
      thread.slot = b * per_block + t;
      thread.place = {};
      thread.index = {static_cast<unsigned>(t % size.x), static_cast<unsigned>(t / size.x % size.y),
                      static_cast<unsigned>(t / size.x / size.y)};
    }
  }
}

inline cudaError_t check(const Config& config) {
  const dim3 g = config.grid, b = config.block;
  const std::size_t threads = std::size_t{b.x} * b.y * b.z;
  const bool grid_fits =
      g.x >= 1 && g.x <= 0x7fffffff && g.y >= 1 && g.y <= 65535 && g.z >= 1 && g.z <= 65535;
  if (!grid_fits || threads < 1 || threads > 1024 || b.z > 64) return cudaErrorInvalidConfiguration;
  if (config.dynamic_shared_bytes > static_cast<std::size_t>(device().dynamic_shared_limit)) {
    return cudaErrorInvalidValue;
  }
  const unsigned cluster = config.cluster_size;
  if (cluster < 1 || cluster > static_cast<unsigned>(device().cluster_limit) ||
      g.x % cluster != 0) {
    return cudaErrorInvalidClusterSize;
  }
  return cudaSuccess;
}

inline void run(const Config& config) {
  const Settings now = settings();
  const std::size_t per_cluster =
      std::size_t{config.block.x} * config.block.y * config.block.z * config.cluster_size;
  const std::size_t blocks = std::size_t{config.grid.x} * config.grid.y * config.grid.z;
  // Some clusters at a time, so that blocks interleave, but not more than some thousand stacks.
  const std::size_t places =
      now.schedule < 2 ? 1 : std::clamp<std::size_t>(8192 / per_cluster, 1, 4);
  machine.schedule = now.schedule;
  machine.random = 0x9e3779b97f4a7c15u * static_cast<std::uint64_t>(now.schedule + 1) | 1;
  machine.dynamic_bytes = config.dynamic_shared_bytes;
  machine.statics = {};
  machine.current = nullptr;
  machine.failure = nullptr;
  blockDim = config.block;
  gridDim = config.grid;
  furnish(config, std::min(places, blocks / config.cluster_size));
  run_grid(blocks, config.cluster_size);
}

// A report of AddressSanitizer shows lines of source; this adds which thread was there.
inline void name_thread_in_reports() {
#ifdef SIMT_ASAN
  __asan_set_error_report_callback([](const char*) {
    if (machine.current == nullptr) return;
    std::fputs(text("simt: kernel ", machine.kernel, ", ", name(*machine.current), "\n").c_str(),
               stderr);
  });
#endif
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Config& config, Arguments&&... arguments) {
  if (const cudaError_t error = check(config); error != cudaSuccess) return error;
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);

  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Call call{kernel, {std::forward<Arguments>(arguments)...}};
  machine.body = [](const void* erased) {
    const auto& [function, values] = *static_cast<const Call*>(erased);
    std::apply(function, values);  // every thread gets copies, as on the device
  };
  machine.arguments = &call;
  machine.kernel = config.name ? config.name : symbol(reinterpret_cast<const void*>(kernel));
  name_thread_in_reports();
  run(config);
  return cudaSuccess;
}

}  // namespace simt
