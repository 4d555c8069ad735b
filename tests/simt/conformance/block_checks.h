// Indices, arguments, barriers, shared memory, atomics, cached accesses and half types.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "conformance/check.h"

namespace conformance {

__device__ inline unsigned linear(dim3 size, uint3 at) {
  return at.x + size.x * (at.y + size.y * at.z);
}

// Every thread of a three-dimensional grid of three-dimensional blocks, once, in 32-lane warps
// along x first; arguments converted to the types of the parameters and copied for each thread.
struct Parcel {
  int* seen;
  int added;
};
__global__ inline void visit(Parcel parcel, long long more, double factor) {
  const unsigned thread = linear(blockDim, threadIdx);
  const unsigned at = linear(gridDim, blockIdx) * blockDim.x * blockDim.y * blockDim.z + thread;
  parcel.added += static_cast<int>(more * factor);  // its own copy
  atomicAdd(parcel.seen + at, parcel.added);
  if (__shfl_sync(0xffffffffu, thread, 0) != thread / 32 * 32) atomicAdd(parcel.seen + at, 100);
}

inline void check_indices() {
  const dim3 grid(3, 2, 2), block(4, 2, 8);
  std::vector<int> seen(3 * 2 * 2 * 64, 0);
  simt::launch(visit, simt::Config{grid, block}, Parcel{seen.data(), 1}, 4, 0.5f);
  expect(std::ranges::count(seen, 3) == static_cast<int>(seen.size()), "indices and arguments");
}

// A pipeline over a ring of all threads: right only if every barrier holds back every thread.
__global__ inline void ring(int* out) {
  SIMT_DYN_SHARED(int, values);  // [2, threads]
  const unsigned threads = blockDim.x * blockDim.y, self = linear(blockDim, threadIdx);
  values[self] = static_cast<int>(self);
  for (unsigned round = 0; round < 9; ++round) {
    __syncthreads();
    const int* from = values + round % 2 * threads;
    values[(round + 1) % 2 * threads + self] = from[(self + 1) % threads] + 1;
  }
  out[blockIdx.x * threads + self] = values[threads + self];
}

inline void check_barriers() {
  for (const unsigned height : {1u, 3u, 32u}) {
    const unsigned threads = 32 * height;
    std::vector<int> out(5 * threads);
    simt::launch(ring, simt::Config{dim3(5), dim3(32, height), 2 * threads * sizeof(int)},
                 out.data());
    for (unsigned i = 0; i < out.size(); ++i) {
      expect(out[i] == static_cast<int>((i + 9) % threads) + 9, "barriers of a block");
    }
  }
}

// Whether shared memory is one per block, one per declaration and template instance, fresh with
// poison in every block, and aligned as promised but no better.
template <int instance>
__device__ char* own_array() {
  SIMT_SHARED(char, bytes, 5);
  return bytes;
}
__global__ inline void layout(int* wrong, unsigned poison) {
  SIMT_SHARED(double, numbers, 3);
  SIMT_SHARED(float, floats, 4);
  SIMT_SHARED(float4, vectors, 2);
  SIMT_DYN_SHARED(unsigned char, dynamic);
  const auto misaligned = [](const void* address, std::uintptr_t by) {
    return reinterpret_cast<std::uintptr_t>(address) % by != 0;
  };
  const auto* fresh = reinterpret_cast<const unsigned char*>(numbers);
  if (own_array<1>() == own_array<2>() || own_array<1>() != own_array<1>()) *wrong |= 1;
  if (misaligned(numbers, 8) || misaligned(vectors, 16) || misaligned(dynamic, 16)) *wrong |= 2;
  if (!misaligned(floats, 16) || !misaligned(dynamic, 32)) *wrong |= 4;
  if (fresh[0] != poison || fresh[23] != poison || dynamic[99] != poison) *wrong |= 8;
  __syncthreads();
  if (threadIdx.x == 0) numbers[0] = blockIdx.x, dynamic[0] = dynamic[99] = 1;
  __syncthreads();
  __threadfence();
  if (numbers[0] != blockIdx.x) *wrong |= 16;
}

inline void check_shared_memory() {
  int wrong = 0;
  simt::launch(layout, simt::Config{dim3(6), dim3(32), 100}, &wrong, simt::settings().poison);
  expect(wrong == 0, simt::text("layout of shared memory: ", wrong));
}

struct Counters {
  unsigned sum, tickets, least, most, swaps;
  int signed_sum;
  unsigned long long wide;
};
__global__ inline void count(Counters* c, unsigned* ticket_of) {
  const unsigned self = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&c->sum, 3u);
  atomicAdd(&c->signed_sum, -2);
  atomicAdd(&c->wide, 1ull << 33);
  atomicMin(&c->least, self + 7);
  atomicMax(&c->most, self);
  ticket_of[self] = atomicInc(&c->tickets, 99);
  for (unsigned old = c->swaps;;) {
    const unsigned seen = atomicCAS(&c->swaps, old, old + 1);
    if (seen == old) break;
    old = seen;
  }
}

