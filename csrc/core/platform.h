// Lets the CPU kernels, nvcc and the CPU emulator of CUDA share one definition of each formula.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MARGIN_HD __host__ __device__ __forceinline__
// For long and slow formulas: they are called, not inlined, so that kernels stay small.
#define MARGIN_HD_CALL [[maybe_unused]] static __host__ __device__ __noinline__
// Before a template that calls a function object: only its caller knows whether that runs on the
// host or on the device.
#define MARGIN_NO_EXEC_CHECK _Pragma("nv_exec_check_disable")
#else
// Always inlined, because the CPU kernels are compiled once per instruction set: a formula that is
// emitted as a shared function would come from one of those objects and serve all of them.
#define MARGIN_HD inline __attribute__((always_inline))
#define MARGIN_HD_CALL MARGIN_HD
#define MARGIN_NO_EXEC_CHECK
#endif

namespace margin {

MARGIN_HD float absolute(float x) { return ::fabsf(x); }
MARGIN_HD double absolute(double x) { return ::fabs(x); }
MARGIN_HD float square_root(float x) { return ::sqrtf(x); }
MARGIN_HD double square_root(double x) { return ::sqrt(x); }
MARGIN_HD float exponential(float x) { return ::expf(x); }
MARGIN_HD double exponential(double x) { return ::exp(x); }
MARGIN_HD float logarithm(float x) { return ::logf(x); }
MARGIN_HD double logarithm(double x) { return ::log(x); }
MARGIN_HD float logarithm_1p(float x) { return ::log1pf(x); }
MARGIN_HD double logarithm_1p(double x) { return ::log1p(x); }
MARGIN_HD_CALL float power(float x, float y) { return ::powf(x, y); }
MARGIN_HD_CALL double power(double x, double y) { return ::pow(x, y); }

// The number type of a formula is called Acc (the accumulation dtype): float, double, or in the CPU
// kernels a vector of them (csrc/cpu/vector.h). Comparing vectors gives masks, so formulas use
// select() in place of ?: and if.
template <typename Acc>
MARGIN_HD auto is_nan(Acc x) {
  return x != x;
}

MARGIN_HD float select(bool condition, float a, float b) { return condition ? a : b; }
MARGIN_HD double select(bool condition, double a, double b) { return condition ? a : b; }

}  // namespace margin
