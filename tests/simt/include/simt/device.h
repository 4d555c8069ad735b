// Device built-ins other than warp operations: fences, atomics, cached loads and stores, bit casts
// and intrinsics. Only what fused row kernels use; anything else does not compile, which is the way
// to notice it.
#pragma once

#include <math.h>

#include <bit>
#include <cmath>
#include <type_traits>

#include "simt/machine.h"

// Fences order memory, and here memory is ordered already; what is left of them is that another
// block may run in between.
inline void __threadfence_block() {}
inline void __threadfence() { simt::preempt(); }
inline void __threadfence_system() { simt::preempt(); }
[[noreturn]] inline void __trap() { simt::fail("__trap()"); }

namespace [[gnu::visibility("hidden")]] simt {

// No floating point: sums in the order of arrival would not repeat bit for bit.
template <class T>
concept Atomic =
    std::same_as<T, int> || std::same_as<T, unsigned> || std::same_as<T, unsigned long long>;

template <class T>
T* aligned(T* address) {
  if (std::bit_cast<std::uintptr_t>(address) % alignof(T) != 0) {
    fail(text("an access of ", sizeof(T), " bytes at an address that is not a multiple of ",
              alignof(T)));
  }
  return address;
}

// One OS thread runs all fibers, so a read and a write without a switch between them are atomic.
template <Atomic T, class Update>
T exchange(T* address, Update update) {
  preempt();
  const T old = *aligned(address);
  *address = static_cast<T>(update(old));
  preempt();
  return old;
}

}  // namespace simt

template <simt::Atomic T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return simt::exchange(address, [&](T old) {  // wraps round, as in hardware
    return std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(value);
  });
}
template <simt::Atomic T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return simt::exchange(address, [&](T old) { return old < value ? old : value; });
}
template <simt::Atomic T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return simt::exchange(address, [&](T old) { return old > value ? old : value; });
}
template <simt::Atomic T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return simt::exchange(address, [&](T) { return value; });
}
template <simt::Atomic T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return simt::exchange(address, [&](T old) { return old == compare ? value : old; });
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return simt::exchange(address, [&](unsigned old) { return old >= limit ? 0u : old + 1u; });
}

// Cache hints change no result. What they do need is an aligned address.
template <class T>
T __ldg(const T* address) {
  return *simt::aligned(address);
}
template <class T>
T __ldca(const T* address) {
  return *simt::aligned(address);
}
template <class T>
T __ldcs(const T* address) {
  return *simt::aligned(address);
}
template <class T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *simt::aligned(address) = value;
}

// Past the first-level cache: how blocks read each other's results, hence a point to interleave.
template <class T>
T __ldcg(const T* address) {
  simt::preempt();
  return *simt::aligned(address);
}
template <class T>
void __stcg(T* address, std::type_identity_t<T> value) {
  simt::preempt();
  *simt::aligned(address) = value;
}

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// Approximate on the device, exact here: a test must allow for the difference.
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __saturatef(float x) { return x > 0.0f ? std::fmin(x, 1.0f) : 0.0f; }

// The device's min and max drop a NaN, as fmin and fmax do; those of the standard library do not.
template <class A, class B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  const T x = static_cast<T>(a), y = static_cast<T>(b);
  return x < y || y != y ? x : y;
}
template <class A, class B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  const T x = static_cast<T>(a), y = static_cast<T>(b);
  return x > y || y != y ? x : y;
}
