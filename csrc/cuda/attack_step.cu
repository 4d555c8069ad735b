// attack_step: one step of an attack, its projection to the ball and to the data range, in one
// launch (core/attack.h). Nothing is kept of a row: the passes after the first find it in the
// cache.
#include "core/attack.h"
#include "cuda/attack_row.h"
#include "cuda/group.h"
#include "cuda/launch.h"
#include "cuda/row_pass.h"

namespace margin::cuda {
namespace {

template <typename Acc>
MARGIN_DEVICE SumAbove<Acc> sums_of_warp(const SumAbove<Acc>& sums) {
  return {sum_of_warp(sums.sum), sum_of_warp(sums.count)};
}

// The number of magnitudes that are at least each of three thresholds.
struct Counts {
  unsigned first = 0;
  unsigned second = 0;
  unsigned third = 0;
};

MARGIN_DEVICE Counts sums_of_warp(const Counts& counts) {
  return {sum_of_warp(counts.first), sum_of_warp(counts.second), sum_of_warp(counts.third)};
}

// Where the k largest magnitudes of a row without NaN begin. Magnitudes have the order of their
// bits, so it is found from the highest bits on, two at a time, until as many as k lie above. Each
// pass reads the row again, mostly from the cache.
template <int V, typename T, typename Group>
MARGIN_DEVICE Steepest<AccOf<T>> find_steepest(const AttackRow<T, V>& row, int64_t k,
                                               Group& group) {
  using Acc = AccOf<T>;
  using Bits = std::conditional_t<std::is_same_v<Acc, double>, uint64_t, uint32_t>;
  Steepest<Acc> found;
  Bits prefix = 0;
  constexpr int kTop = 8 * sizeof(Acc) - 2;
#pragma unroll 1
  for (int shift = kTop; shift >= 0 && found.count != k; shift -= 2) {
    const auto threshold = [&](int digit) {
      return bit_cast<Acc>(prefix | static_cast<Bits>(digit) << shift);
    };
    const Acc first = threshold(1), second = threshold(2), third = threshold(3);
    Counts counts;
    row.for_gradients(group, Acc(1), [&](const Acc(&g)[V]) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const Acc size = absolute(g[e]);
        counts.first += size >= first;
        counts.second += size >= second;
        counts.third += size >= third;
      }
    });
    counts = group.reduce(counts, [](const Counts& c) { return sums_of_warp(c); });
    // The highest bit is that of the sign, so the first two are at most 01.
    const int digit = shift != kTop && counts.third >= k    ? 3
                      : shift != kTop && counts.second >= k ? 2
                      : counts.first >= k                   ? 1
                                                            : 0;
    if (digit == 0) continue;
    prefix |= static_cast<Bits>(digit) << shift;
    found = {bit_cast<Acc>(prefix), digit == 3   ? counts.third
                                    : digit == 2 ? counts.second
                                                 : counts.first};
  }
  return found;
}

template <Norm norm, int V, typename T, typename Group, typename Served>
MARGIN_DEVICE Projection<AccOf<T>> find_projection(const AttackTask<AccOf<T>>& task,
                                                   const AttackRow<T, V>& row,
                                                   const Direction<AccOf<T>>& direction, int64_t i,
                                                   Group& group, const Served& served) {
  using Acc = AccOf<T>;
  Projection<Acc> projection{Range<Acc>::infinity(), Acc(1), Acc(0)};  // P(d) = d
  const Acc* radius = static_cast<const Acc*>(task.arguments.radius);
  if (radius == nullptr) return projection;
  projection.radius = radius[i];
  if constexpr (shrinks_into_ball(norm)) {
    NormState<Acc> state;
    row.template for_moved<norm>(direction, group, [&](const Acc(&d)[V]) {
#pragma unroll
      for (int k = 0; k < V; ++k) norm_add<norm>(state, d[k], task.p);
    });
    Served in_ball = served;
    in_ball.q = task.p;
    state = group.reduce(state, [&](const NormState<Acc>& s) { return norm_of_warp(in_ball, s); });
    const Acc length = norm_value<norm>(state, task.p);
    if (length > projection.radius) projection.factor = projection.radius / length;
  } else if constexpr (norm == Norm::kMax) {
    projection.threshold = l1_threshold(projection.radius, [&](Acc threshold) {
      SumAbove<Acc> sums;
      row.template for_moved<norm>(direction, group, [&](const Acc(&d)[V]) {
#pragma unroll
        for (int k = 0; k < V; ++k) {
          const Acc size = absolute(d[k]);
          if (!(size > threshold) && !is_nan(size)) continue;
          sums.sum += size;
          sums.count += 1;
        }
      });
      return group.reduce(sums, [](const SumAbove<Acc>& s) { return sums_of_warp(s); });
    });
  }
  return projection;
}

