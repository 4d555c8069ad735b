// From a sample's shape to the launch of one of an op's kernels. This is the one place that
// launches kernels over samples and asks the CUDA runtime about devices.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <utility>

#include "cuda/group.h"
#include "cuda/numeric.h"
#include "cuda/policy.h"
#include "cuda/row_pass.h"

namespace margin::cuda {

inline constexpr int kMaxDevices = 64;  // the answers of further devices are not remembered

inline cudaError_t ask_device(int device, DeviceTraits* traits) {
  int shared_per_block = 0, shared_per_multiprocessor = 0, cache_bytes = 0;
  const std::pair<cudaDeviceAttr, int*> questions[] = {
      {cudaDevAttrMultiProcessorCount, &traits->multiprocessors},
      {cudaDevAttrMaxThreadsPerMultiProcessor, &traits->threads_per_multiprocessor},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared_per_block},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &shared_per_multiprocessor},
      {cudaDevAttrL2CacheSize, &cache_bytes},
  };
  for (const auto& [attribute, answer] : questions) {
    const cudaError_t error = cudaDeviceGetAttribute(answer, attribute, device);
    if (error != cudaSuccess) return error;
  }
  traits->shared_per_block = shared_per_block;
  traits->shared_per_multiprocessor = shared_per_multiprocessor;
  traits->cache_bytes = cache_bytes;
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

// The clusters of a kernel that a device can hold at a time, with a block's threads and bytes of
// shared memory. 0: it cannot run in clusters of this size. With a single block per cluster the
// answer holds for every device with clusters or without.
inline cudaError_t ask_resident(const void* kernel, const DeviceTraits& traits, unsigned threads,
                                size_t shared_bytes, unsigned cluster_size, int* resident) {
  if (cluster_size == 1) {
    int blocks = 0;
    const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &blocks, kernel, static_cast<int>(threads), shared_bytes);
    *resident = blocks * traits.multiprocessors;
    return error;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster_size;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(cluster_size);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  *resident = 0;
  if (cudaOccupancyMaxActiveClusters(resident, kernel, &config) != cudaSuccess) {
    cudaGetLastError();  // a refusal is an answer, not an error
    *resident = 0;
  }
  return cudaSuccess;
}

// What is known of the kernels of one op for one type. Everything is asked for once.
class KernelMemory {
 public:
  // Allows the kernel all the shared memory of a block, and prefers shared memory to the cache that
  // shares its storage where the kernel keeps rows.
  cudaError_t prepare(const void* kernel, Variant variant, int device, const DeviceTraits& traits,
                      bool keeps_rows) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [known, is_new] = prepared_.insert({static_cast<int>(variant), device, keeps_rows});
    if (!is_new) return cudaSuccess;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(traits.shared_per_block - Limits::kReservedShared));
    if (error == cudaSuccess && keeps_rows) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                   cudaSharedmemCarveoutMaxShared);
    }
    if (error != cudaSuccess) prepared_.erase(known);
    return error;
  }

  // Some devices refuse clusters, or have no room for one of every size (parts of a partitioned
  // device). So the runtime is asked, for the largest block that the policy makes.
  cudaError_t largest_cluster(const void* kernel, int device, const DeviceTraits& traits,
                              unsigned* largest) {
    *largest = 1;
    int supported = 0;
    cudaError_t error = cudaDeviceGetAttribute(&supported, cudaDevAttrClusterLaunch, device);
    if (error != cudaSuccess || supported == 0) return error;
    const size_t bytes = static_cast<size_t>(traits.shared_per_block - Limits::kReservedShared);
    for (unsigned size = kMaxCluster; size > 1; size /= 2) {
      int clusters = 0;
      error =
          resident(kernel, Variant::kBlock, device, traits, kMaxThreads, bytes, size, &clusters);
      if (error != cudaSuccess) return error;
      if (clusters > 0) {
        *largest = size;
        break;
      }
    }
    return cudaSuccess;
  }

  cudaError_t resident(const void* kernel, Variant variant, int device, const DeviceTraits& traits,
                       unsigned threads, size_t shared_bytes, unsigned cluster_size,
                       int* clusters) {
    const std::array<size_t, 6> key{static_cast<size_t>(variant),
                                    static_cast<size_t>(device),
                                    static_cast<size_t>(traits.multiprocessors),
                                    threads,
                                    shared_bytes,
                                    cluster_size};
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto known = resident_.find(key); known != resident_.end()) {
      *clusters = known->second;
      return cudaSuccess;
    }
    const cudaError_t error =
        ask_resident(kernel, traits, threads, shared_bytes, cluster_size, clusters);
    if (error == cudaSuccess) resident_[key] = *clusters;
    return error;
  }

 private:
  std::mutex mutex_;
  std::set<std::tuple<int, int, bool>> prepared_;  // variant, device, whether it keeps rows
  std::map<std::array<size_t, 6>, int> resident_;
};

