// out = base + factor_i * v(grad_i), v the dual direction of the sample's row.
#pragma once

#include "cuda/group.h"
#include "cuda/row_pass.h"

namespace margin::cuda {

template <typename Acc>
struct DirectionTask {
  DirectionArguments arguments;
  bool plain;  // see RowPass
  Acc q;
};

template <typename T, Storage storage, typename Group>
__global__ void __launch_bounds__(Group::kThreads, kResidentBlocks<Group, T>)
    direction_kernel(const __grid_constant__ DirectionTask<AccOf<T>> task, unsigned cluster_size) {
  using Acc = AccOf<T>;
  SIMT_DYN_SHARED(unsigned char, shared);
  const DirectionArguments& arguments = task.arguments;
  const NormSwitch<storage, Acc> norm{arguments.norm.norm, task.q};
  Group group(cluster_size);
  for (int64_t i = group.first_sample(); i < arguments.batch; i += group.sample_step()) {
    const RowSlice<T> slice(
        static_cast<const T*>(arguments.grad.data) + i * arguments.grad.batch_stride,
        arguments.grad.size, group.rank(), group.ranks());
    const T* base = static_cast<const T*>(arguments.base);
    if (base != nullptr) base += i * arguments.base_stride;
    const RowOutputOnBase<T> output(static_cast<T*>(arguments.out) + i * arguments.out_stride, base,
                                    slice, arguments.grad.dtype);
    RowPass<T, storage> row(slice, arguments.grad, task.plain, norm, group.thread(),
                            group.threads(), shared);
    const NormState<Acc> state = group.reduce(row.read(output, true), norm);
    const Acc factor = static_cast<const Acc*>(arguments.factor)[i];
    row.write(norm.direction(state, norm.value(state), factor), output);
  }
}

}  // namespace margin::cuda
