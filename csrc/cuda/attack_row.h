// The rows of one sample of an attack step: what is loaded of them at a time, and what each element
// becomes (core/attack.h).
#pragma once

#include "core/attack.h"
#include "cuda/group.h"
#include "cuda/row_pass.h"

namespace margin::cuda {

template <typename Acc>
struct AttackTask {
  AttackArguments arguments;
  bool packed;  // all rows are whole packs on 16-byte boundaries, and no pack spans two channels
  // Of whatever differs by channel; 1: nothing does.
  int channel_count;
  int channel_stride;
  Acc q;
  Acc p;  // of a norm that shrinks
};

// A thread's way along its parts, and what their channel says. The channels are found by addition,
// as in GeneralPath.
template <typename Acc>
class ChannelWalk {
 public:
  Acc factor, inverse, low, high;

  // Starts at element `first`; step() goes `step` elements forward.
  MARGIN_DEVICE ChannelWalk(const AttackTask<Acc>& task, int64_t first, int64_t step)
      : task_(task) {
    if (task_.channel_count > 1) {
      const int64_t count = task_.channel_count, stride = task_.channel_stride;
      within_ = static_cast<int>(first % stride);
      channel_ = static_cast<int>(first / stride % count);
      step_within_ = static_cast<int>(step % stride);
      step_channel_ = static_cast<int>(step / stride % count);
    }
    load();
  }

  MARGIN_DEVICE void step() {
    if (task_.channel_count == 1) return;
    within_ += step_within_;
    const int before = channel_;
    channel_ += step_channel_;
    if (within_ >= task_.channel_stride) {
      within_ -= task_.channel_stride;
      ++channel_;
    }
    if (channel_ >= task_.channel_count) channel_ -= task_.channel_count;
    if (channel_ != before) load();
  }

 private:
  MARGIN_DEVICE void load() {
    factor = value_of(task_.arguments.grad.channels, Acc(1));
    inverse = Acc(1) / factor;
    low = value_of(task_.arguments.low, minus_infinity<Acc>());
    high = value_of(task_.arguments.high, -minus_infinity<Acc>());
  }
  MARGIN_DEVICE Acc value_of(const ChannelScale& channels, Acc none) const {
    if (channels.scale == nullptr) return none;
    return static_cast<const Acc*>(channels.scale)[channels.count == 1 ? 0 : channel_];
  }

  const AttackTask<Acc>& task_;
  int within_ = 0;
  int channel_ = 0;
  int step_within_ = 0;
  int step_channel_ = 0;
};

// The rows of one sample, V elements at a time: a pack, or one element.
template <typename T, int V>
class AttackRow {
 public:
  using Acc = AccOf<T>;
  using Bits = std::conditional_t<V == 1, T, uint4>;  // of a part
  using Number = std::conditional_t<V == 1, int64_t, unsigned>;
  // What is loaded of a part at a time. Where there is no center or gradient, x is loaded in its
  // place: a condition for each load would cost more.
  struct Part {
    Bits x, center, grad;
  };
  // The parts in flight at a time.
  static constexpr int kGradients = V == 1 ? 1 : 4;
  static constexpr int kParts = V == 1 ? 1 : 2;

  MARGIN_DEVICE AttackRow(const AttackTask<Acc>& task, int64_t i)
      : task_(task),
        has_center_(task.arguments.center != nullptr && task.arguments.radius != nullptr),
        has_grad_(task.arguments.grad.data != nullptr),
        x_(static_cast<const T*>(task.arguments.x) + i * task.arguments.x_stride),
        center_(has_center_ ? static_cast<const T*>(task.arguments.center) +
                                  i * task.arguments.center_stride
                            : x_),
        grad_(has_grad_ ? static_cast<const T*>(task.arguments.grad.data) +
                              i * task.arguments.grad.batch_stride
                        : x_),
        out_(static_cast<T*>(task.arguments.out) + i * task.arguments.out_stride) {}

  // visit(s f g) for every part that belongs to this thread; f: the factor of a second pass.
  template <typename Group, typename Visit>
  MARGIN_DEVICE void for_gradients(const Group& group, Acc factor, const Visit& visit) const {
    for_parts<kGradients, Bits>(
        group, [&](Number i) { return load(grad_, i); },
        [&](Number, const Bits& bits, const ChannelWalk<Acc>& channel) {
          Acc g[V];
          expand(bits, g);
#pragma unroll
          for (int k = 0; k < V; ++k) g[k] = g[k] * factor * channel.factor;
          visit(g);
        });
  }

