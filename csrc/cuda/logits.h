// The passes over one sample's logits z [C], by the threads that share its row. In a cluster all
// blocks share the classes: the norm needs an exchange anyway, which carries their partial results
// too, and no block becomes a straggler where C is large.
#pragma once

#include "core/sample_loss.h"
#include "cuda/group.h"
#include "cuda/numeric.h"

namespace margin::cuda {

// A sample's label, read before its logits.
template <typename Acc>
struct Label {
  int target = -1;   // -1 where the label is ignored or bad
  int nearest = -1;  // -1 where it is ignored or bad, or where the runner-up is meant
  bool ignored = false;
  Acc target_logit = 0;  // NaN where there is none

  // A class out of range, or nearest == target. Device code cannot throw, so the sample becomes
  // NaN.
  MARGIN_DEVICE bool bad() const { return target < 0 && !ignored; }
};

// One sample's logits. Launchers check that the number of classes fits 32 bits.
template <typename Acc>
class Logits {
 public:
  MARGIN_DEVICE Logits(const LogitRows& rows, int64_t sample) : rows_(rows), sample_(sample) {}

  MARGIN_DEVICE int classes() const { return static_cast<int>(rows_.classes); }
  MARGIN_DEVICE Acc at(int k) const {
    return load_as<Acc>(rows_.dtype, rows_.data, sample_ * rows_.batch_stride + k);
  }

  // Asks for the logits of the sample `samples` further on.
  MARGIN_DEVICE void prefetch_next(int64_t samples) const {
    const int64_t size = size_of(rows_.dtype);
    prefetch(static_cast<const char*>(rows_.data) + (sample_ + samples) * rows_.batch_stride * size,
             rows_.classes * size);
  }

  // In two steps: what start() reads is in flight until label() and for_each() use it. A thread
  // that has only one class, `first`, keeps its logit for both passes.
  MARGIN_DEVICE void start(int first, int step) {
    target_ = rows_.target[sample_];
    nearest_ = rows_.nearest == nullptr ? -1 : rows_.nearest[sample_];
    if (classes() <= step && first < classes()) {
      kept_.load(rows_.dtype, rows_.data, sample_ * rows_.batch_stride + first);
    }
  }
  MARGIN_DEVICE bool ignored() const { return target_ == rows_.ignore_index; }
  MARGIN_DEVICE Label<Acc> label() const {
    const auto in_range = [&](int64_t k) { return k >= 0 && k < rows_.classes; };
    Label<Acc> label;
    label.ignored = ignored();
    const bool good = !label.ignored && in_range(target_) &&
                      (rows_.nearest == nullptr || (in_range(nearest_) && nearest_ != target_));
    label.target = good ? static_cast<int>(target_) : -1;
    label.nearest = good ? static_cast<int>(nearest_) : -1;
    label.target_logit = good ? at(label.target) : not_a_number<Acc>();
    return label;
  }

  // After start(): calls visit(k, z_k) for every step-th class from `first` on.
  template <typename Visit>
  MARGIN_DEVICE void for_each(int first, int step, const Visit& visit) const {
    constexpr int kUnroll = 8;  // loads in flight
    const Dtype dtype = rows_.dtype;
    if (classes() <= step) {
      if (first < classes()) visit(first, kept_.value(dtype));
      return;
    }
#pragma unroll 1
    for (int start = first; start < classes(); start += kUnroll * step) {
      RawNumber<Acc> z[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        // Unsigned: with nearly 2^31 classes the sum does not fit an int.
        const unsigned k = static_cast<unsigned>(start) + static_cast<unsigned>(u * step);
        if (k < static_cast<unsigned>(classes())) {
          z[u].load(dtype, rows_.data, sample_ * rows_.batch_stride + k);
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const unsigned k = static_cast<unsigned>(start) + static_cast<unsigned>(u * step);
        if (k >= static_cast<unsigned>(classes())) break;
        visit(static_cast<int>(k), z[u].value(dtype));
      }
      if (classes() - start <= kUnroll * step) break;  // before start overflows
    }
  }

 private:
  const LogitRows& rows_;
  int64_t sample_;
  int64_t target_ = 0;
  int64_t nearest_ = 0;
  RawNumber<Acc> kept_;
};

// What a part of a sample's logits yields.
template <typename Acc>
struct LogitState {
  LogSumExp<Acc> log_sum_exp;
  Acc runner_up = minus_infinity<Acc>();
  int runner_up_class = INT32_MAX;  // no class yet
  // Under label smoothing only: sum_k w_k and sum_k w_k (max - z_k).
  Acc weight = 0;
  Acc spread = 0;

  MARGIN_DEVICE void add(Acc z, int k, bool is_target) {
    const bool first = runner_up_class == INT32_MAX || (is_nan(z) && !is_nan(runner_up));
    if (!is_target && (z > runner_up || first)) {
      runner_up = z;
      runner_up_class = k;
    }
    log_sum_exp.add(z);
  }
  // Before add() of the same class.
  MARGIN_DEVICE void add_smoothing(Acc z, Acc class_weight) {
    const bool higher = z > log_sum_exp.max || is_nan(z);
    if (higher && log_sum_exp.sum != 0) spread += (z - log_sum_exp.max) * weight;
    if (!higher && z != log_sum_exp.max) spread += class_weight * (log_sum_exp.max - z);
    weight += class_weight;
  }
};

// The state of a warp's logits. Every state is brought to one maximum first, that of the warp's
// classes and the target. `target_logit` is NaN for a bad label, and so is then everything.
template <typename Acc>
MARGIN_DEVICE LogitState<Acc> logits_of_warp(LogitState<Acc> state, Acc target_logit,
                                             bool smoothed) {
  const Acc largest = max_of_warp(state.runner_up);
  const bool candidate = is_nan(largest) ? is_nan(state.runner_up) : state.runner_up == largest;
  state.runner_up = largest;
  state.runner_up_class = min_of_warp(candidate ? state.runner_up_class : INT32_MAX);
  const Acc top = largest > target_logit || is_nan(largest) ? largest : target_logit;
  LogSumExp<Acc>& lse = state.log_sum_exp;
  if (smoothed) {
    if (lse.sum != 0 && lse.max != top) state.spread += (top - lse.max) * state.weight;
    state.spread = sum_of_warp(state.spread);
    state.weight = sum_of_warp(state.weight);
  }
  Acc sum = lse.sum;
  if (sum != 0 && lse.max != top) sum *= exponential(lse.max - top);
  lse.sum = sum_of_warp(sum);
  lse.max = top;
  return state;
}

}  // namespace margin::cuda
