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

// The variable MARGIN_EXT_INSTRUCTION_SET (baseline, avx2 or avx512) lets tests and benchmarks
// choose a set on a processor that runs several.
const KernelSet& choose() {
  // Each condition names what the -march flag of that object lets the compiler use. Best first.
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
