// The launchers by type: declared here, defined in the *_launch.h headers, and instantiated over
// several .cu files so that a build keeps more than one core busy.
#pragma once

#include "cuda/ops.h"

namespace margin::cuda {

struct SixteenBit;  // float16 or bfloat16 (numeric.h, which only device code can include)

// T: the type of grad. Acc: float, or double where everything is float64.
template <typename T>
cudaError_t launch_loss(const LossArguments& arguments, void* partials,
                        const LaunchOptions& options, cudaStream_t stream);

// Without grad.
template <typename Acc>
cudaError_t launch_gap_loss(const LossArguments& arguments, void* partials,
                            const LaunchOptions& options, cudaStream_t stream);

template <typename T>
cudaError_t launch_direction(const DirectionArguments& arguments, const LaunchOptions& options,
                             cudaStream_t stream);

template <typename T>
cudaError_t launch_margin(const MarginArguments& arguments, const LaunchOptions& options,
                          cudaStream_t stream);

template <typename Acc>
cudaError_t launch_logit_gap(const LogitGapArguments& arguments, const LaunchOptions& options,
                             cudaStream_t stream);

template <typename Acc>
cudaError_t launch_scale(const ScaleArguments& arguments, const LaunchOptions& options,
                         cudaStream_t stream);

}  // namespace margin::cuda
