// The first-order margin of given gaps and input gradients. It only reads.
#pragma once

#include "core/sample_loss.h"
#include "cuda/group.h"
#include "cuda/row_pass.h"

namespace margin::cuda {

template <typename Acc>
struct MarginTask {
  MarginArguments arguments;
  bool plain;  // see RowPass
  Acc q;
  Acc eps;
};

template <typename T, typename Group>
__global__ void __launch_bounds__(Group::kThreads, kResidentBlocks<Group, T>)
    margin_kernel(const __grid_constant__ MarginTask<AccOf<T>> task, unsigned cluster_size) {
  using Acc = AccOf<T>;
  const MarginArguments& arguments = task.arguments;
  const NormSwitch<Storage::kNothing, Acc> norm{arguments.norm.norm, task.q};
  Group group(cluster_size);
  for (int64_t i = group.first_sample(); i < arguments.batch; i += group.sample_step()) {
    const RowSlice<T> slice(
        static_cast<const T*>(arguments.grad.data) + i * arguments.grad.batch_stride,
        arguments.grad.size, group.rank(), group.ranks());
    RowPass<T, Storage::kNothing> row(slice, arguments.grad, task.plain, norm, group.thread(),
                                      group.threads(), nullptr);
    const NormState<Acc> state =
        group.reduce(row.read(RowOutput<T>(nullptr, slice, arguments.grad.dtype), false), norm);
    if (group.thread() != 0 || group.rank() != 0) continue;
    const Acc value = norm.value(state);
    const Acc gap = static_cast<const Acc*>(arguments.gap)[i];
    static_cast<Acc*>(arguments.norm_out)[i] = value;
    static_cast<Acc*>(arguments.margin)[i] = margin::first_order_margin(gap, value, task.eps).value;
  }
}

}  // namespace margin::cuda
