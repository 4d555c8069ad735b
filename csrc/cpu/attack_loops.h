// The steps of an attack over a row. A part of row_kernels.cpp, compiled for each instruction set.
#pragma once

#include "core/attack.h"
#include "cpu/dispatch.h"
#include "cpu/gradient_loops.h"
#include "cpu/row_kernels.h"
#include "cpu/row_tails.h"

namespace margin::cpu::MARGIN_ISA {
namespace {

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

}  // namespace
}  // namespace margin::cpu::MARGIN_ISA
