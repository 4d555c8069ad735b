// Shuffles of every type, width and distance; votes; masks of part of a warp.
#pragma once

#include <array>
#include <vector>

#include "conformance/check.h"

namespace conformance {

inline constexpr unsigned kFull = 0xffffffffu;

enum Shuffle { kFrom, kUp, kDown, kXor };

inline constexpr int kDistances[] = {0, 1, 2, 3, 7, 8, 16, 31};
inline constexpr int kTrials = static_cast<int>(std::size(kDistances));

template <class T>
__global__ void shuffle(T* values, Shuffle kind, int width) {  // [kTrials, 64]
  for (int trial = 0; trial < kTrials; ++trial) {
    T& value = values[trial * 64 + static_cast<int>(threadIdx.x)];
    const int distance = kDistances[trial];
    const unsigned delta = static_cast<unsigned>(distance);
    if (kind == kFrom) value = __shfl_sync(kFull, value, distance, width);
    if (kind == kUp) value = __shfl_up_sync(kFull, value, delta, width);
    if (kind == kDown) value = __shfl_down_sync(kFull, value, delta, width);
    if (kind == kXor) value = __shfl_xor_sync(kFull, value, distance, width);
  }
}

// The lane that `lane` reads according to the programming guide.
inline int shuffle_source(Shuffle kind, int lane, int distance, int width) {
  const int segment = lane / width, place = lane % width;
  if (kind == kFrom) return segment * width + distance % width;
  if (kind == kUp) return place < distance ? lane : lane - distance;
  if (kind == kDown) return place + distance >= width ? lane : lane + distance;
  return (lane ^ distance) / width > segment ? lane : lane ^ distance;
}

template <class T>
void check_shuffle(const char* type, Shuffle kind, int width) {
  std::vector<T> values(kTrials * 64);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = T(static_cast<float>(i % 64));
  simt::launch(shuffle<T>, simt::Config{dim3(1), dim3(64)}, values.data(), kind, width);
  for (int i = 0; i < kTrials * 64; ++i) {
    const int lane = i % 32, distance = kDistances[i / 64];
    const int source = i % 64 - lane + shuffle_source(kind, lane, distance, width);
    const double got = static_cast<float>(values[static_cast<std::size_t>(i)]);
    if (got == source) continue;
    expect(false, simt::text("shuffle ", kind, " of ", type, ", width ", width, ", distance ",
                             distance, ": lane ", lane, " got ", got));
  }
}

template <class T>
void check_shuffles(const char* type, std::initializer_list<int> widths = {8, 32}) {
  for (const int width : widths) {
    for (const Shuffle kind : {kFrom, kUp, kDown, kXor}) check_shuffle<T>(type, kind, width);
  }
}

// Bits that a conversion would lose.
template <class T>
__global__ void reverse(T* values) {
  values[threadIdx.x] = __shfl_sync(kFull, values[threadIdx.x], 31 - static_cast<int>(threadIdx.x));
}

inline void check_wide_shuffles() {
  std::array<unsigned long long, 32> bits;
  for (unsigned i = 0; i < 32; ++i) bits[i] = 0x0123456789abcdefull * (i + 1);
  simt::launch(reverse<unsigned long long>, simt::Config{dim3(1), dim3(32)}, bits.data());
  for (unsigned i = 0; i < 32; ++i) {
    expect(bits[i] == 0x0123456789abcdefull * (32 - i), "shuffle keeps all 64 bits");
  }
}

__global__ inline void vote(unsigned* out) {
  const unsigned i = threadIdx.x;
  out[i] = __ballot_sync(kFull, i % 3 == 0);
  out[32 + i] = static_cast<unsigned>(__any_sync(kFull, i == 31)) +
                2 * static_cast<unsigned>(__any_sync(kFull, i == 32)) +
                4 * static_cast<unsigned>(__all_sync(kFull, i < 32)) +
                8 * static_cast<unsigned>(__all_sync(kFull, i != 5));
}

inline void check_votes() {
  std::array<unsigned, 64> out{};
  simt::launch(vote, simt::Config{dim3(1), dim3(32)}, out.data());
  for (unsigned i = 0; i < 32; ++i) {
    expect(out[i] == 0x49249249u, "ballot");
    expect(out[32 + i] == 1 + 4, "any and all");
  }
}

// Groups of eight lanes go their own ways, each with its own mask, operations and number of rounds;
// then the warp meets again.
__global__ inline void groups(unsigned* out) {
  const unsigned lane = threadIdx.x % 32, group = lane / 8, mask = 0xffu << group * 8;
  unsigned value = lane;
  if (group % 2 == 0) {
    for (unsigned round = 0; round < 2 + group; ++round) {
      value += __shfl_xor_sync(mask, value, 1) + __shfl_xor_sync(mask, value, 4, 8);
    }
  } else {
    for (unsigned round = 0; round < 3 * group; ++round) {
      value += __ballot_sync(mask, (lane + round) % 2 == 0) >> group * 8;
      __syncwarp(mask);
    }
  }
  __syncwarp();
  out[threadIdx.x] = value + __shfl_sync(kFull, lane, 9);
}

inline void check_groups() {
  std::array<unsigned, 64> out{};
  simt::launch(groups, simt::Config{dim3(1), dim3(64)}, out.data());
  for (unsigned g = 0; g < 4; ++g) {
    std::array<unsigned, 8> value;
    for (unsigned i = 0; i < 8; ++i) value[i] = g * 8 + i;
    for (unsigned round = 0; g % 2 == 0 && round < 2 + g; ++round) {
      const auto old = value;
      for (unsigned i = 0; i < 8; ++i) value[i] += old[i ^ 1] + old[i ^ 4];
    }
    for (unsigned round = 0; g % 2 == 1 && round < 3 * g; ++round) {
      for (unsigned& v : value) v += round % 2 == 0 ? 0x55 : 0xaa;
    }
    for (unsigned i = 0; i < 8; ++i) {
      expect(out[g * 8 + i] == value[i] + 9, "masks of eight lanes");
      expect(out[32 + g * 8 + i] == value[i] + 9, "masks of eight lanes, second warp");
    }
  }
}

// A block of 48 threads: the second warp has 16 lanes, and names no others.
__global__ inline void half_warp(int* out) {
  const unsigned mask = threadIdx.x < 32 ? kFull : 0xffffu;
  int sum = static_cast<int>(threadIdx.x);
  for (int d = 8; d > 0; d /= 2) sum += __shfl_xor_sync(mask, sum, d);
  out[threadIdx.x] = sum;
}

inline void check_half_warp() {
  std::array<int, 48> out{};
  simt::launch(half_warp, simt::Config{dim3(1), dim3(48)}, out.data());
  expect(out[0] == 120 && out[16] == 376 && out[47] == 632, "a warp of 16 lanes");
}

// Lane 0 writes between two meetings, the others read: __syncwarp orders them in every schedule.
__global__ inline void lanes_in_turn(int* out) {
  SIMT_SHARED(int, box, 1);
  int sum = 0;
  for (int turn = 0; turn < 32; ++turn) {
    if (static_cast<int>(threadIdx.x) == turn) box[0] = turn;
    __syncwarp();
    sum += box[0];
    __syncwarp();
  }
  out[threadIdx.x] = sum;
}

inline void check_lanes_in_turn() {
  std::array<int, 32> out{};
  simt::launch(lanes_in_turn, simt::Config{dim3(1), dim3(32)}, out.data());
  for (const int sum : out) expect(sum == 31 * 32 / 2, "__syncwarp orders the lanes");
}

inline void check_warps() {
  check_shuffles<float>("float", {1, 2, 4, 8, 16, 32});
  check_shuffles<double>("double");
  check_shuffles<int>("int");
  check_shuffles<unsigned>("unsigned");
  check_shuffles<long long>("long long");
  check_shuffles<unsigned long long>("unsigned long long");
  check_shuffles<__half>("half");
  check_shuffles<__nv_bfloat16>("bfloat16");
  check_wide_shuffles();
  check_votes();
  check_groups();
  check_half_warp();
  check_lanes_in_turn();
}

}  // namespace conformance
