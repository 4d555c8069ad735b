// The state of a launch: threads, blocks, clusters and which thread may run. The rest of the
// emulator are operations on the one `machine` below.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <exception>
#include <source_location>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "simt/cuda_types.h"
#include "simt/fiber.h"
#include "simt/shared_arena.h"

// CUDA's built-in variables, set whenever a thread is resumed. Ordinary globals, not macros: a
// kernel may take their address or have members of the same name.
inline constexpr int warpSize = 32;
[[gnu::visibility("hidden")]] inline uint3 threadIdx, blockIdx;
[[gnu::visibility("hidden")]] inline dim3 blockDim, gridDim;

namespace [[gnu::visibility("hidden")]] simt {

// Where a thread waits. Two threads wait together only if their places are equal: one operation,
// one mask (0 for barriers), one line.
struct Place {
  const char* operation = nullptr;  // null: the thread does not wait
  unsigned mask = 0;
  std::source_location where;

  bool operator==(const Place& other) const {
    const auto same = [](const char* a, const char* b) {
      return a == b || (a != nullptr && b != nullptr && std::strcmp(a, b) == 0);
    };
    return same(operation, other.operation) && mask == other.mask &&
           where.line() == other.where.line() && same(where.file_name(), other.where.file_name());
  }
};

struct Block;

struct Thread {
  Fiber fiber;
  uint3 index{};
  Block* block = nullptr;
  unsigned rank = 0;     // in its block
  std::size_t slot = 0;  // its bit in the ready set
  bool exited = false;
  Place place;
  // What it brought to the warp operation it waits in, and what it takes home.
  std::uint64_t value = 0;
  unsigned source = 0;
  std::uint64_t result = 0;
};

// Released when all its threads have arrived. Stricter than hardware, on purpose: they must
// arrive at one line, and none may have left the kernel.
class Barrier {
 public:
  void reset(std::size_t threads) {
    expected_ = threads;
    waiting_.clear();
    gone_ = nullptr;
  }
  void wait(const char* operation, std::source_location where);
  void leave(Thread& thread);

 private:
  std::size_t expected_ = 0;
  std::vector<Thread*> waiting_;
  Thread* gone_ = nullptr;  // the first that left the kernel
};

struct Cluster {
  std::span<Block> blocks;
  std::size_t live = 0;  // threads that have not left the kernel; 0: the place is free
  Barrier barrier;
};

struct Block {
  uint3 index{};
  unsigned rank = 0;  // in its cluster
  Cluster* cluster = nullptr;
  std::span<Thread> threads;
  std::vector<unsigned> alive;  // for each warp, the lanes that have not left the kernel
  std::size_t live = 0;
  bool started = false;
  Barrier barrier;
  SharedArena shared;
};

// The threads that may run, as a bit set with a word for a warp: every schedule is a rule for
// choosing a bit, and -1 says that there is none.
class ReadySet {
 public:
  void resize(std::size_t size) { words_.assign((size + 31) / 32, 0); }
  void insert(std::size_t i) { words_[i / 32] |= 1u << i % 32; }
  void erase(std::size_t i) { words_[i / 32] &= ~(1u << i % 32); }

  // The first member at or after `from`, going round.
  std::ptrdiff_t next(std::size_t from) const {
    const std::size_t n = words_.size(), first = from / 32 % n;
    std::uint32_t word = words_[first] & ~0u << from % 32;
    for (std::size_t i = 0; i <= n; ++i) {
      if (word != 0) return bit((first + i) % n, std::countr_zero(word));
      word = words_[(first + i + 1) % n];
    }
    return -1;
  }
  std::ptrdiff_t last() const {
    for (std::size_t i = words_.size(); i-- > 0;) {
      if (words_[i] != 0) return bit(i, 31 - std::countl_zero(words_[i]));
    }
    return -1;
  }
  // The first member of the word that has the highest precedence.
  std::ptrdiff_t first_by(const std::vector<std::uint64_t>& precedence) const {
    std::size_t best = words_.size();
    for (std::size_t i = 0; i < words_.size(); ++i) {
      if (words_[i] != 0 && (best == words_.size() || precedence[i] > precedence[best])) best = i;
    }
    return best < words_.size() ? bit(best, std::countr_zero(words_[best])) : -1;
  }

