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
        center_(static_cast<const T*>(arguments.center) + i * arguments.center_stride),
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
    Acc center[V], g[V];
    load(x_, j, d);
    load(center_, j, center);
    gradient(j, s, g);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      d[k] = (d[k] - center[k]) / s + direction_at<norm>(direction, g[k]);
    }
  }

  template <Norm norm>
  MARGIN_DEVICE void write(const Direction<Acc>& direction, const Projection<Acc>& projection,
                           int64_t j) const {
    Acc d[V], center[V];
    const Acc s = factor(j);
    moved<norm>(direction, j, s, d);
    load(center_, j, center);
    const Acc low = value_of(arguments_.low, j, minus_infinity<Acc>());
    const Acc high = value_of(arguments_.high, j, -minus_infinity<Acc>());
#pragma unroll
    for (int k = 0; k < V; ++k) {
      d[k] = clamp_to(center[k] + s * project_at<norm>(projection, d[k]), low, high);
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

template <int V, typename T, Norm norm, typename Group, typename Served>
MARGIN_DEVICE void attack_sample(const AttackTask<AccOf<T>>& task, int64_t i, Group& group,
                                 const Served& served) {
  using Acc = AccOf<T>;
  const AttackArguments& arguments = task.arguments;
  const AttackRow<T, V> row(arguments, i);
  const auto of_warp = [&](const NormState<Acc>& s) { return norm_of_warp(served, s); };

  NormState<Acc> state;
  row.for_parts(group, [&](int64_t j) {
    Acc g[V];
    row.gradient(j, row.factor(j), g);
#pragma unroll
    for (int k = 0; k < V; ++k) norm_add<norm>(state, g[k], task.q);
  });
  state = group.reduce(state, of_warp);
  const Acc value = norm_value<norm>(state, task.q);
  if (is_nan(value)) {
    row.for_parts(group, [&](int64_t j) { row.write_nan(j); });
    return;
  }
  const Direction<Acc> direction =
      make_direction<norm>(state, value, static_cast<const Acc*>(arguments.length)[i], task.q);

  Projection<Acc> projection{static_cast<const Acc*>(arguments.radius)[i], Acc(1), Acc(0)};
  if constexpr (norm == Norm::kTwo) {
    NormState<Acc> of_moved;
    row.for_parts(group, [&](int64_t j) {
      Acc d[V];
      row.template moved<norm>(direction, j, row.factor(j), d);
#pragma unroll
      for (int k = 0; k < V; ++k) norm_add<norm>(of_moved, d[k], task.q);
    });
    const Acc length = norm_value<norm>(group.reduce(of_moved, of_warp), task.q);
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
      if constexpr (is_attackable(norm.value)) {
        if (task.packed) {
          attack_sample<kPackSize<T>, T, norm.value>(task, i, group, served);
        } else {
          attack_sample<1, T, norm.value>(task, i, group, served);
        }
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
  if (!is_attackable(arguments.norm.norm)) return cudaErrorInvalidValue;
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
  const Task task{arguments, packed, static_cast<AccOf<T>>(arguments.norm.q)};
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
