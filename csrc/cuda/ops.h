// The fused operations on a CUDA device. Raw device pointers in core's argument structs; nothing
// synchronises, allocates or throws. Each op is one launch (none for an empty batch, unless totals
// are wanted), on the current device, and can be captured in a CUDA graph.
//
// A label or critical class out of range, or a critical class equal to the target, cannot be
// reported from here: that sample's outputs (its norm and the zeros of sparse gradients apart) are
// NaN, and so is what is summed from them; its runner_up is -1.
#pragma once

#include <cuda_runtime_api.h>

#include "core/arguments.h"

namespace margin::cuda {

// How a row is shared out and kept; policy.h says when and why.
enum class Regime : int32_t {
  kAuto = -1,
  kWarp = 0,     // a warp a row, kept in registers
  kBlock = 1,    // a block a row, kept in shared memory
  kCluster = 2,  // a cluster of blocks a row, each keeping its slice
  kReread = 3,   // a block or cluster a row of any size, read twice
};

// What was launched; for tests, messages and profiles.
struct LaunchReport {
  const char* kernel = "";
  Regime regime = Regime::kAuto;
  unsigned cluster_size = 0;
  unsigned threads = 0;  // a block
  unsigned blocks = 0;
  size_t shared_bytes = 0;  // dynamic, a block
};

struct LaunchOptions {
  // Forced for tests. A regime that does not exist for a norm and type, or that the row does not
  // fit, is refused with cudaErrorInvalidValue.
  Regime regime = Regime::kAuto;
  unsigned cluster_size = 0;  // 1 to 8; 0: chosen
  LaunchReport* report = nullptr;
};

cudaError_t logit_gap(const LogitGapArguments& arguments, const LaunchOptions& options,
                      cudaStream_t stream);

cudaError_t first_order_margin(const MarginArguments& arguments, const LaunchOptions& options,
                               cudaStream_t stream);

cudaError_t dual_direction(const DirectionArguments& arguments, const LaunchOptions& options,
                           cudaStream_t stream);

// Device memory that average_margin_loss needs where loss (but for Reduction::kNone) or statistics
// is wanted. It need not be initialised, and holds nothing of value afterwards.
size_t average_margin_loss_partials(int64_t batch);

cudaError_t average_margin_loss(const LossArguments& arguments, void* partials,
                                const LaunchOptions& options, cudaStream_t stream);

cudaError_t scale(const ScaleArguments& arguments, const LaunchOptions& options,
                  cudaStream_t stream);

}  // namespace margin::cuda