inline void check_atomics() {
  Counters c{};
  c.least = 1000;
  std::vector<unsigned> tickets(300);
  simt::launch(count, simt::Config{dim3(5), dim3(60)}, &c, tickets.data());
  expect(c.sum == 900 && c.signed_sum == -600 && c.wide == 300ull << 33, "atomicAdd");
  expect(c.least == 7 && c.most == 299, "atomicMin, atomicMax");
  expect(c.swaps == 300, "atomicCAS");
  std::ranges::sort(tickets);
  bool in_order = c.tickets == 0;
  for (unsigned i = 0; i < 300; ++i) in_order &= tickets[i] == i / 3;
  expect(in_order, "atomicInc wraps round");
  unsigned value = 5;
  simt::launch(
      +[](unsigned* v) { *v = atomicExch(v, 8u) + *v; }, simt::Config{dim3(1), dim3(1)}, &value);
  expect(value == 13, "atomicExch");
}

__global__ inline void halves(const __half2* in, __nv_bfloat16* out, float4* copy) {
  const __half2 pair = __ldg(in);
  const float sum = __half2float(__low2half(pair)) + __half2float(__high2half(pair));
  out[0] = __float2bfloat16(sum);
  __stcs(out + 1, __float2bfloat16_rn(1.0f + 1.0f / 512));
  __stcg(copy, __ldcs(copy + 1));
  copy[1].x =
      max(copy[0].x, NAN) + min(1, 2u) + rsqrtf(4.0f) + __int_as_float(__float_as_int(2.0f));
}

inline void check_types() {
  static_assert(sizeof(__half) == 2 && alignof(float4) == 16 && sizeof(uint2) == 8);
  const __half2 in = __floats2half2_rn(1.5f, 65504.0f);
  std::array<__nv_bfloat16, 2> out;
  std::array<float4, 2> copy{make_float4(0, 0, 0, 0), make_float4(3, 4, 5, 6)};
  simt::launch(halves, simt::Config{dim3(1), dim3(1)}, &in, out.data(), copy.data());
  expect(__bfloat162float(out[0]) == 65536.0f && __bfloat162float(out[1]) == 1.0f, "half types");
  expect(copy[0].y == 4.0f && copy[1].x == 3.0f + 1.0f + 0.5f + 2.0f, "built-in functions");
}

// An asynchronous copy arrives when its thread waits, and not before: a kernel that does not wait
// reads what fresh shared memory holds, and so does a thread that reads what another has not waited
// for.
template <bool kWaits, bool kOfOthers>
__global__ void copies(const uint4* from, unsigned* out) {
  SIMT_DYN_SHARED(uint4, stage);
  const unsigned thread = threadIdx.x;
  simt::copy_async(stage + thread, from + thread);
  if (kWaits) simt::wait_for_copies();
  out[thread] = stage[kOfOthers ? (thread + 1) % blockDim.x : thread].x;
  if (!kWaits) simt::wait_for_copies();
}

inline void check_copies() {
  constexpr unsigned kThreads = 64;
  std::vector<uint4> from(kThreads);
  for (unsigned i = 0; i < kThreads; ++i) from[i] = uint4{i + 1, 0, 0, 0};
  std::vector<unsigned> out(kThreads);
  const auto arrived = [&](void (*kernel)(const uint4*, unsigned*)) {
    const simt::Config config{dim3(1), dim3(kThreads), kThreads * sizeof(uint4)};
    simt::launch(kernel, config, from.data(), out.data());
    unsigned right = 0;
    for (unsigned i = 0; i < kThreads; ++i) right += out[i] == i + 1;
    return right;
  };
  expect(arrived(copies<true, false>) == kThreads, "asynchronous copies");
  expect(arrived(copies<false, false>) == 0, "a copy that nobody waited for");
  arrived(copies<true, true>);
  unsigned neighbours = 0;
  for (unsigned i = 0; i < kThreads; ++i) neighbours += out[i] == (i + 1) % kThreads + 1;
  expect(neighbours < kThreads, "a copy that only its own thread waited for");
}

inline void check_blocks() {
  check_copies();
  check_indices();
  check_barriers();
  check_shared_memory();
  check_atomics();
  check_types();
}

}  // namespace conformance
