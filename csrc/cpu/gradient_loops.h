// Norms and dual directions of rows of gradients. A part of row_kernels.cpp, compiled for each
// instruction set.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/row_tails.h"

namespace margin::cpu::MARGIN_ISA {
namespace {

// Independent accumulators, enough to hide the latency of an addition.
constexpr int kUnroll = 4;

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

template <typename T>
void scale_row(T* data, int64_t n, Acc<T> factor) {
  using V = Vector<Acc<T>>;
  int64_t j = 0;
  for (; j + V::kLanes <= n; j += V::kLanes)
    store_lanes(data + j, load_lanes(data + j) * V(factor));
  if (j < n) store_tail(data + j, load_tail(data + j, n - j) * V(factor), n - j);
}

}  // namespace
}  // namespace margin::cpu::MARGIN_ISA
