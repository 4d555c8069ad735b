// attack_step: one step of an attack, its projection to the ball and to the data range, in one
// launch (core/attack.h). Nothing is kept of a row: the passes after the first find it in the
// cache.
#include "core/attack.h"
#include "cuda/group.h"
#include "cuda/launch.h"
#include "cuda/row_pass.h"

namespace margin::cuda {
namespace {

template <typename Acc>
struct AttackTask {
  AttackArguments arguments;
  bool packed;  // all rows are whole packs on 16-byte boundaries, and no pack spans two channels
  Acc q;
  Acc p;  // of a norm that shrinks
};

// Called, because its 64-bit divisions are long.
template <typename Acc>
MARGIN_DEVICE_CALL Acc channel_value(const ChannelScale& channels, int64_t element) {
  return channel_factor<Acc>(channels, element);
}

// The rows of one sample, V elements at a time: a pack, or one element.
template <typename T, int V>
class AttackRow {
 public:
  using Acc = AccOf<T>;

  MARGIN_DEVICE AttackRow(const AttackArguments& arguments, int64_t i)
      : arguments_(arguments),
        x_(static_cast<const T*>(arguments.x) + i * arguments.x_stride),
        center_(arguments.center == nullptr || arguments.radius == nullptr
                    ? nullptr
                    : static_cast<const T*>(arguments.center) + i * arguments.center_stride),
        grad_(static_cast<const T*>(arguments.grad.data) + i * arguments.grad.batch_stride),
        out_(static_cast<T*>(arguments.out) + i * arguments.out_stride) {}

  // visit(j) for the first element of every part that belongs to this thread.
  template <typename Group, typename Visit>
  MARGIN_DEVICE void for_parts(const Group& group, const Visit& visit) const {
    const int64_t step = static_cast<int64_t>(group.threads()) * group.ranks() * V;
    const int64_t first =
        (static_cast<int64_t>(group.threads()) * group.rank() + group.thread()) * V;
#pragma unroll 1
    for (int64_t j = first; j < arguments_.grad.size; j += step) visit(j);
  }

  // The factor of the elements from j on.
  MARGIN_DEVICE Acc factor(int64_t j) const {
    return value_of(arguments_.grad.channels, j, Acc(1));
  }

  // s * g
  MARGIN_DEVICE void gradient(int64_t j, Acc s, Acc (&g)[V]) const {
    load(grad_, j, g);
#pragma unroll
    for (int k = 0; k < V; ++k) g[k] *= s;
  }

  // d of core/attack.h
  template <Norm norm>
  MARGIN_DEVICE void moved(const Direction<Acc>& direction, int64_t j, Acc s, Acc (&d)[V]) const {
    if (arguments_.grad.data == nullptr) {
#pragma unroll
      for (int k = 0; k < V; ++k) d[k] = Acc(0);
    } else {
      gradient(j, s, d);
#pragma unroll
      for (int k = 0; k < V; ++k) d[k] = direction_at<norm>(direction, d[k]);
    }
    if (center_ == nullptr) return;
    Acc x[V], center[V];
    load(x_, j, x);
    load(center_, j, center);
#pragma unroll
    for (int k = 0; k < V; ++k) d[k] = (x[k] + s * d[k] - center[k]) / s;
  }

  template <Norm norm>
  MARGIN_DEVICE void write(const Direction<Acc>& direction, const Projection<Acc>& projection,
                           int64_t j) const {
    Acc d[V], start[V];
    const Acc s = factor(j);
    moved<norm>(direction, j, s, d);
    load(center_ == nullptr ? x_ : center_, j, start);
    const Acc low = value_of(arguments_.low, j, minus_infinity<Acc>());
    const Acc high = value_of(arguments_.high, j, -minus_infinity<Acc>());
#pragma unroll
    for (int k = 0; k < V; ++k) {
      d[k] = clamp_to(start[k] + s * project_at<norm>(projection, d[k]), low, high);
    }
    store(j, d);
  }

  MARGIN_DEVICE void write_nan(int64_t j) const {
    Acc d[V];
#pragma unroll
    for (int k = 0; k < V; ++k) d[k] = not_a_number<Acc>();
    store(j, d);
  }

 private:
  MARGIN_DEVICE static void load(const T* row, int64_t j, Acc (&x)[V]) {
    if constexpr (V == 1) {
      x[0] = Format<T>::widen(row[j]);
    } else {
      Format<T>::unpack(load_reused(reinterpret_cast<const uint4*>(row + j)), x);
    }
  }
  MARGIN_DEVICE void store(int64_t j, const Acc (&x)[V]) const {
    if constexpr (V == 1) {
      out_[j] = Format<T>::narrow(x[0]);
    } else {
      store_streaming(reinterpret_cast<uint4*>(out_ + j), Format<T>::pack(x));
    }
  }
  // The channel's value of the elements from j on. A part never spans two channels.
  MARGIN_DEVICE static Acc value_of(const ChannelScale& channels, int64_t j, Acc none) {
    return channels.scale == nullptr ? none : channel_value<Acc>(channels, j);
  }

  const AttackArguments& arguments_;
  const T* x_;
  const T* center_;
  const T* grad_;
  T* out_;
};

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
    row.for_parts(group, [&](int64_t j) {
      Acc g[V];
      row.gradient(j, row.factor(j), g);
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
    row.for_parts(group, [&](int64_t j) {
      Acc d[V];
      row.template moved<norm>(direction, j, row.factor(j), d);
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
      row.for_parts(group, [&](int64_t j) {
        Acc d[V];
        row.template moved<norm>(direction, j, row.factor(j), d);
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
  const AttackRow<T, V> row(arguments, i);
  Direction<Acc> direction{};
  if (arguments.grad.data != nullptr) {
    NormState<Acc> state;
    row.for_parts(group, [&](int64_t j) {
      Acc g[V];
      row.gradient(j, row.factor(j), g);
#pragma unroll
      for (int k = 0; k < V; ++k) norm_add<norm>(state, g[k], task.q);
    });
    state = group.reduce(state, [&](const NormState<Acc>& s) { return norm_of_warp(served, s); });
    const Acc value = norm_value<norm>(state, task.q);
    if (is_nan(value)) {
      row.for_parts(group, [&](int64_t j) { row.write_nan(j); });
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
  row.for_parts(group, [&](int64_t j) { row.template write<norm>(direction, projection, j); });
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
  SampleShape shape;
  shape.batch = arguments.batch;
  shape.row_bytes = arguments.grad.size * static_cast<int64_t>(sizeof(T));
  const Task task{arguments, packed, static_cast<AccOf<T>>(arguments.norm.q),
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
