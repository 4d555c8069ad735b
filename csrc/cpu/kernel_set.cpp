#include <cstdlib>
#include <stdexcept>
#include <string>

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

struct Candidate {
  const KernelSet& set;
  bool runs_here;
};

// The best that this processor runs, or the one that MARGIN_EXT_INSTRUCTION_SET names (baseline,
// avx2, avx512): tests and benchmarks of one set on a processor that has others.
const KernelSet& choose() {
  // Each test names what its object's -march flag lets the compiler use. The best comes first.
  const Candidate candidates[] = {
#if defined(MARGIN_HAVE_AVX512)
      {avx512::kKernelSet,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl")},
#endif
#if defined(MARGIN_HAVE_AVX2)
      {avx2::kKernelSet, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c")},
#endif
      {baseline::kKernelSet, true},
  };
  const char* variable = std::getenv("MARGIN_EXT_INSTRUCTION_SET");
  const std::string wanted = variable == nullptr ? "" : variable;
  std::string served;
  for (const Candidate& candidate : candidates) {
    if (!candidate.runs_here) continue;
    if (wanted.empty() || wanted == candidate.set.name) return candidate.set;
    served += (served.empty() ? "" : ", ") + std::string(candidate.set.name);
  }
  throw std::invalid_argument("MARGIN_EXT_INSTRUCTION_SET must be one of " + served +
                              " (built, and run by this processor), got " + wanted);
}

}  // namespace

const KernelSet& kernel_set() {
  static const KernelSet& chosen = choose();
  return chosen;
}

}  // namespace margin::cpu
