// logit_gap: the gap to the runner-up, or to a given class.
#include "cuda/launch.h"
#include "cuda/logits.h"

namespace margin::cuda {
namespace {

template <typename Acc, Variant variant>
__global__ void __launch_bounds__(GroupOf<variant>::kThreads,
                                  kResidentBlocks<GroupOf<variant>, Acc>)
    logit_gap_kernel(const __grid_constant__ LogitGapArguments arguments,
                     const __grid_constant__ LaunchShape shape) {
  GroupOf<variant> group(shape);
  for (int64_t i = group.first_sample(); i < arguments.batch; i += group.sample_step()) {
    Logits<Acc> logits(arguments.logits, i);
    const int first = opaque(static_cast<int>(group.threads() * group.rank() + group.thread()));
    const int step = opaque(static_cast<int>(group.threads() * group.ranks()));
    logits.start(first, step);
    const Label<Acc> label = logits.label();
    int nearest = label.nearest;
    Acc nearest_logit = nearest < 0 ? not_a_number<Acc>() : logits.at(nearest);
    if (arguments.logits.nearest == nullptr) {
      LogitState<Acc> state;
      logits.for_each(first, step, [&](int k, Acc z) { state.add(z, k, k == label.target); });
      state = group.gather(state, [&](const LogitState<Acc>& s) {
        return logits_of_warp(s, label.target_logit, false);
      });
      nearest_logit = state.runner_up;
      nearest = state.runner_up_class;
    }
    if (group.thread() != 0 || group.rank() != 0) continue;
    static_cast<Acc*>(arguments.gap)[i] = label.target_logit - nearest_logit;
    arguments.runner_up[i] = label.target < 0 ? -1 : nearest;
  }
}

template <typename Acc>
cudaError_t launch_logit_gap(const LogitGapArguments& arguments, const LaunchOptions& options,
                             cudaStream_t stream) {
  static KernelMemory memory;
  if (arguments.batch == 0) return cudaSuccess;
  if (arguments.logits.classes > INT32_MAX) return cudaErrorInvalidValue;
  using Task = LogitGapArguments;
  const auto kernels = kernels_of<Task>("logit_gap", memory, [](auto variant) -> Kernel<Task> {
    if constexpr (runs_without_row(variant.value))
      return logit_gap_kernel<Acc, variant.value>;
    else
      return nullptr;
  });
  SampleShape shape;
  shape.batch = arguments.batch;
  shape.classes = arguments.logits.classes;
  return launch_samples(kernels, arguments, shape, options, stream);
}

}  // namespace

cudaError_t logit_gap(const LogitGapArguments& arguments, const LaunchOptions& options,
                      cudaStream_t stream) {
  return arguments.logits.dtype == Dtype::kFloat64
             ? launch_logit_gap<double>(arguments, options, stream)
             : launch_logit_gap<float>(arguments, options, stream);
}

}  // namespace margin::cuda
