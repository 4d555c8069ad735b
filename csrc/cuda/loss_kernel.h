// The margin loss of a batch in one launch: two passes over every sample's logits and row, the
// sample's loss between them, and the batch reduction.
#pragma once

#include "core/sample_loss.h"
#include "cuda/logits.h"
#include "cuda/row_pass.h"
#include "cuda/totals.h"

namespace margin::cuda {

// The kernel's parameter: the op's arguments, and everything that the launcher can compute.
template <typename Acc>
struct LossTask {
  LossArguments arguments;
  SampleOptions<Acc> options;  // class_weight_sum is set only where there are no class weights
  bool plain;                  // see RowPass
  Acc q;
  Acc scale;  // factor of the gradients where there is no upstream
  TotalsOutput<Acc> totals;
};

// What the first pass over a sample's logits and row finds.
template <typename Acc>
struct SampleState {
  NormState<Acc> norm;
  LogSumExp<Acc> log_sum_exp;
  RunnerUp<Acc> runner_up;
  Acc class_weight_sum = 0;
};

template <typename Acc>
MARGIN_DEVICE SampleState<Acc> from_lane_xor(const SampleState<Acc>& state, int lanes) {
  return {from_lane_xor(state.norm, lanes), from_lane_xor(state.log_sum_exp, lanes),
          from_lane_xor(state.runner_up, lanes), from_lane_xor(state.class_weight_sum, lanes)};
}

template <Variant variant, RowUse use, typename Acc>
struct CombineSamples {
  ServedNorm<variant, use, Acc> combine_norms;