 private:
  static std::ptrdiff_t bit(std::size_t word, int i) {
    return static_cast<std::ptrdiff_t>(word * 32) + i;
  }
  std::vector<std::uint32_t> words_;
};

struct Machine {
  std::string kernel;
  void (*body)(const void*) = nullptr;  // calls the kernel with its arguments
  const void* arguments = nullptr;
  std::vector<Thread> pool;   // only grows: a fiber keeps its stack for the next launch
  std::span<Thread> threads;  // of all places for clusters, as are the blocks
  std::vector<Block> blocks;
  std::vector<Cluster> clusters;
  std::size_t dynamic_bytes = 0;
  StaticLayout statics;
  ReadySet ready;
  std::vector<std::uint64_t> precedence;  // of the warps, for schedules that have one
  Thread* current = nullptr;              // null while the scheduler runs
  std::exception_ptr failure;
  int schedule = 0;
  std::uint64_t random = 1;
};
inline Machine machine;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

inline std::string hex(unsigned mask) {
  std::ostringstream out;
  out << "0x" << std::hex << mask;
  return out.str();
}

inline std::string name(const Thread& thread) {
  const auto [tx, ty, tz] = thread.index;
  const auto [bx, by, bz] = thread.block->index;
  return text("block (", bx, ",", by, ",", bz, ") thread (", tx, ",", ty, ",", tz, ")");
}

inline std::string name(const Place& place) {
  const std::string_view file = place.where.file_name();
  return text(place.operation, place.mask ? text("(mask ", hex(place.mask), ")") : "", " at ",
              file.substr(file.rfind('/') + 1), ":", place.where.line());
}

// Ends the launch with a message that says which kernel, block and thread did what.
[[noreturn]] inline void fail(const std::string& what) {
  const std::string who = machine.current != nullptr ? ", " + name(*machine.current) : "";
  throw Error(text("simt: kernel ", machine.kernel, who, ": ", what));
}

inline std::uint64_t next_random() {  // xorshift64
  machine.random ^= machine.random << 13;
  machine.random ^= machine.random >> 7;
  machine.random ^= machine.random << 17;
  return machine.random;
}

// The running thread lets another run and stays ready.
inline void yield() { machine.current->fiber.suspend(); }

// The running thread waits at `place` until somebody wakes it.
inline void park(const Place& place) {
  machine.current->place = place;
  machine.ready.erase(machine.current->slot);
  machine.current->fiber.suspend();
}

inline void wake(Thread& thread) {
  thread.place = {};
  machine.ready.insert(thread.slot);
}

// Once for the warp, not for every lane: a warp that comes last should do so for a while.
inline void draw_precedence(const Thread& thread) {
  if (thread.rank % 32 == 0) machine.precedence[thread.slot / 32] = next_random();
}

// A point at which hardware may well run another thread, block or cluster first: atomics and
// fences, where the order between blocks matters. The two orderly schedules run on.
inline void preempt() {
  if (machine.schedule < 2) return;
  draw_precedence(*machine.current);
  if (machine.schedule == 2 || (next_random() & 1) != 0) yield();
}

inline void Barrier::wait(const char* operation, std::source_location where) {
  const Place place{operation, 0, where};
  if (gone_ != nullptr) fail(text("waits in ", name(place), " after ", name(*gone_), " left"));
  if (!waiting_.empty() && !(waiting_.front()->place == place)) {
    fail(text("divergent barrier: waits in ", name(place), " while ", name(*waiting_.front()),
              " waits in ", name(waiting_.front()->place)));
  }
  waiting_.push_back(machine.current);
  if (waiting_.size() < expected_) return park(place);
  for (Thread* thread : waiting_) {
    wake(*thread);
    draw_precedence(*thread);
  }
  waiting_.clear();
  yield();
}

inline void Barrier::leave(Thread& thread) {
  if (!waiting_.empty()) {
    fail(text("leaves the kernel while ", name(*waiting_.front()), " waits in ",
              name(waiting_.front()->place)));
  }
  if (gone_ == nullptr) gone_ = &thread;
}

}  // namespace simt
