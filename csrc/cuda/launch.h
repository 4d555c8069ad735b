// From a sample's shape to the launch of one of an op's kernels: the one place where kernels over
// samples are launched.
#pragma once

#include "cuda/device.h"
#include "cuda/row_pass.h"

namespace margin::cuda {

// The kernels of one op for one type and norm; null where there is none. A kernel for a warp or a
// block over short rows exists always.
template <typename Task>
struct KernelSet {
  const char* name;
  void (*warp)(Task);
  void (*block)(Task);  // of regimes block and cluster
  void (*reread)(Task);
  ClusterMemory& memory;
};

// Which kernels exist. Each more costs seconds of every build, so:
// - q = inf keeps no row on chip and reads it once at any size: nothing is left to reread.
// - General q computes two powers an element, so a row in registers would gain nothing.
// - float64 is there to check gradients with.
template <typename T, Norm norm>
inline constexpr bool kHasWarp = norm != Norm::kGeneral && !std::is_same_v<T, double>;
template <Norm norm>
inline constexpr bool kHasReread = norm != Norm::kMax;

// How regimes block and cluster keep a row.
template <Norm norm>
inline constexpr Keeping kBlockKeeping = norm == Norm::kOne   ? Keeping::kSigns
                                         : norm == Norm::kMax ? Keeping::kPosition
                                                              : Keeping::kShared;

template <typename Task>
cudaError_t launch_samples(const KernelSet<Task>& kernels, const Task& task, SampleShape shape,
                           const LaunchOptions& options, cudaStream_t stream) {
  int device = 0;
  DeviceTraits traits;
  cudaError_t error = current_device(&device, &traits);
  if (error != cudaSuccess) return error;
  error =
      prepare_kernel(reinterpret_cast<const void*>(kernels.block), kernels.memory, device, &traits);
  if (error != cudaSuccess) return error;

  shape.has_warp = kernels.warp != nullptr;
  shape.has_reread = kernels.reread != nullptr;
  Plan plan;
  if (!make_plan(traits, shape, options, plan)) return cudaErrorInvalidValue;
  if (options.report != nullptr) {
    *options.report = {kernels.name, plan.regime, plan.cluster_size,
                       plan.threads, plan.blocks, plan.shared_bytes};
  }
  void (*const kernel)(Task) = plan.regime == Regime::kWarp     ? kernels.warp
                               : plan.regime == Regime::kReread ? kernels.reread
                                                                : kernels.block;
  return simt::launch(kernel,
                      simt::Config{dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes,
                                   plan.cluster_size, stream, kernels.name},
                      task);
}

}  // namespace margin::cuda