template <int V, typename T, Norm norm, typename Group, typename Served>
MARGIN_DEVICE void attack_sample(const AttackTask<AccOf<T>>& task, int64_t i, Group& group,
                                 const Served& served) {
  using Acc = AccOf<T>;
  const AttackArguments& arguments = task.arguments;
  const AttackRow<T, V> row(task, i);
  Direction<Acc> direction{};
  if (arguments.grad.data != nullptr) {
    const auto state_times = [&](Acc factor) {
      NormState<Acc> state;
      row.for_gradients(group, factor, [&](const Acc(&g)[V]) {
#pragma unroll
        for (int k = 0; k < V; ++k) norm_add<norm>(state, g[k], task.q);
      });
      return norm_of_group(served, state, group);
    };
    NormState<Acc> state = state_times(Acc(1));
    if (const Acc again = second_pass_factor<norm>(state); again != Acc(1)) {
      state = state_times(again);  // for all threads alike
      state.extra = again;
    }
    const Acc value = norm_value<norm>(state, task.q);
    if (is_nan(value)) {
      row.write_nan(group);
      return;
    }
    const Acc length = static_cast<const Acc*>(arguments.length)[i];
    direction = make_direction<norm>(state, value, length, task.q);
    if constexpr (norm == Norm::kMax) {
      if (arguments.steepest > 1) {
        direction = steepest_direction(find_steepest(row, arguments.steepest, group),
                                       arguments.steepest, length);
      }
    }
  }
  const Projection<Acc> projection = find_projection<norm>(task, row, direction, i, group, served);
  row.template write<norm>(direction, projection, group);
}

// Warps with 16-bit rows hold more of them unfolded than the other kernels do: with a block less
// there are registers for it (it spilled on sm_120).
template <typename T, Variant variant>
inline constexpr unsigned kAttackBlocks =
    kResidentBlocks<GroupOf<variant>, T> - (sizeof(T) == 2 && variant == Variant::kWarp ? 1 : 0);

template <typename T, Variant variant>
__global__ void __launch_bounds__(GroupOf<variant>::kThreads, kAttackBlocks<T, variant>)
    attack_kernel(const __grid_constant__ AttackTask<AccOf<T>> task,
                  const __grid_constant__ LaunchShape shape) {
  using Acc = AccOf<T>;
  const ServedNorm<variant, RowUse::kRead, Acc> served{task.arguments.norm.norm, task.q};
  GroupOf<variant> group(shape);
  for (int64_t i = group.first_sample(); i < task.arguments.batch; i += group.sample_step()) {
    served.apply([&](auto norm) {
      // Powers, and float64, take longer than single loads do.
      constexpr int kPack = takes_scalars(norm.value) || sizeof(T) == 8 ? 1 : kPackSize<T>;
      if (kPack > 1 && task.packed) {
        attack_sample<kPack, T, norm.value>(task, i, group, served);
      } else {
        attack_sample<1, T, norm.value>(task, i, group, served);
      }
    });
  }
}

template <typename T>
cudaError_t launch_attack(const AttackArguments& arguments, const LaunchOptions& options,
                          cudaStream_t stream) {
  using Task = AttackTask<AccOf<T>>;
  static KernelMemory memory;
  if (arguments.batch == 0) return cudaSuccess;
  for (const ChannelScale* channels : {&arguments.grad.channels, &arguments.low, &arguments.high}) {
    if (!channels_fit(*channels)) return cudaErrorInvalidValue;
  }
  const auto kernels = kernels_of<Task>("attack_step", memory, [](auto variant) -> Kernel<Task> {
    if constexpr (!has_kernel<T>(variant.value, RowUse::kRead)) {
      return nullptr;
    } else {
      return attack_kernel<T, variant.value>;
    }
  });
  const auto aligned = [](const void* row, int64_t stride) {
    return reinterpret_cast<uintptr_t>(row) % 16 == 0 && stride % kPackSize<T> == 0;
  };
  const auto whole = [](const ChannelScale& channels) {
    return channels.scale == nullptr || channels.count == 1 || channels.stride % kPackSize<T> == 0;
  };
  const bool packed = whole(arguments.grad.channels) && whole(arguments.low) &&
                      whole(arguments.high) && arguments.grad.size % kPackSize<T> == 0 &&
                      aligned(arguments.grad.data, arguments.grad.batch_stride) &&
                      aligned(arguments.x, arguments.x_stride) &&
                      aligned(arguments.center, arguments.center_stride) &&
                      aligned(arguments.out, arguments.out_stride);
  // Of whatever differs by channel: the launcher of the op gives all of it one layout.
  ChannelScale layout;
  for (const ChannelScale* channels : {&arguments.grad.channels, &arguments.low, &arguments.high}) {
    if (channels->scale == nullptr || channels->count == 1) continue;
    const bool known = layout.count > 1;
    if (known && (channels->count != layout.count || channels->stride != layout.stride)) {
      return cudaErrorInvalidValue;
    }
    layout = *channels;
  }
  const int rows = (arguments.grad.data != nullptr) + 1 +
                   (arguments.radius != nullptr && arguments.center != nullptr);
  SampleShape shape;
  shape.batch = arguments.batch;
  shape.element_bytes = sizeof(T);
  shape.rereads = true;
  // Of all rows: so much of each sample should stay in the cache between the passes.
  shape.row_bytes = rows * arguments.grad.size * static_cast<int64_t>(sizeof(T));
  const Task task{arguments,
                  packed,
                  static_cast<int>(layout.count),
                  static_cast<int>(layout.stride),
                  static_cast<AccOf<T>>(arguments.norm.q),
                  static_cast<AccOf<T>>(threat_exponent(arguments.norm.q))};
  return launch_samples(kernels, task, shape, options, stream);
}

}  // namespace

cudaError_t attack_step(const AttackArguments& arguments, const LaunchOptions& options,
                        cudaStream_t stream) {
  return for_type(arguments.grad.dtype, [&](auto type) {
    return launch_attack<typename decltype(type)::type>(arguments, options, stream);
  });
}

}  // namespace margin::cuda
