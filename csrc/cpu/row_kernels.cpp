// Compiled once for each instruction set, whose name is MARGIN_ISA. Only the table is visible
// outside this file. Nothing in it may call a template of the standard library, because the linker
// would keep one instruction set's copy of it for all.
#include "cpu/row_kernels.h"

#include "cpu/dispatch.h"
#include "cpu/lanes.h"

namespace margin::cpu::MARGIN_ISA {
namespace {

// Independent accumulators, enough to hide the latency of an addition.
constexpr int kUnroll = 4;

// A vector of the last n < kLanes elements and zeros, which are neutral for every norm.
template <typename T>
MARGIN_HD Vector<Acc<T>> load_tail(const T* x, int64_t n) {
  T padded[Vector<Acc<T>>::kLanes] = {};
  std::memcpy(padded, x, n * sizeof(T));
  return load_lanes(padded);
}

template <typename T>
MARGIN_HD void store_tail(T* out, Vector<Acc<T>> v, int64_t n) {
  T padded[Vector<Acc<T>>::kLanes];
  store_lanes(padded, v);
  std::memcpy(out, padded, n * sizeof(T));
}

// The elements of a row as they enter its norm: x_j, times scale_j where kScaled.
template <bool kScaled, typename T>
struct PlainRow {
  using V = Vector<Acc<T>>;
  const T* x;
  const Acc<T>* scale;

  MARGIN_HD V load(int64_t j) const {
    V v = load_lanes(x + j);
    if constexpr (kScaled) v = v * load_lanes(scale + j);
    return v;
  }
  // The last n < kLanes elements, and zeros.
  MARGIN_HD V load_last(int64_t j, int64_t n) const {
    V v = load_tail(x + j, n);
    if constexpr (kScaled) v = v * load_tail(scale + j, n);
    return v;
  }
};

// The same for a second pass (second_pass_factor). The factor comes first: the products with the
// scale may be what overflows.
template <bool kScaled, typename T>
struct MultipliedRow {
  using V = Vector<Acc<T>>;
  const T* x;
  const Acc<T>* scale;
  Acc<T> factor;

