// The ops on CPU tensors, and the definition of the library's schemas.
#include <torch/csrc/stable/library.h>

#include "cpu/ops.h"
#include "cpu/row_kernels.h"
#include "torch/ops.h"

namespace {

using namespace margin;
using binding::check;

// Torch's threads, in the form that the kernels take.
cpu::Parallel torch_threads() {
  cpu::Parallel parallel;
  parallel.threads = torch::stable::get_num_threads();
  parallel.run = [](int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
                    void* context) {
    torch::stable::parallel_for(0, count, grain,
                                [&](int64_t begin, int64_t end) { body(begin, end, context); });
  };
  return parallel;
}

struct CpuBackend {
  explicit CpuBackend(const torch::stable::Tensor&) : threads(torch_threads()) {
    cpu::kernel_set();  // may throw, which it must not do in a thread
  }

  void check_labels(const LogitRows& rows, int64_t batch) const {
    for (int64_t i = 0; i < batch; ++i) {
      const int64_t label = rows.target[i];
      if (label == rows.ignore_index) continue;
      check(label >= 0 && label < rows.classes, "target must lie in 0..", rows.classes - 1,
            " or equal ignore_index = ", rows.ignore_index, ", got ", label, " at index ", i);
      if (rows.nearest == nullptr) continue;
      const int64_t nearest = rows.nearest[i];
      check(nearest >= 0 && nearest < rows.classes, "nearest must lie in 0..", rows.classes - 1,
            ", got ", nearest, " at index ", i);
      check(nearest != label, "nearest must differ from target in every sample, both are ", label,
            " at index ", i);
    }
  }

  void logit_gap(const LogitGapArguments& a) const { cpu::logit_gap(a, threads); }
  void first_order_margin(const MarginArguments& a) const { cpu::first_order_margin(a, threads); }
  void dual_direction(const DirectionArguments& a) const { cpu::dual_direction(a, threads); }
  void class_margins(const ClassMarginArguments& a) const { cpu::class_margins(a, threads); }
  void attack_step(const AttackArguments& a) const { cpu::attack_step(a, threads); }
  void average_margin_loss(const LossArguments& a) const { cpu::average_margin_loss(a, threads); }
  void scale(const ScaleArguments& a) const { cpu::scale(a, threads); }

  cpu::Parallel threads;
};

std::string build_info() {
  std::string built = "\"baseline\"";
#if defined(MARGIN_HAVE_AVX2)
  built += ", \"avx2\"";
#endif
#if defined(MARGIN_HAVE_AVX512)
  built += ", \"avx512\"";
#endif
  return std::string("{\"cpu_instruction_set\": \"") + cpu::kernel_set().name + "\", \"built\": [" +
         built + "], \"compiler\": \"" + __VERSION__ + "\", \"torch_target\": \"2.11\"}";
}

}  // namespace

STABLE_TORCH_LIBRARY(margin_ext, m) {
  for (const char* schema : binding::kSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(margin_ext, CPU, m) { MARGIN_REGISTER_OPS(m, CpuBackend); }

STABLE_TORCH_LIBRARY_IMPL(margin_ext, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
}
