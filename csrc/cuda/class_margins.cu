// class_margins: margins to several classes a sample in several norms, and the nearest of them, in
// one launch. A block serves one row at a time, and reads it once for all norms but general ones,
// each of which reads it again, mostly from the cache. The last block to finish finds the nearest
// classes, in an order-free way, so results repeat bit for bit.
#include "core/class_margin.h"
#include "cuda/launch.h"
#include "cuda/totals.h"

namespace margin::cuda {
namespace {

inline constexpr int kPacksInFlight = 4;

struct ClassMarginTask {
  ClassMarginArguments arguments;
  bool any_plain;  // some norm is not a general one
  unsigned ticket;
};

// visit(x) for every element of a row that belongs to this thread, times its factor.
template <typename T, typename Visit>
MARGIN_DEVICE void for_elements(const RowSlice<T>& row, const ChannelScale& channels,
                                const Visit& visit) {
  using Acc = AccOf<T>;
  constexpr int kPack = kPackSize<T>;
  const int threads = static_cast<int>(blockDim.x);
  GeneralPath<Acc> path(channels, row.first_element + static_cast<int64_t>(threadIdx.x) * kPack,
                        threads * kPack);
#pragma unroll 1
  for (int start = static_cast<int>(threadIdx.x); start < row.packs;
       start += kPacksInFlight * threads) {
    uint4 bits[kPacksInFlight];
#pragma unroll
    for (int u = 0; u < kPacksInFlight; ++u) {
      bits[u] = uint4{0, 0, 0, 0};
      if (start + u * threads < row.packs)
        bits[u] = load_reused(row.first_pack() + start + u * threads);
    }
#pragma unroll
    for (int u = 0; u < kPacksInFlight; ++u) {
      if (start + u * threads >= row.packs) break;
      Acc x[kPack];
      Format<T>::unpack(bits[u], x);
      path.scale(x);
      path.step();
#pragma unroll
      for (int k = 0; k < kPack; ++k) visit(x[k]);
    }
  }
  const int end = static_cast<int>(threadIdx.x);
  if (end >= row.ends) return;
  const int64_t offset = row.offset_of_end(end);
  visit(Format<T>::widen(row.first[offset]) *
        channel_factor<Acc>(channels, row.first_element + offset));
}

// The state of the block's threads together, for all of them, in a fixed order.
template <Norm norm, typename Acc>
MARGIN_DEVICE NormState<Acc> state_of_block(NormState<Acc> state, Acc q) {
  SIMT_SHARED(Raw<NormState<Acc>>, of_warps, kMaxWarps);
  const auto combine = [&](NormState<Acc>& a, const NormState<Acc>& b) {
    norm_combine<norm>(a, b, q);
  };
  state = reduce_warp(state, combine);
  __syncthreads();  // the states of the call before have been read
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp].get() = state;
  __syncthreads();
  NormState<Acc> total = of_warps[0].get();
#pragma unroll 1
  for (unsigned w = 1; w < blockDim.x / kWarp; ++w) combine(total, of_warps[w].get());
  return total;
}

template <Norm norm, typename T>
MARGIN_DEVICE NormState<AccOf<T>> state_of_row(const RowSlice<T>& row, const ChannelScale& channels,
                                               AccOf<T> q, AccOf<T> factor) {
  using Acc = AccOf<T>;
  NormState<Acc> state;
  for_elements(row, channels, [&](Acc x) { norm_add<norm>(state, x * factor, q); });
  return state_of_block<norm>(state, q);
}

// The norms that are no general ones, of one pass.
template <typename Acc>
struct PlainNorms {
  Acc one = Acc(0);
  Acc two = Acc(0);
  Acc max = Acc(0);
};

template <typename T>
MARGIN_DEVICE PlainNorms<AccOf<T>> plain_norms(const RowSlice<T>& row,
                                               const ChannelScale& channels) {
  using Acc = AccOf<T>;
  const Acc q = Acc(1);  // not used
  NormState<Acc> one, two, max;
  for_elements(row, channels, [&](Acc x) {
    norm_add<Norm::kOne>(one, x, q);
    norm_add<Norm::kTwo>(two, x, q);
    norm_add<Norm::kMax>(max, x, q);
  });
  one = state_of_block<Norm::kOne>(one, q);
  two = state_of_block<Norm::kTwo>(two, q);
  max = state_of_block<Norm::kMax>(max, q);
  const Acc factor = second_pass_factor<Norm::kTwo>(two);  // the same for all threads
  if (factor != Acc(1)) {
    two = state_of_row<Norm::kTwo>(row, channels, q, factor);
    two.extra = factor;
  }
  return {norm_value<Norm::kOne>(one, q), norm_value<Norm::kTwo>(two, q),
          norm_value<Norm::kMax>(max, q)};
}

template <typename Acc>
MARGIN_DEVICE NearestClass<Acc> from_lane_xor(const NearestClass<Acc>& nearest, int lanes) {
  return {cuda::from_lane_xor(nearest.margin, lanes), cuda::from_lane_xor(nearest.number, lanes)};
}

// A warp for each sample of each norm.
template <typename Acc>
MARGIN_DEVICE_CALL void find_nearest(const ClassMarginArguments& arguments) {
  const int64_t pairs = arguments.norms * arguments.batch;
#pragma unroll 1
  for (int64_t u = threadIdx.x / kWarp; u < pairs; u += blockDim.x / kWarp) {
    const Acc* margins = static_cast<const Acc*>(arguments.margin) + u * arguments.classes;
    NearestClass<Acc> nearest;
#pragma unroll 1
    for (int64_t k = threadIdx.x % kWarp; k < arguments.classes; k += kWarp) {
      // Other blocks have stored them, and the first-level cache is not coherent.
      nearest_combine(nearest, {__ldcg(margins + k), static_cast<int>(k)});
    }
#pragma unroll 1
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      nearest_combine(nearest, from_lane_xor(nearest, lanes));
    }
    if (threadIdx.x % kWarp == 0) {
      arguments.nearest[u] = arguments.classes == 0 ? -1 : nearest.number;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kMaxThreads, kResidentBlocks<BlockGroup, T>)
    class_margins_kernel(const __grid_constant__ ClassMarginTask task) {
  using Acc = AccOf<T>;
  const ClassMarginArguments& arguments = task.arguments;
  const int64_t rows = arguments.batch * arguments.classes;
#pragma unroll 1
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const RowSlice<T> row(static_cast<const T*>(arguments.grad.data) +
                              r / arguments.classes * arguments.grad.batch_stride +
                              r % arguments.classes * arguments.class_stride,
                          arguments.grad.size, 0, 1);
    PlainNorms<Acc> plain;
    if (task.any_plain) plain = plain_norms(row, arguments.grad.channels);
    const Acc gap = static_cast<const Acc*>(arguments.gap)[r];
#pragma unroll 1
    for (int p = 0; p < arguments.norms; ++p) {
      const Acc q = static_cast<Acc>(arguments.norm[p].q);
      const Acc value = visit_norm(arguments.norm[p].norm, [&](auto norm) {
        if constexpr (norm.value == Norm::kOne) {
          return plain.one;
        } else if constexpr (norm.value == Norm::kTwo) {
          return plain.two;
        } else if constexpr (norm.value == Norm::kMax) {
          return plain.max;
        } else {
          static_assert(!may_need_second_pass(norm.value));
          return norm_value<norm.value>(
              state_of_row<norm.value>(row, arguments.grad.channels, q, Acc(1)), q);
        }
      });
      if (threadIdx.x != 0) continue;
      static_cast<Acc*>(arguments.norm_out)[p * rows + r] = value;
      static_cast<Acc*>(arguments.margin)[p * rows + r] = class_margin(gap, value);
    }
  }
  SIMT_SHARED(unsigned, is_last, 1);
  if (threadIdx.x == 0) {
    __threadfence();  // this block's margins are visible before the ticket is taken
    is_last[0] = atomicInc(&tickets[task.ticket], gridDim.x - 1) == gridDim.x - 1;
    __threadfence();  // and those of the other blocks are visible after it
  }
  __syncthreads();
  if (is_last[0] != 0) find_nearest<Acc>(arguments);
}

template <typename T>
cudaError_t launch_class_margins(const ClassMarginArguments& arguments,
                                 const LaunchOptions& options, cudaStream_t stream) {
  static KernelMemory memory;
  if (arguments.batch == 0) return cudaSuccess;
  const bool any_variant = options.variant == Variant::kAuto || options.variant == Variant::kBlock;
  const int64_t packs = arguments.grad.size * static_cast<int64_t>(sizeof(T)) / 16;
  if (!any_variant || options.cluster_size > 1 || !channels_fit(arguments.grad.channels) ||
      packs > INT32_MAX - 8 * static_cast<int64_t>(kMaxThreads)) {  // see RowSlice
    return cudaErrorInvalidValue;
  }
  int device = 0;
  DeviceTraits traits;
  cudaError_t error = current_device(&device, &traits);
  if (error != cudaSuccess) return error;
  const auto kernel = class_margins_kernel<T>;
  int resident = 0;
  error = memory.resident(reinterpret_cast<const void*>(kernel), Variant::kBlock, device, traits,
                          kMaxThreads, 0, 1, &resident);
  if (error != cudaSuccess) return error;
  ClassMarginTask task{arguments, false, 0};
  for (int p = 0; p < arguments.norms; ++p) {
    task.any_plain |= arguments.norm[p].norm != Norm::kGeneral;
  }
  error = next_ticket(stream, &task.ticket);
  if (error != cudaSuccess) return error;
  const int64_t rows = arguments.batch * arguments.classes;
  const auto blocks =
      static_cast<unsigned>(std::max<int64_t>(1, std::min<int64_t>(rows, std::max(resident, 1))));
  if (options.report != nullptr) {
    *options.report = {"class_margins", Variant::kBlock, 1, kMaxThreads, blocks, 0};
  }
  return simt::launch(
      kernel, simt::Config{dim3(blocks), dim3(kMaxThreads), 0, 1, stream, "class_margins"}, task);
}

}  // namespace

cudaError_t class_margins(const ClassMarginArguments& arguments, const LaunchOptions& options,
                          cudaStream_t stream) {
  return for_type(arguments.grad.dtype, [&](auto type) {
    return launch_class_margins<typename decltype(type)::type>(arguments, options, stream);
  });
}

}  // namespace margin::cuda
