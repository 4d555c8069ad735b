// The gap to the runner-up, or to a given class. It only reads.
#pragma once

#include "cuda/logits.h"

namespace margin::cuda {

struct CombineRunnersUp {
  template <typename Acc>
  MARGIN_DEVICE void operator()(RunnerUp<Acc>& state, const RunnerUp<Acc>& other) const {
    state.combine(other);
  }
};

template <typename Acc, typename Group>
__global__ void __launch_bounds__(Group::kThreads, kResidentBlocks<Group, Acc>)
    logit_gap_kernel(const __grid_constant__ LogitGapArguments arguments, unsigned cluster_size) {
  Group group(cluster_size);
  for (int64_t i = group.first_sample(); i < arguments.batch; i += group.sample_step()) {
    const Logits<Acc> logits(arguments.logits, i);
    const Label<Acc> label = logits.label();
    int64_t critical = label.critical;
    Acc critical_logit = critical < 0 ? not_a_number<Acc>() : logits.at(label.critical);
    if (arguments.logits.critical == nullptr) {
      RunnerUp<Acc> state;
      logits.template for_each<4>(group, [&](int k, Acc z) {
        if (k != label.target) state.add(z, k);
      });
      state = group.reduce(state, CombineRunnersUp());
      critical_logit = state.value;
      critical = state.index;
    }
    if (group.thread() != 0 || group.rank() != 0) continue;
    static_cast<Acc*>(arguments.gap)[i] = label.target_logit - critical_logit;
    arguments.runner_up[i] = label.target < 0 ? -1 : critical;
  }
}

}  // namespace margin::cuda
