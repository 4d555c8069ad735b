#include "cpu/row_kernels.h"

namespace margin::cpu {

namespace baseline {
extern const KernelSet kKernelSet;
}
#if defined(MARGIN_HAVE_AVX2)
namespace avx2 {
extern const KernelSet kKernelSet;
}
#endif
#if defined(MARGIN_HAVE_AVX512)
namespace avx512 {
extern const KernelSet kKernelSet;
}
#endif

namespace {

// Each test names what its object's -march flag lets the compiler use.
const KernelSet& choose() {
#if defined(MARGIN_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return avx512::kKernelSet;
  }
#endif
#if defined(MARGIN_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c")) {
    return avx2::kKernelSet;
  }
#endif
  return baseline::kKernelSet;
}

}  // namespace

const KernelSet& kernel_set() {
  static const KernelSet& chosen = choose();
  return chosen;
}

}  // namespace margin::cpu
