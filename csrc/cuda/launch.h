// From a sample's shape to the launch of one of an op's kernels. This is the one place that
// launches kernels over samples and asks the CUDA runtime about devices.
#pragma once

#include <atomic>
#include <mutex>
#include <utility>

#include "cuda/numeric.h"
#include "cuda/policy.h"
#include "cuda/row_pass.h"

namespace margin::cuda {

inline constexpr int kMaxDevices = 64;  // the answers of further devices are not remembered

// The largest cluster in which a kernel can run, by device; 0: not asked yet.
using ClusterMemory = std::atomic<unsigned char>[kMaxDevices];

inline cudaError_t ask_device(int device, DeviceTraits* traits) {
  int shared_per_block = 0, shared_per_multiprocessor = 0;
  const std::pair<cudaDeviceAttr, int*> questions[] = {
      {cudaDevAttrMultiProcessorCount, &traits->multiprocessors},
      {cudaDevAttrMaxThreadsPerMultiProcessor, &traits->threads_per_multiprocessor},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared_per_block},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &shared_per_multiprocessor},
  };
  for (const auto& [attribute, answer] : questions) {
    const cudaError_t error = cudaDeviceGetAttribute(answer, attribute, device);
    if (error != cudaSuccess) return error;
  }
  traits->shared_per_block = shared_per_block;
  traits->shared_per_multiprocessor = shared_per_multiprocessor;
  return cudaSuccess;
}

// Some devices refuse clusters, or have no room for one of this size (parts of a partitioned
// device). So the runtime is asked, for a block that is as large as any of ours.
inline cudaError_t ask_clusters(const void* kernel, int device, int64_t shared_bytes,
                                unsigned* largest) {
  *largest = 1;
  int supported = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&supported, cudaDevAttrClusterLaunch, device);
  if (error != cudaSuccess || supported == 0) return error;
  for (unsigned size = kMaxCluster; size > 1; size /= 2) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = size;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(size);
    config.blockDim = dim3(kMaxThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) {
      cudaGetLastError();  // a refusal is an answer, not an error
    } else if (clusters > 0) {
      *largest = size;
      break;
    }
  }
  return cudaSuccess;
}

// Fills in the number and the traits of the current device, which are asked for once. max_cluster
// stays 1, because it depends on the kernel.
inline cudaError_t current_device(int* number, DeviceTraits* traits) {
  static DeviceTraits known[kMaxDevices];
  static std::atomic<bool> is_known[kMaxDevices];
  static std::mutex writing;
  cudaError_t error = cudaGetDevice(number);
  if (error != cudaSuccess) return error;
  const bool remembered = *number < kMaxDevices;
  if (remembered && is_known[*number].load(std::memory_order_acquire)) {
    *traits = known[*number];
    return cudaSuccess;
  }
  error = ask_device(*number, traits);
  if (error == cudaSuccess && remembered) {
    const std::lock_guard<std::mutex> lock(writing);
    known[*number] = *traits;
    is_known[*number].store(true, std::memory_order_release);
  }
  return error;
}

// Sets traits->max_cluster for the kernel and allows it all the shared memory of a block.
inline cudaError_t prepare_kernel(const void* kernel, ClusterMemory& memory, int device,
                                  DeviceTraits* traits) {
  const bool remembered = device < kMaxDevices;
  if (remembered) {
    traits->max_cluster = memory[device].load(std::memory_order_acquire);
    if (traits->max_cluster != 0) return cudaSuccess;
  }
  const int64_t bytes = traits->shared_per_block - Limits::kReservedShared;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  // The kernels keep rows in shared memory, and use little of the cache that shares its storage.
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  error = ask_clusters(kernel, device, bytes, &traits->max_cluster);
  if (error == cudaSuccess && remembered) {
    memory[device].store(static_cast<unsigned char>(traits->max_cluster),
                         std::memory_order_release);
  }
  return error;
}

// A kernel over samples takes its task and the size of the clusters that it runs in.
template <typename Task>
using Kernel = void (*)(Task, unsigned);

// The kernels of one op for one type, by variant; null where there is none. There is always one for
// blocks.
template <typename Task>
struct KernelSet {
  const char* name;
  ClusterMemory& memory;
  Kernel<Task> of[kVariantCount];
};

// kernel(std::integral_constant<Variant, variant>()) for every variant.
template <typename Task, typename KernelOf>
KernelSet<Task> kernels_of(const char* name, ClusterMemory& memory, const KernelOf& kernel) {
  return [&]<int... number>(std::integer_sequence<int, number...>) {
    return KernelSet<Task>{
        name, memory, {kernel(std::integral_constant<Variant, static_cast<Variant>(number)>())...}};
  }(std::make_integer_sequence<int, kVariantCount>());
}

template <typename T>
struct Type {
  using type = T;
};

// launch(Type<T>()) for the rows' type T.
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

// What a batch of rows of T, which are read and written, needs of the variants. `plain`: see
// RowPass. The warp kernels have no other path: eight unrolled packs of it would be the longest
// code of all.
template <typename T>
SampleShape shape_of(int64_t batch, const GradientRows& rows, Norm norm, bool plain) {
  SampleShape shape;
  shape.batch = batch;
  shape.row_bytes = rows.size * static_cast<int64_t>(sizeof(T));
  shape.pack_bytes = kept_bytes<T>(kept(Variant::kBlock, RowUse::kReadWrite, norm));
  for (int v = 0; v < kVariantCount; ++v) {
    const Variant variant = static_cast<Variant>(v);
    shape.serves[v] = kept(variant, RowUse::kReadWrite, norm) != Kept::kUnserved &&
                      (plain || variant != Variant::kWarp);
  }
  return shape;
}

// Whether each sample's row in `other` has the same offset from 16-byte boundaries as its row in
// `rows`.
inline bool same_alignment(const GradientRows& rows, const void* other, int64_t other_stride) {
  const auto place = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16; };
  const int64_t strides = (rows.batch_stride - other_stride) * size_of(rows.dtype);
  return place(rows.data) == place(other) && strides % 16 == 0;
}

// Whether the factors can be used: paths along a row count channels in 32 bits.
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
      prepare_kernel(reinterpret_cast<const void*>(kernels.of[static_cast<int>(Variant::kBlock)]),
                     kernels.memory, device, &traits);
  if (error != cudaSuccess) return error;

  if (sample.row_bytes / 16 > INT32_MAX - 8 * static_cast<int64_t>(kMaxThreads)) {
    return cudaErrorInvalidValue;  // see RowSlice
  }
  SampleShape shape = sample;
  for (int v = 0; v < kVariantCount; ++v) shape.serves[v] &= kernels.of[v] != nullptr;
  Plan plan;
  if (!make_plan(traits, shape, options, plan)) return cudaErrorInvalidValue;
  if (options.report != nullptr) {
    *options.report = {kernels.name, plan.variant, plan.cluster_size,
                       plan.threads, plan.blocks,  plan.shared_bytes};
  }
  return simt::launch(kernels.of[static_cast<int>(plan.variant)],
                      simt::Config{dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes,
                                   plan.cluster_size, stream, kernels.name},
                      task, plan.cluster_size);
}

}  // namespace margin::cuda
