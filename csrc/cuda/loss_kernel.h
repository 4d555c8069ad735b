// The margin loss of a batch in one launch: two passes over every sample's logits and row, the
// sample's loss between them, and the batch reduction.
#pragma once

#include "core/additive_margin.h"
#include "cuda/logits.h"
#include "cuda/row_pass.h"
#include "cuda/totals.h"

namespace margin::cuda {

// The kernel's parameter: the op's arguments, and everything that the launcher can compute.
template <typename Acc>
struct LossTask {
  LossArguments arguments;
  SampleOptions<Acc> options;  // class_weight_sum is set only where there are no class weights
  RowWay way;
  Acc q;
  Acc scale;  // factor of the gradients where there is no upstream
  TotalsOutput<Acc> totals;
};

// What the first pass over a sample's logits and row finds.
template <typename Acc>
struct SampleState {
  NormState<Acc> norm;
  LogitState<Acc> logits;
};

// What the second pass needs. One warp of each block computes it.
template <typename Acc>
struct SampleGradient {
  Direction<Acc> row;
  LogitGradient<Acc, int> logits;
};

// Beyond so many classes all warps of a block share a sample's logits; up to there its first warp
// reads them alone.
inline constexpr int kClassesOfOneWarp = 256;

// What additive_margin_loss needs of a row beyond what the first pass has found: the sums without
// the label, of all classes by one warp. The logits are in the cache.
template <typename Acc>
MARGIN_DEVICE LogitState<Acc> other_classes(const Logits<Acc>& logits, int target, bool smoothed,
                                            const Acc* class_weight) {
  LogitState<Acc> state;
#pragma unroll 1
  for (int k = static_cast<int>(threadIdx.x % kWarp); k < logits.classes(); k += kWarp) {
    if (k == target) continue;
    const Acc z = logits.at(k);
    if (smoothed) state.add_smoothing(z, class_weight == nullptr ? Acc(1) : class_weight[k]);
    state.add(z, k, false);
  }
  return logits_of_warp(state, minus_infinity<Acc>(), smoothed);
}

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
    loss_kernel(const __grid_constant__ LossTask<AccOf<T>> task,
                const __grid_constant__ LaunchShape shape) {
  using Acc = AccOf<T>;
  constexpr bool kHasRow = use != RowUse::kAbsent;
  const ServedNorm<variant, use, Acc> norm{task.arguments.norm.norm, task.q};
  SIMT_DYN_SHARED(unsigned char, shared);
  const LossArguments& arguments = task.arguments;
  const Acc* class_weight = static_cast<const Acc*>(arguments.class_weight);
  const bool smoothed = task.options.label_smoothing > 0;
  GroupOf<variant> group(shape);
  const bool wants_totals = task.totals.partials != nullptr;
  if (wants_totals) BlockTotals::start(group);

  for (int64_t i = group.first_sample(); i < arguments.batch; i += group.sample_step()) {
    Logits<Acc> logits(arguments.logits, i);
    const bool all_warps = logits.classes() > kClassesOfOneWarp;
    const bool reads_logits = all_warps || group.in_first_warp();
    const unsigned sharing = all_warps ? group.threads() : kWarp;
    const int first_class = opaque(static_cast<int>(sharing * group.rank() + group.thread()));
    const int class_step = opaque(static_cast<int>(sharing * group.ranks()));
    const bool leads = group.thread() == 0 && group.rank() == 0;
    logits.start(first_class, class_step);

    // First pass.
    const T* row_start = static_cast<const T*>(arguments.grad.data);
    T* row_gradient = static_cast<T*>(arguments.grad_grad);
    if constexpr (kHasRow) {
      row_start += i * arguments.grad.batch_stride;
      row_gradient += i * arguments.grad_grad_stride;
    }
    const RowSlice<T> slice(row_start, kHasRow ? arguments.grad.size : 0, group.rank(),
                            group.ranks());
    const RowOutput<T> row_output(row_gradient, slice);
    RowPass<T, variant, use> row(slice, arguments.grad, task.way, norm, group.thread(),
                                 group.threads(), group.kept(shared), shape.kept_packs);
    // The row is in flight while the logits are read.
    if constexpr (kHasRow) row.start();
    if (kHasRow && shape.prefetches && group.thread() == 0 &&
        i + group.sample_step() < arguments.batch) {
      prefetch_slice(slice, group.sample_step() * arguments.grad.batch_stride);
      if (leads) logits.prefetch_next(group.sample_step());
    }
    SampleState<Acc> state;
    Label<Acc> label;
    if (reads_logits && !logits.ignored()) {
      label = logits.label();
      logits.for_each(first_class, class_step, [&](int k, Acc z) {
        if (smoothed)
          state.logits.add_smoothing(z, class_weight == nullptr ? Acc(1) : class_weight[k]);
        state.logits.add(z, k, k == label.target);
      });
    }
    if constexpr (kHasRow) state.norm = row.read(row_output, arguments.grad_grad != nullptr);

    if (logits.ignored()) {
      if (leads) write_ignored<Acc>(arguments, i);
      if (arguments.grad_logits != nullptr && reads_logits) {
        for (int k = first_class; k < logits.classes(); k += class_step) {
          store_as(arguments.logits.dtype, arguments.grad_logits, i * logits.classes() + k, Acc(0));
        }
      }
      if constexpr (kHasRow) {
        if (arguments.grad_grad != nullptr) row.write_zeros(row_output);
      }
      continue;
    }

    state = group.gather(state, [&](SampleState<Acc> s) {
      if constexpr (kHasRow) s.norm = norm_of_warp(norm, s.norm);
      if (reads_logits) s.logits = logits_of_warp(s.logits, label.target_logit, smoothed);
      return s;
    });

    if constexpr (kHasRow) {
      const Acc again = group.broadcast(norm.second_pass(state.norm));
      if (again != Acc(1)) state.norm = row.read_again(again, row_output, group);
    }

    // The sample's loss.
    SampleGradient<Acc> gradient{};
    SampleLoss<Acc> sample{};
    LogitRow<Acc> logit_row;
    Acc weight = 0, row_norm = 0;
    if (group.in_first_warp()) {
      logit_row.log_sum_exp = state.logits.log_sum_exp;
      logit_row.runner_up = {state.logits.runner_up, state.logits.runner_up_class};
      logit_row.target = label.target_logit;
      logit_row.nearest = label.nearest < 0 ? state.logits.runner_up : logits.at(label.nearest);
      logit_row.nearest_class = label.nearest < 0 ? state.logits.runner_up_class : label.nearest;
      logit_row.smoothing_sum = state.logits.spread;
      SampleOptions<Acc> options = task.options;
      if (class_weight != nullptr && smoothed) options.class_weight_sum = state.logits.weight;
      weight = not_a_number<Acc>();  // makes everything of a bad sample NaN
      if (!label.bad()) weight = class_weight == nullptr ? Acc(1) : class_weight[label.target];
      row_norm = kHasRow ? norm.value(state.norm) : not_a_number<Acc>();
      const Acc* upstream = static_cast<const Acc*>(arguments.upstream);
      const Acc scale =
          upstream == nullptr ? task.scale : upstream[arguments.upstream_per_sample ? i : 0];
      if (kHasRow && task.options.additive()) {
        const LogitState<Acc> others = other_classes(logits, label.target, smoothed, class_weight);
        logit_row.log_sum_exp = others.log_sum_exp;
        logit_row.smoothing_sum = others.spread;
        const auto found =
            additive_margin_loss(logit_row, row_norm, label.target, weight, scale, options);
        sample = found.sample;
        gradient.logits = found.gradient;
      } else {
        sample = sample_loss(logit_row, row_norm, weight, options);
        gradient.logits =
            make_logit_gradient(logit_row, sample, label.target, weight, scale, options);
      }
      if constexpr (kHasRow) {
        gradient.row = norm.direction(state.norm, row_norm, scale * sample.grad_norm);
      }
    }
    gradient = group.broadcast(gradient);

    // The gradients: the other pass over row and logits.
    if constexpr (kHasRow) {
      if (arguments.grad_grad != nullptr) row.write(gradient.row, row_output);
    }
    if (arguments.grad_logits != nullptr && reads_logits) {
      logits.for_each(first_class, class_step, [&](int k, Acc z) {
        const Acc weight_of_class = smoothed && class_weight != nullptr ? class_weight[k] : Acc(1);
        Acc e = exponential(z - gradient.logits.max);
        if (kHasRow && k == gradient.logits.target && task.options.additive()) e = Acc(0);
        store_as(arguments.logits.dtype, arguments.grad_logits, i * logits.classes() + k,
                 logit_gradient_at(gradient.logits, e, k, weight_of_class));
      });
    }

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