  MARGIN_DEVICE void operator()(SampleState<Acc>& state, const SampleState<Acc>& other) const {
    combine_norms(state.norm, other.norm);
    state.log_sum_exp.combine(other.log_sum_exp);
    state.runner_up.combine(other.runner_up);
    state.class_weight_sum += other.class_weight_sum;
  }
};

struct CombineSums {
  template <typename Acc>
  MARGIN_DEVICE void operator()(Acc& sum, Acc other) const {
    sum += other;
  }
};

template <typename Acc>
MARGIN_DEVICE void put(void* vector, int64_t i, Acc value) {
  if (vector != nullptr) static_cast<Acc*>(vector)[i] = value;
}

// The per-sample outputs of an ignored sample.
template <typename Acc>
MARGIN_DEVICE void write_ignored(const LossArguments& arguments, int64_t i) {
  put(arguments.margin, i, not_a_number<Acc>());
  put(arguments.gap, i, not_a_number<Acc>());
  if (arguments.grad.data != nullptr) put(arguments.norm_out, i, not_a_number<Acc>());
  if (arguments.reduction == Reduction::kNone) put(arguments.loss, i, Acc(0));
}

// T: the type of grad, or without grad (RowUse::kAbsent) the accumulation dtype.
template <typename T, Variant variant, RowUse use>
__global__ void __launch_bounds__(GroupOf<variant>::kThreads, kResidentBlocks<GroupOf<variant>, T>)
    loss_kernel(const __grid_constant__ LossTask<AccOf<T>> task, unsigned cluster_size) {
  using Acc = AccOf<T>;
  constexpr bool kHasRow = use != RowUse::kAbsent;
  const ServedNorm<variant, use, Acc> norm{task.arguments.norm.norm, task.q};
  SIMT_DYN_SHARED(unsigned char, shared);
  const LossArguments& arguments = task.arguments;
  const Acc* class_weight = static_cast<const Acc*>(arguments.class_weight);
  const bool smoothed = task.options.label_smoothing > 0;
  GroupOf<variant> group(cluster_size);
  const bool wants_totals = task.totals.partials != nullptr;
  if (wants_totals) BlockTotals::start(group);

  for (int64_t i = group.first_sample(); i < arguments.batch; i += group.sample_step()) {
    const Logits<Acc> logits(arguments.logits, i);
    const Label<Acc> label = logits.label();
    const bool leads = group.thread() == 0 && group.rank() == 0;

    // First pass. The row is first because it takes the time, and it needs no label.
    const T* row_start = static_cast<const T*>(arguments.grad.data);
    T* row_gradient = static_cast<T*>(arguments.grad_grad);
    if constexpr (kHasRow) {
      row_start += i * arguments.grad.batch_stride;
      row_gradient += i * arguments.grad_grad_stride;
    }
    const RowSlice<T> slice(row_start, kHasRow ? arguments.grad.size : 0, group.rank(),
                            group.ranks());
    const RowOutput<T> row_output(row_gradient, slice, arguments.grad.dtype);
    RowPass<T, variant, use> row(slice, arguments.grad, task.plain, norm, group.thread(),
                                 group.threads(), shared);
    SampleState<Acc> state;
    if constexpr (kHasRow) state.norm = row.read(row_output, arguments.grad_grad != nullptr);

    if (label.ignored) {
      if (leads) write_ignored<Acc>(arguments, i);
      if (arguments.grad_logits != nullptr) {
        for (int k = static_cast<int>(group.rank() * group.threads() + group.thread());
             k < logits.classes(); k += static_cast<int>(group.ranks() * group.threads())) {
          store_as(arguments.logits.dtype, arguments.grad_logits, i * logits.classes() + k, Acc(0));
        }
      }
      if constexpr (kHasRow) {
        if (arguments.grad_grad != nullptr) row.write_zeros(row_output);
      }
      continue;
    }

    logits.template for_each<4>(group, [&](int k, Acc z) {
      state.log_sum_exp.add(z);
      if (k != label.target) state.runner_up.add(z, k);
      if (smoothed && class_weight != nullptr) state.class_weight_sum += class_weight[k];
    });
    state = group.reduce(state, CombineSamples<variant, use, Acc>{norm});

    LogitRow<Acc> logit_row;
    logit_row.log_sum_exp = state.log_sum_exp;
    logit_row.runner_up = state.runner_up;
    logit_row.target = label.target_logit;
    logit_row.nearest = label.nearest < 0 ? state.runner_up.value : logits.at(label.nearest);
    logit_row.nearest_class = label.nearest < 0 ? state.runner_up.index : label.nearest;
    if (smoothed) {
      Acc sum = 0;
      logits.template for_each<1>(group, [&](int k, Acc z) {
        sum += (class_weight == nullptr ? Acc(1) : class_weight[k]) * (state.log_sum_exp.max - z);
      });
      logit_row.smoothing_sum = group.reduce(sum, CombineSums());
    }

    // Every thread computes the sample's loss.
    SampleOptions<Acc> options = task.options;
    if (class_weight != nullptr) options.class_weight_sum = state.class_weight_sum;
    Acc weight = not_a_number<Acc>();  // makes everything of a bad sample NaN
    if (!label.bad()) weight = class_weight == nullptr ? Acc(1) : class_weight[label.target];
    const Acc row_norm = kHasRow ? norm.value(state.norm) : not_a_number<Acc>();
    const SampleLoss<Acc> sample = sample_loss(logit_row, row_norm, weight, options);
    // Second pass.
    const Acc* upstream = static_cast<const Acc*>(arguments.upstream);
    const Acc scale =
        upstream == nullptr ? task.scale : upstream[arguments.upstream_per_sample ? i : 0];
    if (arguments.grad_logits != nullptr) {
      const LogitGradient<Acc> gradient =
          make_logit_gradient(logit_row, sample, label.target, weight, scale, options);
      logits.template for_each<2>(group, [&](int k, Acc z) {
        const Acc weight_of_class = smoothed && class_weight != nullptr ? class_weight[k] : Acc(1);
        store_as(arguments.logits.dtype, arguments.grad_logits, i * logits.classes() + k,
                 logit_gradient_at(gradient, exponential(z - gradient.max), k, weight_of_class));
      });
    }
    if constexpr (kHasRow) {
      if (arguments.grad_grad != nullptr) {
        row.write(norm.direction(state.norm, row_norm, scale * sample.grad_norm), row_output);
      }
    }

    // The totals take many registers, so they come last, when little else is alive.
    if (leads) {
      put(arguments.margin, i, sample.margin);
      put(arguments.gap, i, sample.gap);
      if constexpr (kHasRow) put(arguments.norm_out, i, row_norm);
      if (arguments.reduction == Reduction::kNone) put(arguments.loss, i, sample.loss);
      if (wants_totals) {
        BlockTotals::add(group, sample, row_norm, weight,
                         logit_row.target > logit_row.runner_up.value);
      }
    }
  }

  if (wants_totals) BlockTotals::finish(group, task.totals);
}

}  // namespace margin::cuda
