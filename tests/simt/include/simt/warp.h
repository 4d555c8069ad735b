// Barriers of a block, and the operations in which the lanes of a warp meet.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstring>
#include <type_traits>

#include "simt/machine.h"

namespace [[gnu::visibility("hidden")]] simt {

inline constexpr unsigned kFullMask = 0xffffffffu;
using Where = std::source_location;

// The lanes named in `mask` meet at `place`; each brings a value. A lane gets the value of lane
// `source`, or with `source` = kVote the set of the lanes whose value is not zero.
//
// The last lane to arrive computes all results, because a lane that is released early may bring
// its next value before a slow lane has looked at this one.
inline constexpr unsigned kVote = 32;

inline std::uint64_t meet(const Place& place, std::uint64_t value, unsigned source) {
  Thread& self = *machine.current;
  const unsigned lane = self.rank % 32;
  const auto warp = self.block->threads.subspan(self.rank - lane);
  const auto named = [&](unsigned mask, unsigned i) { return (mask >> i & 1) != 0; };

  const unsigned absent = place.mask & ~self.block->alive[self.rank / 32];
  if (absent != 0) {
    fail(text(name(place), " names lanes that do not exist or have left: ", hex(absent)));
  }
  if (!named(place.mask, lane)) fail(text("lane ", lane, " is not in its mask: ", name(place)));
  if (source != kVote && !named(place.mask, source)) {
    fail(text("lane ", lane, " reads lane ", source, ", not in the mask: ", name(place)));
  }
  self.place = place;
  self.value = value;
  self.source = source;

  // Looks first where it is likeliest that nobody has arrived yet.
  for (unsigned i = lane + 1; i != lane + 32; ++i) {
    if (!named(place.mask, i % 32) || warp[i % 32].place == place) continue;
    park(place);
    return self.result;
  }
  std::uint64_t vote = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if (named(place.mask, i)) vote |= std::uint64_t{warp[i].value != 0} << i;
  }
  for (unsigned i = 0; i < 32; ++i) {
    if (!named(place.mask, i)) continue;
    warp[i].result = warp[i].source == kVote ? vote : warp[warp[i].source].value;
    wake(warp[i]);
  }
  yield();
  return self.result;
}

// A thread leaves the kernel: no lane may still wait for it.
inline void leave_warp(const Thread& self) {
  const unsigned lane = self.rank % 32;
  self.block->alive[self.rank / 32] &= ~(1u << lane);
  const auto rest = self.block->threads.subspan(self.rank - lane);
  for (const Thread& other : rest.first(std::min<std::size_t>(32, rest.size()))) {
    if ((other.place.mask >> lane & 1) == 0) continue;
    fail(text("leaves the kernel while ", name(other), " waits for it in ", name(other.place)));
  }
}

// The types for which CUDA has shuffles; a smaller integer would silently become an int there.
template <class T>
concept Shuffled =
    (std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8)) || std::same_as<T, __half> ||
    std::same_as<T, __half2> || std::same_as<T, __nv_bfloat16> || std::same_as<T, __nv_bfloat162>;

// `pick(lane, first, last)` gives the lane to read, for a lane in the segment [first, last].
template <Shuffled T, class Pick>
T shuffle(const Place& place, T value, int width, Pick pick) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail(text(name(place), ": width ", width, " is not a power of two up to 32"));
  }
  const unsigned lane = machine.current->rank % 32, size = static_cast<unsigned>(width);
  const unsigned first = lane / size * size;
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet(place, bits, pick(lane, first, first + size - 1));
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

}  // namespace simt

inline void __syncthreads(simt::Where where = simt::Where::current()) {
  simt::machine.current->block->barrier.wait("__syncthreads", where);
}

inline void __syncwarp(unsigned mask = simt::kFullMask,
                       simt::Where where = simt::Where::current()) {
  simt::meet({"__syncwarp", mask, where}, 0, simt::kVote);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              simt::Where where = simt::Where::current()) {
  return static_cast<unsigned>(
      simt::meet({"__ballot_sync", mask, where}, predicate != 0, simt::kVote));
}

inline int __any_sync(unsigned mask, int predicate, simt::Where where = simt::Where::current()) {
  return simt::meet({"__any_sync", mask, where}, predicate != 0, simt::kVote) != 0;
}

inline int __all_sync(unsigned mask, int predicate, simt::Where where = simt::Where::current()) {
  return simt::meet({"__all_sync", mask, where}, predicate != 0, simt::kVote) == mask;
}

template <simt::Shuffled T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              simt::Where where = simt::Where::current()) {
  return simt::shuffle({"__shfl_sync", mask, where}, value, width,
                       [&](unsigned, unsigned first, unsigned last) {
                         return first + (static_cast<unsigned>(source) & (last - first));
                       });
}

// In the three below a lane whose source lies outside its segment keeps its own value. The
// distance counts modulo 32, as in hardware.
template <simt::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 simt::Where where = simt::Where::current()) {
  return simt::shuffle({"__shfl_up_sync", mask, where}, value, width,
                       [&](unsigned lane, unsigned first, unsigned) {
                         return lane >= first + delta % 32 ? lane - delta % 32 : lane;
                       });
}

template <simt::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   simt::Where where = simt::Where::current()) {
  return simt::shuffle({"__shfl_down_sync", mask, where}, value, width,
                       [&](unsigned lane, unsigned, unsigned last) {
                         return lane + delta % 32 <= last ? lane + delta % 32 : lane;
                       });
}

template <simt::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  simt::Where where = simt::Where::current()) {
  return simt::shuffle({"__shfl_xor_sync", mask, where}, value, width,
                       [&](unsigned lane, unsigned, unsigned last) {
                         const unsigned other = lane ^ (static_cast<unsigned>(lanes) % 32);
                         return other <= last ? other : lane;  // an earlier segment is allowed
                       });
}
