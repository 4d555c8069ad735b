// dual_direction: out = base + factor_i * v(grad_i), where v is the dual direction of the row.
#include "cuda/group.h"
#include "cuda/launch.h"
#include "cuda/row_pass.h"

namespace margin::cuda {
namespace {

template <typename Acc>
struct DirectionTask {
  DirectionArguments arguments;
  RowWay way;
  Acc q;
};

template <typename T, Variant variant>
__global__ void __launch_bounds__(GroupOf<variant>::kThreads, kResidentBlocks<GroupOf<variant>, T>)
    direction_kernel(const __grid_constant__ DirectionTask<AccOf<T>> task,
                     const __grid_constant__ LaunchShape shape) {
  using Acc = AccOf<T>;
  SIMT_DYN_SHARED(unsigned char, shared);
  const DirectionArguments& arguments = task.arguments;
  const ServedNorm<variant, RowUse::kReadWrite, Acc> norm{arguments.norm.norm, task.q};
  GroupOf<variant> group(shape);
  for (int64_t i = group.first_sample(); i < arguments.batch; i += group.sample_step()) {
    const RowSlice<T> slice(
        static_cast<const T*>(arguments.grad.data) + i * arguments.grad.batch_stride,
        arguments.grad.size, group.rank(), group.ranks());
    const T* base = static_cast<const T*>(arguments.base);
    if (base != nullptr) base += i * arguments.base_stride;
    const RowOutputOnBase<T> output(static_cast<T*>(arguments.out) + i * arguments.out_stride, base,
                                    slice);
    RowPass<T, variant, RowUse::kReadWrite> row(slice, arguments.grad, task.way, norm,
                                                group.thread(), group.threads(), group.kept(shared),
                                                shape.kept_packs);
    row.start();
    NormState<Acc> state = norm_of_group(norm, row.read(output, true), group);
    if (const Acc again = norm.second_pass(state); again != Acc(1)) {  // for all threads alike
      state = row.read_again(again, output, group);
    }
    const Acc factor = static_cast<const Acc*>(arguments.factor)[i];
    row.write(norm.direction(state, norm.value(state), factor), output);
  }
}

template <typename T>
cudaError_t launch_direction(const DirectionArguments& arguments, const LaunchOptions& options,
                             cudaStream_t stream) {
  using Task = DirectionTask<AccOf<T>>;
  static KernelMemory memory;
  const GradientRows& grad = arguments.grad;
  if (arguments.batch == 0 || grad.size == 0) return cudaSuccess;
  if (!channels_fit(grad.channels)) return cudaErrorInvalidValue;
  const bool aligned =
      same_alignment(grad, arguments.out, arguments.out_stride) &&
      (arguments.base == nullptr || same_alignment(grad, arguments.base, arguments.base_stride));
  const auto kernels = kernels_of<Task>("dual_direction", memory, [](auto variant) -> Kernel<Task> {
    if constexpr (!has_kernel<T>(variant.value, RowUse::kReadWrite))
      return nullptr;
    else
      return direction_kernel<T, variant.value>;
  });
  const Task task{arguments, way_along<T>(grad, aligned), static_cast<AccOf<T>>(arguments.norm.q)};
  return launch_samples(kernels, task, shape_of<T>(arguments.batch, grad, arguments.norm.norm),
                        options, stream);
}

}  // namespace

cudaError_t dual_direction(const DirectionArguments& arguments, const LaunchOptions& options,
                           cudaStream_t stream) {
  return for_type(arguments.grad.dtype, [&](auto type) {
    return launch_direction<typename decltype(type)::type>(arguments, options, stream);
  });
}

}  // namespace margin::cuda
