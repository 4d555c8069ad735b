// Launching the fused loss: from the op's arguments to the kernel's task.
#pragma once

#include "cuda/launch.h"
#include "cuda/launchers.h"
#include "cuda/loss_kernel.h"

namespace margin::cuda {

template <typename Acc>
cudaError_t make_loss_task(const LossArguments& arguments, void* partials, cudaStream_t stream,
                           LossTask<Acc>& task) {
  const bool sums_loss = arguments.loss != nullptr && arguments.reduction != Reduction::kNone;
  const bool wants_totals = sums_loss || arguments.statistics != nullptr;
  if (wants_totals && partials == nullptr) return cudaErrorInvalidValue;
  task.arguments = arguments;
  task.options.regularizer = {arguments.regularizer, static_cast<Acc>(arguments.lo),
                              static_cast<Acc>(arguments.hi)};
  task.options.mu = static_cast<Acc>(arguments.mu);
  task.options.eps = static_cast<Acc>(arguments.eps);
  task.options.label_smoothing = static_cast<Acc>(arguments.label_smoothing);
  task.options.class_weight_sum = static_cast<Acc>(arguments.logits.classes);
  task.options.classes = arguments.logits.classes;
  task.options.first_order = arguments.grad.data != nullptr;
  task.q = static_cast<Acc>(arguments.norm.q);
  task.scale =
      arguments.reduction == Reduction::kMean ? Acc(1) / static_cast<Acc>(arguments.batch) : Acc(1);
  task.partials = wants_totals ? static_cast<BatchTotals*>(partials) : nullptr;
  task.ticket = 0;
  return wants_totals ? next_ticket(stream, &task.ticket) : cudaSuccess;
}

// An empty batch has totals all the same.
template <typename Acc>
bool has_work(const LossTask<Acc>& task) {
  return task.arguments.batch > 0 || task.partials != nullptr;
}

template <typename T, Norm norm>
KernelSet<LossTask<AccOf<T>>> loss_kernels() {
  static ClusterMemory memory;
  KernelSet<LossTask<AccOf<T>>> kernels{"average_margin_loss", nullptr, nullptr, nullptr, memory};
  if constexpr (kHasWarp<T, norm>) {
    kernels.warp = loss_kernel<T, norm, Keeping::kRegisters, WarpGroup>;
  }
  kernels.block = loss_kernel<T, norm, kBlockKeeping<norm>, BlockGroup>;
  if constexpr (kHasReread<norm>) {
    kernels.reread = loss_kernel<T, norm, Keeping::kReread, BlockGroup>;
  }
  return kernels;
}

template <typename T, Norm norm>
cudaError_t launch_loss_for(const LossTask<AccOf<T>>& task, const LaunchOptions& options,
                            cudaStream_t stream) {
  SampleShape shape;
  shape.batch = task.arguments.batch;
  shape.row_bytes = task.arguments.grad.size * static_cast<int64_t>(sizeof(T));
  shape.classes = task.arguments.logits.classes;
  shape.pack_bytes = kept_bytes<T>(kBlockKeeping<norm>);
  return launch_samples(loss_kernels<T, norm>(), task, shape, options, stream);
}

template <typename T>
cudaError_t launch_loss(const LossArguments& arguments, void* partials,
                        const LaunchOptions& options, cudaStream_t stream) {
  LossTask<AccOf<T>> task;
  const cudaError_t error = make_loss_task(arguments, partials, stream, task);
  if (error != cudaSuccess || !has_work(task)) return error;
  switch (arguments.norm.norm) {
    case Norm::kOne:
      return launch_loss_for<T, Norm::kOne>(task, options, stream);
    case Norm::kTwo:
      return launch_loss_for<T, Norm::kTwo>(task, options, stream);
    case Norm::kMax:
      return launch_loss_for<T, Norm::kMax>(task, options, stream);
    default:
      return launch_loss_for<T, Norm::kGeneral>(task, options, stream);
  }
}

template <typename Acc>
cudaError_t launch_gap_loss(const LossArguments& arguments, void* partials,
                            const LaunchOptions& options, cudaStream_t stream) {
  static ClusterMemory memory;
  LossTask<Acc> task;
  const cudaError_t error = make_loss_task(arguments, partials, stream, task);
  if (error != cudaSuccess || !has_work(task)) return error;
  const KernelSet<LossTask<Acc>> kernels{
      "average_margin_loss without grad", loss_kernel<Acc, Norm::kTwo, Keeping::kAbsent, WarpGroup>,
      loss_kernel<Acc, Norm::kTwo, Keeping::kAbsent, BlockGroup>, nullptr, memory};
  SampleShape shape;
  shape.batch = arguments.batch;
  shape.classes = arguments.logits.classes;
  return launch_samples(kernels, task, shape, options, stream);
}

}  // namespace margin::cuda
