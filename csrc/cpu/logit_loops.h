// Reductions over the logits of a sample, and their gradients. A part of row_kernels.cpp, compiled
// for each instruction set.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/row_kernels.h"
#include "cpu/row_tails.h"

namespace margin::cpu::MARGIN_ISA {
namespace {

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

// Reduces up to a vector of samples: lane l of every vector belongs to row l. others: as
// reduce_others does, without the target's class.
template <bool others, typename A>
void reduce_lanes(A* buffer, int64_t stride, int64_t classes, int64_t count, const int64_t* target,
                  const int64_t* nearest, LogitRow<A>* rows) {
  using V = Vector<A>;
  const V lowest(minus_infinity<A>());
  A logits[kFewClasses * V::kLanes], labels[V::kLanes] = {}, label_logits[V::kLanes] = {};
  for (int64_t l = 0; l < V::kLanes; ++l) {
    const A* row = buffer + (l < count ? l : 0) * stride;
    for (int64_t k = 0; k < classes; ++k) logits[k * V::kLanes + l] = row[k];
    if (l < count) labels[l] = static_cast<A>(target[l]);
    label_logits[l] = row[static_cast<int64_t>(labels[l])];
  }
  const V label = V::load(labels);
  const auto other = [&](int64_t k) {
    return select(V(static_cast<A>(k)) == label, lowest, V::load(logits + k * V::kLanes));
  };

  // The first class of the largest logit; the first NaN wins.
  V largest = lowest;
  V index = select(label == V(A(0)), V(A(1)), V(A(0)));
  for (int64_t k = 0; k < classes; ++k) {
    const V z = other(k);
    const auto leads = (z > largest) | (is_nan(z) & (largest == largest));
    largest = select(leads, z, largest);
    index = select(leads, V(static_cast<A>(k)), index);
  }
  V max = largest;
  if constexpr (!others) {
    const V z = V::load(label_logits);
    max = select((z > max) | is_nan(z), z, max);
  }
  // Where all others are masked, -inf less -inf would be NaN.
  const V shift = others ? select(max == lowest, V(A(0)), max) : max;

  // The order of the sum is that of exponentiate.
  V sum(A(0));
  for (int64_t first = 0; first < V::kLanes && first < classes; ++first) {
    V part(A(0));
    for (int64_t k = first; k < classes; k += V::kLanes) {
      const V z = others ? other(k) : V::load(logits + k * V::kLanes);
      const V e = exponential(z - shift);
      e.store(logits + k * V::kLanes);
      part += e;
    }
    sum += part;
  }
  for (int64_t l = 0; l < count; ++l) {
    A* const row = buffer + l * stride;
    LogitRow<A>& found = rows[l];
    found = {};
    found.target = label_logits[l];
    found.runner_up.value = largest[l];
    found.runner_up.index = static_cast<int64_t>(index[l]);
    found.log_sum_exp = {max[l], sum[l]};
    if constexpr (!others) {
      found.nearest_class = nearest[l] < 0 ? found.runner_up.index : nearest[l];
      found.nearest = row[found.nearest_class];
    }
    for (int64_t k = 0; k < classes; ++k) row[k] = logits[k * V::kLanes + l];
  }
}

template <bool others, typename A>
void reduce_together(A* buffer, int64_t stride, int64_t classes, int64_t count,
                     const int64_t* target, const int64_t* nearest, LogitRow<A>* rows) {
  constexpr int64_t kLanes = Vector<A>::kLanes;
  for (int64_t first = 0; first < count; first += kLanes) {
    const int64_t lanes = first + kLanes < count ? kLanes : count - first;
    reduce_lanes<others>(buffer + first * stride, stride, classes, lanes, target + first,
                         nearest + first, rows + first);
  }
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

}  // namespace
}  // namespace margin::cpu::MARGIN_ISA