  // visit(d) for every part that belongs to this thread, d of core/attack.h.
  template <Norm norm, typename Group, typename Visit>
  MARGIN_DEVICE void for_moved(const Direction<Acc>& direction, const Group& group,
                               const Visit& visit) const {
    for_parts<kParts, Part>(
        group, [&](Number i) { return load(i); },
        [&](Number, const Part& part, const ChannelWalk<Acc>& channel) {
          Acc d[V];
          move<norm>(direction, part, channel, d);
          visit(d);
        });
  }

  template <Norm norm, typename Group>
  MARGIN_DEVICE void write(const Direction<Acc>& direction, const Projection<Acc>& projection,
                           const Group& group) const {
    for_parts<kParts, Part>(
        group, [&](Number i) { return load(i); },
        [&](Number i, const Part& part, const ChannelWalk<Acc>& channel) {
          Acc d[V], start[V];
          move<norm>(direction, part, channel, d);
          expand(part.center, start);
#pragma unroll
          for (int k = 0; k < V; ++k) {
            const Acc offset = channel.factor * project_at<norm>(projection, d[k]);
            d[k] = clamp_to(start[k] + offset, channel.low, channel.high);
          }
          store(i, d);
        });
  }

  template <typename Group>
  MARGIN_DEVICE void write_nan(const Group& group) const {
    for_parts<1, Bits>(
        group, [](Number) { return Bits{}; },
        [&](Number i, const Bits&, const ChannelWalk<Acc>&) {
          Acc d[V];
#pragma unroll
          for (int k = 0; k < V; ++k) d[k] = not_a_number<Acc>();
          store(i, d);
        });
  }

 private:
  // load(i) for several parts, then visit(i, what was loaded, channel) for each.
  template <int kBatch, typename Loaded, typename Group, typename Load, typename Visit>
  MARGIN_DEVICE void for_parts(const Group& group, const Load& load, const Visit& visit) const {
    const Number parts = static_cast<Number>(task_.arguments.grad.size / V);
    const Number step = group.threads() * group.ranks();
    const Number first = group.threads() * group.rank() + group.thread();
    ChannelWalk<Acc> channel(task_, static_cast<int64_t>(first) * V,
                             static_cast<int64_t>(step) * V);
#pragma unroll 1
    for (Number start = first; start < parts; start += kBatch * step) {
      Loaded loaded[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        loaded[u] = Loaded{};
        if (start + u * step < parts) loaded[u] = load(start + u * step);
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (start + u * step >= parts) break;
        visit(start + u * step, loaded[u], channel);
        channel.step();
      }
    }
  }

  // d of core/attack.h
  template <Norm norm>
  MARGIN_DEVICE void move(const Direction<Acc>& direction, const Part& part,
                          const ChannelWalk<Acc>& channel, Acc (&d)[V]) const {
    if (!has_grad_) {
#pragma unroll
      for (int k = 0; k < V; ++k) d[k] = Acc(0);
    } else {
      expand(part.grad, d);
      Direction<Acc> along = direction;
      Acc first = 1;
      // The unit of such a norm is the factor of a second pass, which comes before anything else.
      if constexpr (may_need_second_pass(norm)) {
        first = direction.unit;
        along.unit = Acc(1);
      }
#pragma unroll
      for (int k = 0; k < V; ++k) {
        d[k] = direction_at<norm>(along, d[k] * first * channel.factor);
      }
    }
    if (!has_center_) return;
    Acc x[V], center[V];
    expand(part.x, x);
    expand(part.center, center);
#pragma unroll
    for (int k = 0; k < V; ++k) d[k] = (x[k] + channel.factor * d[k] - center[k]) * channel.inverse;
  }

  MARGIN_DEVICE Part load(Number i) const {
    return {load(x_, i), load(center_, i), load(grad_, i)};
  }
  MARGIN_DEVICE static Bits load(const T* row, Number i) {
    if constexpr (V == 1) {
      return row[i];
    } else {
      return load_reused(reinterpret_cast<const uint4*>(row) + i);
    }
  }
  MARGIN_DEVICE static void expand(const Bits& bits, Acc (&x)[V]) {
    if constexpr (V == 1) {
      x[0] = Format<T>::widen(bits);
    } else {
      Format<T>::unpack(bits, x);
    }
  }
  MARGIN_DEVICE void store(Number i, const Acc (&x)[V]) const {
    if constexpr (V == 1) {
      out_[i] = Format<T>::narrow(x[0]);
    } else {
      store_streaming(reinterpret_cast<uint4*>(out_) + i, Format<T>::pack(x));
    }
  }

  const AttackTask<Acc>& task_;
  bool has_center_;
  bool has_grad_;
  const T* x_;
  const T* center_;
  const T* grad_;
  T* out_;
};

}  // namespace margin::cuda
