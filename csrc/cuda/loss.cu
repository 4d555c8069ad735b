// average_margin_loss: from the op's arguments to the kernel's task, and its launch.
#include "cuda/launch.h"
#include "cuda/loss_kernel.h"

namespace margin::cuda {
namespace {

template <typename Acc>
cudaError_t make_loss_task(const LossArguments& arguments, void* partials, cudaStream_t stream,
                           LossTask<Acc>& task) {
  const bool sums_loss = arguments.loss != nullptr && arguments.reduction != Reduction::kNone;
  const bool wants_totals = sums_loss || arguments.statistics != nullptr;
  if (wants_totals && partials == nullptr) return cudaErrorInvalidValue;
  if (!channels_fit(arguments.grad.channels)) return cudaErrorInvalidValue;
  if (arguments.logits.classes > INT32_MAX) return cudaErrorInvalidValue;
  if (arguments.regularizer == RegularizerKind::kAdditive && arguments.grad.data == nullptr) {
    return cudaErrorInvalidValue;
  }
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
  task.totals = {wants_totals ? static_cast<BatchTotals*>(partials) : nullptr,
                 0,
                 arguments.reduction,
                 arguments.batch,
                 static_cast<Acc*>(arguments.statistics),
                 sums_loss ? static_cast<Acc*>(arguments.loss) : nullptr};
  return wants_totals ? next_ticket(stream, &task.totals.ticket) : cudaSuccess;
}

// An empty batch has totals too.
template <typename Acc>
bool has_work(const LossTask<Acc>& task) {
  return task.arguments.batch > 0 || task.totals.partials != nullptr;
}

template <typename T>
cudaError_t launch_loss(const LossArguments& arguments, void* partials,
                        const LaunchOptions& options, cudaStream_t stream) {
  using Task = LossTask<AccOf<T>>;
  static KernelMemory memory;
  Task task;
  const cudaError_t error = make_loss_task(arguments, partials, stream, task);
  if (error != cudaSuccess || !has_work(task)) return error;
  const auto kernels =
      kernels_of<Task>("average_margin_loss", memory, [](auto variant) -> Kernel<Task> {
        if constexpr (!has_kernel<T>(variant.value, RowUse::kReadWrite))
          return nullptr;
        else
          return loss_kernel<T, variant.value, RowUse::kReadWrite>;
      });
  const GradientRows& grad = arguments.grad;
  const bool aligned = arguments.grad_grad == nullptr ||
                       same_alignment(grad, arguments.grad_grad, arguments.grad_grad_stride);
  task.way = way_along<T>(grad, aligned);
  SampleShape shape = shape_of<T>(arguments.batch, grad, arguments.norm.norm);
  shape.classes = arguments.logits.classes;
  // Nothing is written, so nothing is kept.
  if (arguments.grad_grad == nullptr) shape.pack_bytes = 0;
  return launch_samples(kernels, task, shape, options, stream);
}

template <typename Acc>
cudaError_t launch_gap_loss(const LossArguments& arguments, void* partials,
                            const LaunchOptions& options, cudaStream_t stream) {
  using Task = LossTask<Acc>;
  static KernelMemory memory;
  Task task;
  const cudaError_t error = make_loss_task(arguments, partials, stream, task);
  if (error != cudaSuccess || !has_work(task)) return error;
  const auto kernels = kernels_of<Task>("average_margin_loss without grad", memory,
                                        [](auto variant) -> Kernel<Task> {
                                          if constexpr (runs_without_row(variant.value))
                                            return loss_kernel<Acc, variant.value, RowUse::kAbsent>;
                                          else
                                            return nullptr;
                                        });
  SampleShape shape;
  shape.batch = arguments.batch;
  shape.classes = arguments.logits.classes;
  return launch_samples(kernels, task, shape, options, stream);
}

}  // namespace

size_t average_margin_loss_partials(int64_t batch) {
  return static_cast<size_t>(std::clamp<int64_t>(batch, 1, Limits::kGroups)) * sizeof(BatchTotals);
}

cudaError_t average_margin_loss(const LossArguments& arguments, void* partials,
                                const LaunchOptions& options, cudaStream_t stream) {
  if (arguments.grad.data == nullptr) {
    return arguments.logits.dtype == Dtype::kFloat64
               ? launch_gap_loss<double>(arguments, partials, options, stream)
               : launch_gap_loss<float>(arguments, partials, options, stream);
  }
  return for_type(arguments.grad.dtype, [&](auto type) {
    return launch_loss<typename decltype(type)::type>(arguments, partials, options, stream);
  });
}

}  // namespace margin::cuda
