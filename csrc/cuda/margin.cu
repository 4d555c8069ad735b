// first_order_margin: the margins of given gaps and input gradients. It only reads rows and keeps
// nothing of them, so a warp or a block serves every norm, and a block serves rows of any size.
#include "core/sample_loss.h"
#include "cuda/group.h"
#include "cuda/launch.h"
#include "cuda/row_pass.h"

namespace margin::cuda {
namespace {

template <typename Acc>
struct MarginTask {
  MarginArguments arguments;
  RowWay way;
  Acc q;
  Acc eps;
};

template <typename T, Variant variant>
__global__ void __launch_bounds__(GroupOf<variant>::kThreads, kResidentBlocks<GroupOf<variant>, T>)
    margin_kernel(const __grid_constant__ MarginTask<AccOf<T>> task,
                  const __grid_constant__ LaunchShape shape) {
  using Acc = AccOf<T>;
  const MarginArguments& arguments = task.arguments;
  const ServedNorm<variant, RowUse::kRead, Acc> norm{arguments.norm.norm, task.q};
  GroupOf<variant> group(shape);
  for (int64_t i = group.first_sample(); i < arguments.batch; i += group.sample_step()) {
    const RowSlice<T> slice(
        static_cast<const T*>(arguments.grad.data) + i * arguments.grad.batch_stride,
        arguments.grad.size, group.rank(), group.ranks());
    RowPass<T, variant, RowUse::kRead> row(slice, arguments.grad, task.way, norm, group.thread(),
                                           group.threads(), nullptr, 0);
    const RowOutput<T> nowhere(nullptr, slice);
    NormState<Acc> state = norm_of_group(norm, row.read(nowhere, false), group);
    if (const Acc again = norm.second_pass(state); again != Acc(1)) {  // for all threads alike
      state = row.read_again(again, nowhere, group);
    }
    if (group.thread() != 0 || group.rank() != 0) continue;
    const Acc value = norm.value(state);
    const Acc gap = static_cast<const Acc*>(arguments.gap)[i];
    static_cast<Acc*>(arguments.norm_out)[i] = value;
    static_cast<Acc*>(arguments.margin)[i] = margin::first_order_margin(gap, value, task.eps).value;
  }
}

template <typename T>
cudaError_t launch_margin(const MarginArguments& arguments, const LaunchOptions& options,
                          cudaStream_t stream) {
  using Task = MarginTask<AccOf<T>>;
  static KernelMemory memory;
  if (arguments.batch == 0) return cudaSuccess;
  if (!channels_fit(arguments.grad.channels)) return cudaErrorInvalidValue;
  const auto kernels =
      kernels_of<Task>("first_order_margin", memory, [](auto variant) -> Kernel<Task> {
        if constexpr (!has_kernel<T>(variant.value, RowUse::kRead))
          return nullptr;
        else
          return margin_kernel<T, variant.value>;
      });
  SampleShape shape;
  shape.batch = arguments.batch;
  shape.element_bytes = sizeof(T);
  shape.row_bytes = arguments.grad.size * static_cast<int64_t>(sizeof(T));
  const Task task{arguments, way_along<T>(arguments.grad, true),
                  static_cast<AccOf<T>>(arguments.norm.q), static_cast<AccOf<T>>(arguments.eps)};
  return launch_samples(kernels, task, shape, options, stream);
}

}  // namespace

cudaError_t first_order_margin(const MarginArguments& arguments, const LaunchOptions& options,
                               cudaStream_t stream) {
  return for_type(arguments.grad.dtype, [&](auto type) {
    return launch_margin<typename decltype(type)::type>(arguments, options, stream);
  });
}

}  // namespace margin::cuda