// A kernel over samples.
template <typename Task>
using Kernel = void (*)(Task, LaunchShape);

// The kernels of one op for one type, by variant; null where there is none. There is always one for
// blocks.
template <typename Task>
struct KernelSet {
  const char* name;
  KernelMemory& memory;
  Kernel<Task> of[kVariantCount];
};

// kernel(std::integral_constant<Variant, variant>()) for every variant.
template <typename Task, typename KernelOf>
KernelSet<Task> kernels_of(const char* name, KernelMemory& memory, const KernelOf& kernel) {
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
      return launch(Type<Float16>());
    case Dtype::kBFloat16:
      return launch(Type<BFloat16>());
    case Dtype::kFloat32:
      return launch(Type<float>());
    case Dtype::kFloat64:
      return launch(Type<double>());
  }
  return cudaErrorInvalidValue;
}

// What a batch of rows of T, which are read and written, needs of the variants.
template <typename T>
SampleShape shape_of(int64_t batch, const GradientRows& rows, Norm norm) {
  SampleShape shape;
  shape.batch = batch;
  shape.row_bytes = rows.size * static_cast<int64_t>(sizeof(T));
  shape.element_bytes = sizeof(T);
  shape.pack_bytes = kept_bytes<T>(kept(Variant::kBlock, RowUse::kReadWrite, norm));
  for (int v = 0; v < kVariantCount; ++v) {
    shape.serves[v] = kept(static_cast<Variant>(v), RowUse::kReadWrite, norm) != Kept::kUnserved;
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

// The way along the rows. `aligned`: same_alignment() of all rows that are read or written.
template <typename T>
RowWay way_along(const GradientRows& rows, bool aligned) {
  const ChannelScale& channels = rows.channels;
  if (channels.scale == nullptr) return aligned ? RowWay::kPlain : RowWay::kGeneral;
  constexpr int64_t kPack = kPackSize<T>;
  // A channel should have packs for all threads of a warp, and no pack may span two.
  const bool whole = reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 &&
                     rows.batch_stride % kPack == 0 && rows.size % kPack == 0 &&
                     channels.stride % kPack == 0 && channels.stride >= kWarp * kPack;
  return aligned && (channels.count == 1 || whole) ? RowWay::kByChannel : RowWay::kGeneral;
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
  const auto address = [&](Variant variant) {
    return reinterpret_cast<const void*>(kernels.of[static_cast<int>(variant)]);
  };
  const bool keeps_rows = sample.pack_bytes > 0;
  error =
      kernels.memory.prepare(address(Variant::kBlock), Variant::kBlock, device, traits, keeps_rows);
  if (error != cudaSuccess) return error;
  error =
      kernels.memory.largest_cluster(address(Variant::kBlock), device, traits, &traits.max_cluster);
  if (error != cudaSuccess) return error;

  if (sample.row_bytes / 16 > INT32_MAX - 8 * static_cast<int64_t>(kMaxThreads)) {
    return cudaErrorInvalidValue;  // see RowSlice
  }
  SampleShape shape = sample;
  for (int v = 0; v < kVariantCount; ++v) shape.serves[v] &= kernels.of[v] != nullptr;
  Plan plan;
  if (!make_plan(traits, shape, options, plan)) return cudaErrorInvalidValue;
  error = kernels.memory.prepare(address(plan.variant), plan.variant, device, traits, keeps_rows);
  if (error != cudaSuccess) return error;
  int resident = 0;
  error = kernels.memory.resident(address(plan.variant), plan.variant, device, traits, plan.threads,
                                  plan.shared_bytes, plan.cluster_size, &resident);
  if (error != cudaSuccess) return error;
  set_blocks(traits, shape, resident, plan);
  if (options.report != nullptr) {
    *options.report = {kernels.name, plan.variant, plan.cluster_size,
                       plan.threads, plan.blocks,  plan.shared_bytes};
  }
  const LaunchShape launched{plan.cluster_size, plan.kept_packs,
                             static_cast<unsigned>(plan.kept_bytes), plan.prefetches};
  return simt::launch(kernels.of[static_cast<int>(plan.variant)],
                      simt::Config{dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes,
                                   plan.cluster_size, stream, kernels.name},
                      task, launched);
}

}  // namespace margin::cuda
