// The ops on a CUDA device: raw device pointers in core's argument structs. Nothing here
// synchronises, allocates or throws. Each op is one launch on the current device (none for an empty
// batch, unless totals are wanted) and can be captured in a CUDA graph.
//
// The host cannot see a label or nearest class that is out of range, or a nearest class that equals
// the target. The outputs of such a sample are NaN (except its norm and the zeros of sparse
// gradients), so are the sums over the batch, and its runner_up is -1.
#pragma once

#include <cuda_runtime_api.h>

#include "core/arguments.h"
#include "cuda/variants.h"

namespace margin::cuda {

// What was launched, for tests, messages and profiles.
struct LaunchReport {
  const char* kernel = "";
  Variant variant = Variant::kAuto;
  unsigned cluster_size = 0;
  unsigned threads = 0;  // of a block
  unsigned blocks = 0;
  size_t shared_bytes = 0;  // of dynamic shared memory, of a block
};

struct LaunchOptions {
  // Tests force a variant or a cluster size. One that does not exist for the norm and type, or that
  // the row does not fit, is refused with cudaErrorInvalidValue.
  Variant variant = Variant::kAuto;
  unsigned cluster_size = 0;  // 1 to 8; 0: the policy chooses
  LaunchReport* report = nullptr;
};

cudaError_t logit_gap(const LogitGapArguments& arguments, const LaunchOptions& options,
                      cudaStream_t stream);

cudaError_t first_order_margin(const MarginArguments& arguments, const LaunchOptions& options,
                               cudaStream_t stream);

cudaError_t dual_direction(const DirectionArguments& arguments, const LaunchOptions& options,
                           cudaStream_t stream);

// Every variant is refused but that for blocks.
cudaError_t class_margins(const ClassMarginArguments& arguments, const LaunchOptions& options,
                          cudaStream_t stream);

cudaError_t attack_step(const AttackArguments& arguments, const LaunchOptions& options,
                        cudaStream_t stream);

// The device memory that average_margin_loss needs where statistics or a summed loss are wanted. It
// needs no initial value and holds nothing of use afterwards.
size_t average_margin_loss_partials(int64_t batch);

cudaError_t average_margin_loss(const LossArguments& arguments, void* partials,
                                const LaunchOptions& options, cudaStream_t stream);

cudaError_t scale(const ScaleArguments& arguments, const LaunchOptions& options,
                  cudaStream_t stream);

}  // namespace margin::cuda
