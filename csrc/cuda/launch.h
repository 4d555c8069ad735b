// From a sample's shape to the launch of one of an op's kernels: the one place where kernels over
// samples are launched.
#pragma once

#include "cuda/device.h"
#include "cuda/row_pass.h"

namespace margin::cuda {

// The kernels of one op for one type, each taking its task and the size of the clusters it runs in;
// null where there is none. `block` exists always.
template <typename Task>
struct KernelSet {
  const char* name;
  void (*warp)(Task, unsigned);
  void (*block)(Task, unsigned);  // of regimes block and cluster
  void (*reread)(Task, unsigned);
  ClusterMemory& memory;
};

// The kernels for a float64 row: there to check gradients with, and every kernel costs seconds of
// every build, so warps have none.
template <typename T>
inline constexpr bool kHasWarp = !std::is_same_v<T, double>;

// What one sample of rows of T needs of the regimes. `plain` as for RowPass: kernels for warps know
// no other path, since eight unrolled packs of everything would be the longest code of all.
template <typename T>
SampleShape shape_of(int64_t batch, const GradientRows& rows, Norm norm, bool plain) {
  SampleShape shape;
  shape.batch = batch;
  shape.row_bytes = rows.size * static_cast<int64_t>(sizeof(T));
  shape.pack_bytes = kept_bytes<T>(keeping_of(Storage::kOnChip, norm));
  shape.has_warp = plain && serves(Storage::kRegisters, norm);
  shape.has_block = serves(Storage::kOnChip, norm);
  shape.has_reread = serves(Storage::kReread, norm);
  return shape;
}

// Whether all rows of a batch lie alike to 16-byte boundaries: that of each sample in `other` as
// that in `rows`.
inline bool lie_alike(const GradientRows& rows, const void* other, int64_t other_stride) {
  const auto place = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16; };
  const int64_t strides = (rows.batch_stride - other_stride) * size_of(rows.dtype);
  return place(rows.data) == place(other) && strides % 16 == 0;
}

// The paths along a row count channels in 32 bits.
inline bool channels_fit(const ChannelScale& channels) {
  return channels.scale == nullptr || (channels.count > 0 && channels.count <= INT32_MAX &&
                                       channels.stride > 0 && channels.stride <= INT32_MAX);
}

template <typename Task>
cudaError_t launch_samples(const KernelSet<Task>& kernels, const Task& task,
                           const SampleShape& sample, const LaunchOptions& options,
                           cudaStream_t stream) {
  int device = 0;
  DeviceTraits traits;
  cudaError_t error = current_device(&device, &traits);
  if (error != cudaSuccess) return error;
  error =
      prepare_kernel(reinterpret_cast<const void*>(kernels.block), kernels.memory, device, &traits);
  if (error != cudaSuccess) return error;

  if (sample.row_bytes / 16 > INT32_MAX - 8 * static_cast<int64_t>(kMaxThreads)) {
    return cudaErrorInvalidValue;  // see RowSlice
  }
  SampleShape shape = sample;
  shape.has_warp &= kernels.warp != nullptr;
  shape.has_reread &= kernels.reread != nullptr;
  Plan plan;
  if (!make_plan(traits, shape, options, plan)) return cudaErrorInvalidValue;
  if (options.report != nullptr) {
    *options.report = {kernels.name, plan.regime, plan.cluster_size,
                       plan.threads, plan.blocks, plan.shared_bytes};
  }
  void (*const kernel)(Task, unsigned) = plan.regime == Regime::kWarp     ? kernels.warp
                                         : plan.regime == Regime::kReread ? kernels.reread
                                                                          : kernels.block;
  return simt::launch(kernel,
                      simt::Config{dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes,
                                   plan.cluster_size, stream, kernels.name},
                      task, plan.cluster_size);
}

}  // namespace margin::cuda
