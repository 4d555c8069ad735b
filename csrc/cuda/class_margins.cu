// class_margins: margins to several classes a sample in several norms, and the nearest of them, in
// one launch. A row is read once for all norms but general ones, each of which reads it again,
// mostly from the cache.
//
// Short rows: a block serves all classes of a sample, a warp a class, and finds the nearest. Long
// rows: a block serves one row, and the last block to finish finds the nearest classes of all
// samples. Either way results repeat bit for bit.
#include "core/class_margin.h"
#include "cuda/launch.h"
#include "cuda/totals.h"

namespace margin::cuda {
namespace {

// A row is read with so many packs in flight for each thread.
template <Variant variant>
inline constexpr int kPacksInFlight = variant == Variant::kWarp ? 4 : 6;

struct ClassMarginTask {
  ClassMarginArguments arguments;
  bool any_general;
  unsigned ticket;
};

// visit(x) for every element of a row that belongs to this thread, times its factor.
template <int kPacks, typename T, typename Group, typename Visit>
MARGIN_DEVICE void for_elements(const RowSlice<T>& row, const ChannelScale& channels,
                                const Group& group, const Visit& visit) {
  using Acc = AccOf<T>;
  constexpr int kPack = kPackSize<T>;
  const int thread = static_cast<int>(group.thread());
  const int threads = static_cast<int>(group.threads());
  const auto all = [&](auto path) {
#pragma unroll 1
    for (int start = thread; start < row.packs; start += kPacks * threads) {
      uint4 bits[kPacks];
#pragma unroll
      for (int u = 0; u < kPacks; ++u) {
        bits[u] = uint4{0, 0, 0, 0};
        if (start + u * threads < row.packs) {
          bits[u] = load_reused(row.first_pack() + start + u * threads);
        }
      }
#pragma unroll
      for (int u = 0; u < kPacks; ++u) {
        if (start + u * threads >= row.packs) break;
        Acc x[kPack];
        Format<T>::unpack(bits[u], x);
        path.scale_read(x);
        path.step();
#pragma unroll
        for (int k = 0; k < kPack; ++k) visit(x[k]);
      }
    }
  };
  if (channels.scale == nullptr) {
    all(PlainPath());
  } else {
    all(GeneralPath<Acc>(channels, row.first_element + static_cast<int64_t>(thread) * kPack,
                         threads * kPack));
  }
  if (thread >= row.ends) return;
  const int64_t offset = row.offset_of_end(thread);
  visit(Format<T>::widen(row.first[offset]) *
        channel_factor<Acc>(channels, row.first_element + offset));
}

// The states of the norms that are no general ones. `max` drops a NaN, which `one` keeps.
template <typename Acc>
struct PlainNorms {
  Acc one = Acc(0);
  Acc two = Acc(0);
  Acc max = Acc(0);

