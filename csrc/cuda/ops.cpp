// The ops' entry: from a number type as a value to a number type as a template argument.
#include "cuda/ops.h"

#include "cuda/launchers.h"
#include "cuda/platform.h"
#include "cuda/policy.h"

namespace margin::cuda {
namespace {

template <typename T>
struct Type {
  using type = T;
};

template <typename Launch>
cudaError_t for_type(Dtype dtype, const Launch& launch) {
  switch (dtype) {
    case Dtype::kFloat16:
    case Dtype::kBFloat16:
      return launch(Type<SixteenBit>());
    case Dtype::kFloat32:
      return launch(Type<float>());
    case Dtype::kFloat64:
      return launch(Type<double>());
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t logit_gap(const LogitGapArguments& arguments, const LaunchOptions& options,
                      cudaStream_t stream) {
  return arguments.logits.dtype == Dtype::kFloat64
             ? launch_logit_gap<double>(arguments, options, stream)
             : launch_logit_gap<float>(arguments, options, stream);
}

cudaError_t first_order_margin(const MarginArguments& arguments, const LaunchOptions& options,
                               cudaStream_t stream) {
  return for_type(arguments.grad.dtype, [&](auto type) {
    return launch_margin<typename decltype(type)::type>(arguments, options, stream);
  });
}

cudaError_t dual_direction(const DirectionArguments& arguments, const LaunchOptions& options,
                           cudaStream_t stream) {
  return for_type(arguments.grad.dtype, [&](auto type) {
    return launch_direction<typename decltype(type)::type>(arguments, options, stream);
  });
}

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

cudaError_t scale(const ScaleArguments& arguments, const LaunchOptions& options,
                  cudaStream_t stream) {
  bool wide = false;
  for (const ScaleArguments::Block& block : arguments.blocks) {
    wide |= block.data != nullptr && block.dtype == Dtype::kFloat64;
  }
  return wide ? launch_scale<double>(arguments, options, stream)
              : launch_scale<float>(arguments, options, stream);
}

}  // namespace margin::cuda