  MARGIN_HD V load(int64_t j) const {
    V v = load_lanes(x + j) * V(factor);
    if constexpr (kScaled) v = v * load_lanes(scale + j);
    return v;
  }
  MARGIN_HD V load_last(int64_t j, int64_t n) const {
    V v = load_tail(x + j, n) * V(factor);
    if constexpr (kScaled) v = v * load_tail(scale + j, n);
    return v;
  }
};

template <Norm norm, typename V, typename A>
MARGIN_HD void add_lanes(NormState<V>& lanes, V x, A q) {
  if constexpr (takes_scalars(norm)) {
    for (int l = 0; l < V::kLanes; ++l) {
      NormState<A> one{lanes.sum[l], lanes.extra[l]};
      norm_add<norm>(one, x[l], q);
      lanes.sum.raw[l] = one.sum;
      lanes.extra.raw[l] = one.extra;
    }
  } else {
    norm_add<norm>(lanes, x, V(q));
  }
}

// Combines the lanes' states into one, in a fixed order.
template <Norm norm, typename V, typename A>
MARGIN_HD void fold_lanes(NormState<V> (&lanes)[kUnroll], A q, NormState<A>& state) {
  if constexpr (!takes_scalars(norm)) {
    for (int u = 1; u < kUnroll; ++u) norm_combine<norm>(lanes[0], lanes[u], V(q));
  }
  for (int u = 0; u < (takes_scalars(norm) ? kUnroll : 1); ++u) {
    for (int l = 0; l < V::kLanes; ++l) {
      norm_combine<norm>(state, NormState<A>{lanes[u].sum[l], lanes[u].extra[l]}, q);
    }
  }
}

template <Norm norm, typename Row, typename A>
void accumulate_row(const Row& row, int64_t n, A q, NormState<A>& state) {
  using V = typename Row::V;
  NormState<V> lanes[kUnroll];
  int64_t j = 0;
  for (; j + kUnroll * V::kLanes <= n; j += kUnroll * V::kLanes) {
    for (int u = 0; u < kUnroll; ++u) {
      add_lanes<norm>(lanes[u], row.load(j + u * V::kLanes), q);
    }
  }
  for (; j + V::kLanes <= n; j += V::kLanes) {
    add_lanes<norm>(lanes[0], row.load(j), q);
  }
  if (j < n) add_lanes<norm>(lanes[0], row.load_last(j, n - j), q);
  fold_lanes<norm>(lanes, q, state);
}

template <typename T>
void accumulate(Norm norm, const T* x, const Acc<T>* scale, int64_t n, Acc<T> q, Acc<T> factor,
                NormState<Acc<T>>& state) {
  visit_norm(norm, [&](auto which) {
    with_flags(
        [&](auto scaled, auto once) {
          if constexpr (once.value || !may_need_second_pass(which.value)) {
            accumulate_row<which.value>(PlainRow<scaled.value, T>{x, scale}, n, q, state);
          } else {
            accumulate_row<which.value>(MultipliedRow<scaled.value, T>{x, scale, factor}, n, q,
                                        state);
          }
        },
        scale != nullptr, factor == 1);
  });
}

template <Norm norm, typename A>
MARGIN_HD Vector<A> direction_lanes(const Direction<A>& direction, Vector<A> x) {
  if constexpr (takes_scalars(norm)) {
    for (int l = 0; l < Vector<A>::kLanes; ++l) x.raw[l] = direction_at<norm>(direction, x[l]);
    return x;
  } else {
    using V = Vector<A>;
    return direction_at<norm>(
        Direction<V>{V(direction.coefficient), V(direction.unit), V(direction.last)}, x);
  }
}

template <Norm norm, bool kScaled, bool kBased, bool kNonTemporal, typename T>
void write_direction_row(const T* x, const Acc<T>* scale, const T* base, int64_t n,
                         const Direction<Acc<T>>& direction, T* out) {
  using V = Vector<Acc<T>>;
  // With scales the unit comes first here too.
  constexpr bool kUnitFirst = kScaled && may_need_second_pass(norm);
  const auto row = [&] {
    if constexpr (kUnitFirst)
      return MultipliedRow<kScaled, T>{x, scale, direction.unit};
    else
      return PlainRow<kScaled, T>{x, scale};
  }();
  Direction<Acc<T>> along = direction;
  if constexpr (kUnitFirst) along.unit = Acc<T>(1);
  // For fewer elements than a vector holds.
  const auto write_part = [&](int64_t j, int64_t count) {
    V v = direction_lanes<norm>(along, row.load_last(j, count));
    if constexpr (kScaled) v = v * load_tail(scale + j, count);
    if constexpr (kBased) v += load_tail(base + j, count);
    store_tail(out + j, v, count);
  };
  int64_t j = 0;
  if constexpr (kNonTemporal) {
    const int64_t past = reinterpret_cast<uintptr_t>(out) % kStoredBytes<T>;
    const int64_t head = past == 0 ? 0 : (kStoredBytes<T> - past) / sizeof(T);
    j = head < n ? head : n;
    if (j > 0) write_part(0, j);
  }
  for (; j + V::kLanes <= n; j += V::kLanes) {
    V v = direction_lanes<norm>(along, row.load(j));
    if constexpr (kScaled) v = v * load_lanes(scale + j);
    if constexpr (kBased) v += load_lanes(base + j);
    if constexpr (kNonTemporal) {
      store_non_temporal(out + j, v);
    } else {
      store_lanes(out + j, v);
    }
  }
  if (j < n) write_part(j, n - j);
  if constexpr (kNonTemporal) non_temporal_fence();
}

template <typename T>
void write_direction(Norm norm, const T* x, const Acc<T>* scale, const T* base, int64_t n,
                     const Direction<Acc<T>>& direction, T* out, bool non_temporal) {
  visit_norm(norm, [&](auto which) {
    with_flags(
        [&](auto scaled, auto based, auto past_caches) {
          write_direction_row<which.value, scaled.value, based.value, past_caches.value>(
              x, scale, base, n, direction, out);
        },
        scale != nullptr, base != nullptr, non_temporal);
  });
}

// whole(j) for every vector of a row of n elements, then rest(j, count) for what is left.
template <typename V, typename Whole, typename Rest>
MARGIN_HD void for_lanes(int64_t n, const Whole& whole, const Rest& rest) {
  int64_t j = 0;
  for (; j + V::kLanes <= n; j += V::kLanes) whole(j);
  if (j < n) rest(j, n - j);
}

template <Norm norm, bool kScaled, bool kCentered, typename T>
void move_row(const T* x, const T* center, const T* grad, const Acc<T>* scale, int64_t n,
              const Direction<Acc<T>>& direction, Acc<T>* moved) {
  using V = Vector<Acc<T>>;
  // As in write_direction_row, the unit comes before the scale.
  constexpr bool kUnitFirst = kScaled && may_need_second_pass(norm);
  Direction<Acc<T>> along = direction;
  if constexpr (kUnitFirst) along.unit = Acc<T>(1);
  const auto moved_by = [&](V g, V s) {
    if constexpr (kUnitFirst) g = g * V(direction.unit);
    return direction_lanes<norm>(along, kScaled ? g * s : g);
  };
  // The point is made first, as a step alone makes it.
  const auto offset = [&](V v, V from, V middle, V s) {
    const V point = from + (kScaled ? v * s : v);
    return kScaled ? (point - middle) * (V(Acc<T>(1)) / s) : point - middle;
  };
  for_lanes<V>(
      n,
      [&](int64_t j) {
        const V s = kScaled ? load_lanes(scale + j) : V(Acc<T>(1));
        V d = moved_by(load_lanes(grad + j), s);
        if constexpr (kCentered) d = offset(d, load_lanes(x + j), load_lanes(center + j), s);
        store_lanes(moved + j, d);
      },
      [&](int64_t j, int64_t rest) {
        const V s = kScaled ? load_tail(scale + j, rest) : V(Acc<T>(1));
        V d = moved_by(load_tail(grad + j, rest), s);
        if constexpr (kCentered)
          d = offset(d, load_tail(x + j, rest), load_tail(center + j, rest), s);
        store_tail(moved + j, d, rest);
      });
}

template <typename T>
void move(Norm norm, const T* x, const T* center, const T* grad, const Acc<T>* scale, int64_t n,
          const Direction<Acc<T>>& direction, Acc<T>* moved) {
  visit_norm(norm, [&](auto which) {
    with_flags(
        [&](auto scaled, auto centered) {
          move_row<which.value, scaled.value, centered.value>(x, center, grad, scale, n, direction,
                                                              moved);
        },
        scale != nullptr, center != nullptr);
  });
}

// start: the center; not kCentered: x.
template <Norm norm, bool kScaled, bool kCentered, bool kBounded, typename T>
void project_row(const Acc<T>* moved, const T* start, const Acc<T>* scale, const Acc<T>* low,
                 const Acc<T>* high, int64_t n, const Projection<Acc<T>>& projection, T* out) {
  using V = Vector<Acc<T>>;
  const V one(Acc<T>(1));
  const Projection<V> lanes{V(projection.radius), V(projection.factor), V(projection.threshold)};
  const auto placed = [&](V d, V from, V s) {
    V offset = project_at<norm>(lanes, d);
    // The way back of move_row.
    if constexpr (kScaled) offset = kCentered ? offset / (one / s) : offset * s;
    return from + offset;
  };
  for_lanes<V>(
      n,
      [&](int64_t j) {
        const V s = kScaled ? load_lanes(scale + j) : one;
        V v = placed(load_lanes(moved + j), load_lanes(start + j), s);
        if constexpr (kBounded) v = clamp_to(v, load_lanes(low + j), load_lanes(high + j));
        store_lanes(out + j, v);
      },
      [&](int64_t j, int64_t rest) {
        const V s = kScaled ? load_tail(scale + j, rest) : one;
        V v = placed(load_tail(moved + j, rest), load_tail(start + j, rest), s);
        if constexpr (kBounded)
          v = clamp_to(v, load_tail(low + j, rest), load_tail(high + j, rest));
        store_tail(out + j, v, rest);
      });
}

template <typename T>
void project(Norm norm, const Acc<T>* moved, const T* x, const T* center, const Acc<T>* scale,
             const Acc<T>* low, const Acc<T>* high, int64_t n, const Projection<Acc<T>>& projection,
             T* out) {
  visit_norm(norm, [&](auto which) {
    with_flags(
        [&](auto scaled, auto centered, auto bounded) {
          project_row<which.value, scaled.value, centered.value, bounded.value>(
              moved, centered.value ? center : x, scale, low, high, n, projection, out);
        },
        scale != nullptr, center != nullptr, low != nullptr);
  });
}

template <typename T>
SumAbove<Acc<T>> sum_above(const Acc<T>* moved, int64_t n, Acc<T> threshold) {
  using V = Vector<Acc<T>>;
  V sum(Acc<T>(0)), count(Acc<T>(0));
  const auto add = [&](V d) {
    const V size = absolute(d);
    // A NaN counts, so that the sum shows it.
    const auto counts = (size > V(threshold)) | is_nan(size);
    sum += select(counts, size, V(Acc<T>(0)));
    count += select(counts, V(Acc<T>(1)), V(Acc<T>(0)));
  };
  for_lanes<V>(
      n, [&](int64_t j) { add(load_lanes(moved + j)); },
      [&](int64_t j, int64_t rest) { add(load_tail(moved + j, rest)); });
  SumAbove<Acc<T>> total;
  for (int l = 0; l < V::kLanes; ++l) {
    total.sum += sum[l];
    total.count += count[l];
  }
  return total;
}

template <typename T>
void scale_row(T* data, int64_t n, Acc<T> factor) {
  using V = Vector<Acc<T>>;
  int64_t j = 0;
  for (; j + V::kLanes <= n; j += V::kLanes)
    store_lanes(data + j, load_lanes(data + j) * V(factor));
  if (j < n) store_tail(data + j, load_tail(data + j, n - j) * V(factor), n - j);
}

template <typename T>
void load_logits(const T* z, int64_t classes, Acc<T>* buffer) {
  using V = Vector<Acc<T>>;
  int64_t k = 0;
  for (; k + V::kLanes <= classes; k += V::kLanes) store_lanes(buffer + k, load_lanes(z + k));
  if (k < classes) {
    store_lanes(buffer + k, load_tail(z + k, classes - k));
    k += V::kLanes;
  }
  // Padding that changes no maximum and no sum of exponentials.
  for (int64_t p = classes; p < k; ++p) buffer[p] = minus_infinity<Acc<T>>();
}

template <typename A>
RunnerUp<A> find_runner_up(A* buffer, int64_t classes, int64_t target) {
  using V = Vector<A>;
  const A target_logit = buffer[target];
  buffer[target] = minus_infinity<A>();
  V largest(minus_infinity<A>());
  Mask<A> nan = {};
  for (int64_t k = 0; k < classes; k += V::kLanes) {
    const V z = V::load(buffer + k);
    largest = select(z > largest, z, largest);
    nan = nan | is_nan(z);
  }
  RunnerUp<A> found;
  found.value = largest[0];
  for (int l = 1; l < V::kLanes; ++l) {
    if (largest[l] > found.value) found.value = largest[l];
  }
  const bool any_nan = nan.any();
  for (int64_t k = 0; k < classes; ++k) {
    // The target's own entry is -inf now and must not be taken for a tie.
    if (k != target && (any_nan ? is_nan(buffer[k]) : buffer[k] == found.value)) {
      found.value = buffer[k];
      found.index = k;
      break;
    }
  }
  buffer[target] = target_logit;
  return found;
}

// sum_k w_k (max - z_k), without one class (-1: with all).
template <typename A>
A smoothing_sum(const A* buffer, int64_t classes, int64_t without, A max, const A* class_weight) {
  SumOverClasses<A> sum;
  for (int64_t k = 0; k < classes; ++k) {
    if (k != without)
      sum.add((class_weight == nullptr ? A(1) : class_weight[k]) * (max - buffer[k]));
  }
  return sum.total();
}

// Leaves e = exp(z - max) in the buffer, and returns its sum.
template <typename A>
A exponentiate(A* buffer, int64_t classes, A max) {
  using V = Vector<A>;
  V sum(A(0));
  for (int64_t k = 0; k < classes; k += V::kLanes) {
    const V e = exponential(V::load(buffer + k) - V(max));
    e.store(buffer + k);
    sum += e;
  }
  A total = 0;
  for (int l = 0; l < V::kLanes; ++l) total += sum[l];
  return total;
}

template <typename A>
LogitRow<A> reduce_logits(A* buffer, int64_t classes, int64_t target, int64_t nearest,
                          bool smoothing, const A* class_weight) {
  LogitRow<A> row;
  row.target = buffer[target];
  row.runner_up = find_runner_up(buffer, classes, target);
  row.nearest_class = nearest < 0 ? row.runner_up.index : nearest;
  row.nearest = buffer[row.nearest_class];
  A max = row.runner_up.value;
  if (row.target > max || is_nan(row.target)) max = row.target;
  if (smoothing) row.smoothing_sum = smoothing_sum(buffer, classes, -1, max, class_weight);
  row.log_sum_exp = {max, exponentiate(buffer, classes, max)};
  return row;
}

template <typename A>
LogitRow<A> reduce_others(A* buffer, int64_t classes, int64_t target, bool smoothing,
                          const A* class_weight) {
  LogitRow<A> row;
  row.target = buffer[target];
  row.runner_up = find_runner_up(buffer, classes, target);
  const A max = row.runner_up.value;
  if (smoothing) row.smoothing_sum = smoothing_sum(buffer, classes, target, max, class_weight);
  buffer[target] = minus_infinity<A>();
  // Where all others are masked, -inf less -inf would be NaN.
  const bool masked = max == minus_infinity<A>();
  row.log_sum_exp = {max, exponentiate(buffer, classes, masked ? A(0) : max)};
  return row;
}

template <typename T>
void write_logit_gradient(const Acc<T>* e, const Acc<T>* class_weight, int64_t classes,
                          const LogitGradient<Acc<T>>& gradient, T* out) {
  using A = Acc<T>;
  using V = Vector<A>;
  const bool weighted = class_weight != nullptr && gradient.smoothing != 0;
  int64_t k = 0;
  for (; k + V::kLanes <= classes; k += V::kLanes) {
    const V weight = weighted ? V::load(class_weight + k) : V(A(1));
    store_lanes(out + k, logit_gradient_common(gradient, V::load(e + k), weight));
  }
  if (k < classes) {
    const V weight = weighted ? load_tail(class_weight + k, classes - k) : V(A(1));
    store_tail(out + k, logit_gradient_common(gradient, V::load(e + k), weight), classes - k);
  }
  const int64_t specials[] = {gradient.target, gradient.nearest};
  for (const int64_t special : specials) {
    if (special < 0) continue;
    const A weight = weighted ? class_weight[special] : A(1);
    store_tail(out + special, V(logit_gradient_at(gradient, e[special], special, weight)), 1);
  }
}

template <typename T>
constexpr RowKernels<T> kRowKernels = {
    accumulate<T>,  write_direction<T>,      move<T>,      project<T>, sum_above<T>,
    load_logits<T>, write_logit_gradient<T>, scale_row<T>,
};

template <typename A>
constexpr LogitKernels<A> kLogitKernels = {reduce_logits<A>, reduce_others<A>, find_runner_up<A>};

#define MARGIN_STRINGIFY_(x) #x
#define MARGIN_STRINGIFY(x) MARGIN_STRINGIFY_(x)

}  // namespace

extern const KernelSet kKernelSet;
const KernelSet kKernelSet = {
    MARGIN_STRINGIFY(MARGIN_ISA), kRowKernels<Float16>, kRowKernels<BFloat16>, kRowKernels<float>,
    kRowKernels<double>,          kLogitKernels<float>, kLogitKernels<double>,
};

}  // namespace margin::cpu::MARGIN_ISA