  MARGIN_DEVICE void add(Acc x) {
    const Acc magnitude = absolute(x);
    one += magnitude;
    two += x * x;
    max = magnitude > max ? magnitude : max;
  }
};

template <typename Acc>
MARGIN_DEVICE PlainNorms<Acc> norms_of_warp(const PlainNorms<Acc>& norms) {
  return {sum_of_warp(norms.one), sum_of_warp(norms.two), max_of_warp(norms.max)};
}

// One norm of a row with all its elements times `factor`.
template <Norm norm, typename T, Variant variant>
MARGIN_DEVICE NormState<AccOf<T>> state_of_row(const RowSlice<T>& row, const ChannelScale& channels,
                                               AccOf<T> q, AccOf<T> factor,
                                               GroupOf<variant>& group) {
  using Acc = AccOf<T>;
  NormState<Acc> state;
  for_elements<kPacksInFlight<variant>>(row, channels, group,
                                        [&](Acc x) { norm_add<norm>(state, x * factor, q); });
  return group.reduce(state, [&](const NormState<Acc>& s) {
    return reduce_warp(
        s, [&](NormState<Acc>& a, const NormState<Acc>& b) { norm_combine<norm>(a, b, q); });
  });
}

// The values of all norms but general ones, for all threads of the group.
template <typename T, Variant variant>
MARGIN_DEVICE PlainNorms<AccOf<T>> plain_norms(const RowSlice<T>& row, const ChannelScale& channels,
                                               GroupOf<variant>& group) {
  using Acc = AccOf<T>;
  PlainNorms<Acc> norms;
  for_elements<kPacksInFlight<variant>>(row, channels, group, [&](Acc x) { norms.add(x); });
  norms = group.reduce(norms, [](const PlainNorms<Acc>& n) { return norms_of_warp(n); });
  NormState<Acc> two{norms.two, Acc(0)};
  const Acc factor = second_pass_factor<Norm::kTwo>(two);
  if (factor != Acc(1)) {  // for all threads alike
    two = state_of_row<Norm::kTwo, T, variant>(row, channels, Acc(2), factor, group);
    two.extra = factor;
  }
  return {norms.one, norm_value<Norm::kTwo>(two, Acc(2)),
          is_nan(norms.one) ? norms.one : norms.max};
}

// Norms and margins of one class of a sample. Thread p writes those of norm p.
template <typename T, Variant variant>
MARGIN_DEVICE void row_margins(const ClassMarginTask& task, int64_t sample, int64_t number,
                               GroupOf<variant>& group) {
  using Acc = AccOf<T>;
  const ClassMarginArguments& arguments = task.arguments;
  const RowSlice<T> row(static_cast<const T*>(arguments.grad.data) +
                            sample * arguments.grad.batch_stride + number * arguments.class_stride,
                        arguments.grad.size, 0, 1);
  const int mine = static_cast<int>(group.thread());
  const bool writes = mine < arguments.norms;
  const Norm norm = arguments.norm[writes ? mine : 0].norm;
  const PlainNorms<Acc> plain = plain_norms<T, variant>(row, arguments.grad.channels, group);
  Acc value = norm == Norm::kOne ? plain.one : norm == Norm::kTwo ? plain.two : plain.max;
  if (task.any_general) {
#pragma unroll 1
    for (int p = 0; p < arguments.norms; ++p) {
      if (arguments.norm[p].norm != Norm::kGeneral) continue;
      const Acc q = static_cast<Acc>(arguments.norm[p].q);
      const NormState<Acc> state =
          state_of_row<Norm::kGeneral, T, variant>(row, arguments.grad.channels, q, Acc(1), group);
      if (p == mine) value = norm_value<Norm::kGeneral>(state, q);
    }
  }
  if (!writes) return;
  const int64_t r = sample * arguments.classes + number;
  const int64_t at = mine * arguments.batch * arguments.classes + r;
  static_cast<Acc*>(arguments.norm_out)[at] = value;
  static_cast<Acc*>(arguments.margin)[at] =
      class_margin(static_cast<const Acc*>(arguments.gap)[r], value);
}

template <typename Acc>
MARGIN_DEVICE NearestClass<Acc> from_lane_xor(const NearestClass<Acc>& nearest, int lanes) {
  return {cuda::from_lane_xor(nearest.margin, lanes), cuda::from_lane_xor(nearest.number, lanes)};
}

// Finds the nearest class of one sample in one norm, by `lanes` threads: a warp or a single one.
// pair: norm * batch + sample.
template <typename Acc>
MARGIN_DEVICE void find_nearest(const ClassMarginArguments& arguments, int64_t pair,
                                unsigned lanes) {
  const Acc* margins = static_cast<const Acc*>(arguments.margin) + pair * arguments.classes;
  const unsigned lane = threadIdx.x % lanes;
  NearestClass<Acc> nearest;
#pragma unroll 4
  for (unsigned k = lane; k < arguments.classes; k += lanes) {
    // Other threads have stored them, and the first-level cache is not coherent.
    nearest_combine(nearest, {__ldcg(margins + k), static_cast<int>(k)});
  }
#pragma unroll 1
  for (int other = static_cast<int>(lanes) / 2; other > 0; other /= 2) {
    nearest_combine(nearest, from_lane_xor(nearest, other));
  }
  if (lane == 0) arguments.nearest[pair] = arguments.classes == 0 ? -1 : nearest.number;
}

template <typename T, Variant variant>
__global__ void __launch_bounds__(kMaxThreads, kResidentBlocks<BlockGroup, T>)
    class_margins_kernel(const __grid_constant__ ClassMarginTask task,
                         const __grid_constant__ LaunchShape shape) {
  using Acc = AccOf<T>;
  const ClassMarginArguments& arguments = task.arguments;
  GroupOf<variant> group(shape);
  if constexpr (variant == Variant::kWarp) {
    const int64_t warps = group.groups();
#pragma unroll 1
    for (int64_t i = blockIdx.x; i < arguments.batch; i += gridDim.x) {
#pragma unroll 1
      for (int64_t k = group.number(); k < arguments.classes; k += warps) {
        row_margins<T, variant>(task, i, k, group);
      }
      __syncthreads();  // the sample's margins are stored
#pragma unroll 1
      for (int64_t p = group.number(); p < arguments.norms; p += warps) {
        find_nearest<Acc>(arguments, p * arguments.batch + i, kWarp);
      }
    }
  } else {
    const int64_t rows = arguments.batch * arguments.classes;
#pragma unroll 1
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
      row_margins<T, variant>(task, r / arguments.classes, r % arguments.classes, group);
    }
    SIMT_SHARED(unsigned, is_last, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();  // this block's margins are visible before the ticket is taken
      is_last[0] = atomicInc(&tickets[task.ticket], gridDim.x - 1) == gridDim.x - 1;
      __threadfence();  // and those of the other blocks are visible after it
    }
    __syncthreads();
    if (is_last[0] == 0) return;
    // There may be many samples, and no other block is left to help.
    const unsigned lanes = arguments.classes <= kWarp ? 1 : kWarp;
#pragma unroll 1
    for (int64_t pair = threadIdx.x / lanes; pair < arguments.norms * arguments.batch;
         pair += blockDim.x / lanes) {
      find_nearest<Acc>(arguments, pair, lanes);
    }
  }
}

// The variant and the threads of a block.
struct ClassMarginPlan {
  Variant variant = Variant::kBlock;
  unsigned threads = kMaxThreads;
  int64_t units = 0;  // what blocks take in turn: samples or rows
};

template <typename T>
ClassMarginPlan plan_class_margins(const ClassMarginArguments& arguments,
                                   const DeviceTraits& device, Variant forced) {
  SampleShape shape;  // a sample is a row here
  shape.batch = arguments.batch * arguments.classes;
  shape.row_bytes = arguments.grad.size * static_cast<int64_t>(sizeof(T));
  // A warp has few bytes in flight. Longer rows need many samples to make up for it.
  const int64_t blocks_in_flight =
      shape.row_bytes <= Limits::kShortRow ? shape.batch : arguments.batch;
  const bool in_warps = has_kernel<T>(Variant::kWarp, RowUse::kRead) &&
                        shape.row_bytes <= Limits::kWarpRow &&
                        blocks_in_flight >= Limits::kManySamples * device.multiprocessors;
  if (forced == Variant::kBlock || (forced == Variant::kAuto && !in_warps)) {
    return {Variant::kBlock, threads_of_block(device, shape, 1), shape.batch};
  }
  // As many rounds as the most warps would take, with no more warps than that needs.
  const int64_t classes = std::max<int64_t>(1, arguments.classes);
  const int64_t rounds = ceil_div(classes, kMaxWarps);
  return {Variant::kWarp, static_cast<unsigned>(ceil_div(classes, rounds)) * kWarp,
          arguments.batch};
}

template <typename T>
cudaError_t launch_class_margins(const ClassMarginArguments& arguments,
                                 const LaunchOptions& options, cudaStream_t stream) {
  using Task = ClassMarginTask;
  static KernelMemory memory;
  if (arguments.batch == 0) return cudaSuccess;
  const int64_t packs = arguments.grad.size * static_cast<int64_t>(sizeof(T)) / 16;
  if (options.cluster_size > 1 || !channels_fit(arguments.grad.channels) ||
      packs > INT32_MAX - 16 * static_cast<int64_t>(kMaxThreads)) {  // see RowSlice
    return cudaErrorInvalidValue;
  }
  const auto kernels = kernels_of<Task>("class_margins", memory, [](auto variant) -> Kernel<Task> {
    if constexpr (!has_kernel<T>(variant.value, RowUse::kRead))
      return nullptr;
    else
      return class_margins_kernel<T, variant.value>;
  });
  int device = 0;
  DeviceTraits traits;
  cudaError_t error = current_device(&device, &traits);
  if (error != cudaSuccess) return error;
  const ClassMarginPlan plan = plan_class_margins<T>(arguments, traits, options.variant);
  const Variant variant = options.variant == Variant::kAuto ? plan.variant : options.variant;
  const Kernel<Task> kernel = kernels.of[static_cast<int>(variant)];
  if (kernel == nullptr) return cudaErrorInvalidValue;
  int resident = 0;
  error = memory.resident(reinterpret_cast<const void*>(kernel), variant, device, traits,
                          plan.threads, 0, 1, &resident);
  if (error != cudaSuccess) return error;
  Task task{arguments, false, 0};
  for (int p = 0; p < arguments.norms; ++p) {
    task.any_general |= arguments.norm[p].norm == Norm::kGeneral;
  }
  if (variant == Variant::kBlock) {
    error = next_ticket(stream, &task.ticket);
    if (error != cudaSuccess) return error;
  }
  const auto blocks = static_cast<unsigned>(
      std::max<int64_t>(1, std::min<int64_t>(plan.units, std::max(resident, 1))));
  if (options.report != nullptr) {
    *options.report = {kernels.name, variant, 1, plan.threads, blocks, 0};
  }
  return simt::launch(kernel,
                      simt::Config{dim3(blocks), dim3(plan.threads), 0, 1, stream, kernels.name},
                      task, LaunchShape());
}

}  // namespace

cudaError_t class_margins(const ClassMarginArguments& arguments, const LaunchOptions& options,
                          cudaStream_t stream) {
  return for_type(arguments.grad.dtype, [&](auto type) {
    return launch_class_margins<typename decltype(type)::type>(arguments, options, stream);
  });
}

}  // namespace margin::cuda
