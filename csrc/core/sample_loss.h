// One sample's loss and the coefficients of its gradients, computed from its logits z, its label y,
// its class weight w_y and the norm of its input gradient g:
//
//   a         = z_y - z_c                         c: the nearest class, usually the runner-up
//   t         = a / max(||g||_q, eps)             or t = a, where there is no input gradient
//   L_i       = CE(z, y) + mu * w_y * phi(t)
//   dL_i/dg   = grad_norm * v(g)                  v: the dual direction (dual_norm.h)
//   dL_i/dz_k = dCE/dz_k + grad_gap * ([k = y] - [k = c])
#pragma once

#include "core/regularizer.h"

namespace margin {

// -inf. Device code may not call std::numeric_limits.
template <typename Acc>
MARGIN_HD Acc minus_infinity() {
  return -static_cast<Acc>(HUGE_VALF);
}

// The largest logit among the classes other than the target, and its class, the lowest if several
// tie. A NaN wins over every number, so a broken sample shows.
template <typename Acc>
struct RunnerUp {
  Acc value = minus_infinity<Acc>();
  int64_t index = INT64_MAX;  // no class yet

  MARGIN_HD void add(Acc z, int64_t k) {
    if (is_nan(value)) return;
    if (z > value || is_nan(z) || (z == value && k < index)) {
      value = z;
      index = k;
    }
  }
  MARGIN_HD void combine(const RunnerUp& other) { add(other.value, other.index); }
};

// The log-sum-exp of a row or a part of it, kept as max z and the sum of exp(z - max).
template <typename Acc>
struct LogSumExp {
  Acc max = minus_infinity<Acc>();
  Acc sum = 0;

  MARGIN_HD void add(Acc z) { combine(LogSumExp{z, Acc(1)}); }
  MARGIN_HD void combine(const LogSumExp& other) {
    if (other.sum == 0) return;
    if (sum == 0) {
      *this = other;
      return;
    }
    const bool larger = other.max > max;
    // Only -inf so far: the sum stays empty.
    if (!larger && other.max == max && max == minus_infinity<Acc>()) return;
    // +inf and NaN give inf - inf = NaN, as in log_softmax.
    const Acc ratio = exponential(larger ? max - other.max : other.max - max);
    sum = larger ? sum * ratio + other.sum : sum + other.sum * ratio;
    if (larger) max = other.max;
  }
};

// log-sum-exp minus the logit z of a class. NaN where the row holds +inf, as in log_softmax.
template <typename Acc>
MARGIN_HD Acc negative_log_probability(const LogSumExp<Acc>& lse, Acc z) {
  if (lse.max == -minus_infinity<Acc>()) return lse.max - lse.max;
  return (lse.max - z) + logarithm(lse.sum);
}

// A sum over classes whose error does not grow with their number: terms are summed in blocks, and
// the blocks in double.
template <typename Acc>
class SumOverClasses {
 public:
  MARGIN_HD void add(Acc term) {
    block_ += term;
    if (++terms_ < kBlock) return;
    blocks_ += block_;
    block_ = 0;
    terms_ = 0;
  }
  MARGIN_HD Acc total() const { return static_cast<Acc>(blocks_ + block_); }

 private:
  static constexpr int kBlock = 32;
  double blocks_ = 0;
  Acc block_ = 0;
  int terms_ = 0;
};

// What a pass over a sample's logits z [C] finds. Under the additive margin log_sum_exp and
// smoothing_sum are those of the classes other than the label.
template <typename Acc>
struct LogitRow {
  LogSumExp<Acc> log_sum_exp;
  RunnerUp<Acc> runner_up;
  Acc target = 0;  // z_y
  // The class that the gap is measured to: the runner-up, or the one that the caller chose.
  Acc nearest = 0;
  int64_t nearest_class = -1;
  // Under label smoothing only: sum_k w_k (z_max - z_k), summed once z_max is known.
  Acc smoothing_sum = 0;
};

template <typename Acc>
struct SampleOptions {
  Regularizer<Acc> regularizer;
  Acc mu;
  Acc eps;
  Acc label_smoothing;
  Acc class_weight_sum;  // sum_c w_c; C without weights
  int64_t classes;       // C
  bool first_order;      // t is the first-order margin, otherwise the gap

  MARGIN_HD bool additive() const { return regularizer.kind == RegularizerKind::kAdditive; }
};

template <typename Acc>
struct SampleLoss {
  Acc loss;
  Acc cross_entropy;  // weighted, as it enters the loss
  Acc regularizer;    // weighted, without mu
  Acc gap;
  Acc margin;     // t
  Acc grad_gap;   // dL_i / d gap
  Acc grad_norm;  // dL_i / d ||g||_q
};

template <typename Acc>
struct Margin {
  Acc value;
  Acc per_gap;   // dm/da
  Acc per_norm;  // dm/d||g||; 0 where ||g|| <= eps or a is infinite
};

// m = a / max(||g||_q, eps). A NaN norm makes all three NaN. Where all other classes are masked by
// -inf, a is infinite and m does not depend on the norm.
template <typename Acc>
MARGIN_HD Margin<Acc> first_order_margin(Acc gap, Acc norm, Acc eps) {
  const bool clamped = norm <= eps;
  const Acc n = clamped ? eps : norm;
  const bool infinite = absolute(gap) == -minus_infinity<Acc>() && !is_nan(norm);
  const bool constant = clamped || infinite;
  return {gap / n, 1 / n, constant ? Acc(0) : -(gap / n) / n};
}

template <typename Acc>
MARGIN_HD SampleLoss<Acc> sample_loss(const LogitRow<Acc>& row, Acc norm, Acc weight,
                                      const SampleOptions<Acc>& options) {
  SampleLoss<Acc> out;
  const Acc s = options.label_smoothing;
  out.cross_entropy = (1 - s) * weight * negative_log_probability(row.log_sum_exp, row.target);
  if (s > 0) {
    const Acc spread =
        row.smoothing_sum +
        options.class_weight_sum * negative_log_probability(row.log_sum_exp, row.log_sum_exp.max);
    out.cross_entropy += s / static_cast<Acc>(options.classes) * spread;
  }
  out.gap = row.target - row.nearest;
  Margin<Acc> margin{out.gap, Acc(1), Acc(0)};
  if (options.first_order) margin = first_order_margin(out.gap, norm, options.eps);
  out.margin = margin.value;
  const RegularizerValue<Acc> phi = regularize(options.regularizer, out.margin);
  out.regularizer = weight * phi.value;
  out.loss = out.cross_entropy + options.mu * weight * phi.value;
  out.grad_gap = options.mu * weight * phi.slope * margin.per_gap;
  // The exponential's slope may be infinite, and 0 * inf would be NaN.
  out.grad_norm = margin.per_norm == 0 ? Acc(0) : options.mu * weight * phi.slope * margin.per_norm;
  return out;
}

// The parts of a logit's gradient that are the same for every class. Index: int64_t, or int where
// the number of classes fits.
template <typename Acc, typename Index = int64_t>
struct LogitGradient {
  Acc max;
  Acc probability_scale;  // coefficient of exp(z_k - max)
  Acc at_target;
  Acc at_nearest;
  Acc smoothing;  // coefficient of -w_k
  Index target;
  Index nearest;  // -1: none
};

// A sample's loss, and the coefficients of its logits' gradient.
template <typename Acc, typename Index = int64_t>
struct LossOfSample {
  SampleLoss<Acc> sample;
  LogitGradient<Acc, Index> gradient;
};

template <typename Acc, typename Index>
MARGIN_HD LogitGradient<Acc, Index> make_logit_gradient(const LogitRow<Acc>& row,
                                                        const SampleLoss<Acc>& loss, Index target,
                                                        Acc weight, Acc scale,
                                                        const SampleOptions<Acc>& options) {
  const Acc s = options.label_smoothing;
  const Acc per_class = s > 0 ? s / static_cast<Acc>(options.classes) : Acc(0);
  const Acc mass = (1 - s) * weight + per_class * options.class_weight_sum;
  // NaN where the row holds +inf, as in softmax.
  const Acc zero_or_nan = row.log_sum_exp.max - row.log_sum_exp.max;
  return {row.log_sum_exp.max,
          scale * mass / row.log_sum_exp.sum + zero_or_nan,
          scale * (loss.grad_gap - (1 - s) * weight),
          -scale * loss.grad_gap,
          scale * per_class,
          target,
          static_cast<Index>(row.nearest_class)};
}

// dL_i/dz_k of a class other than the target and the nearest class, given e = exp(z_k - max). The
// class weight counts under label smoothing only. V: Acc, or a vector of it.
template <typename V, typename Acc, typename Index>
MARGIN_HD V logit_gradient_common(const LogitGradient<Acc, Index>& g, V e, V class_weight) {
  return V(g.probability_scale) * e - V(g.smoothing) * class_weight;
}

// dL_i/dz_k of any class.
template <typename Acc, typename Index>
MARGIN_HD Acc logit_gradient_at(const LogitGradient<Acc, Index>& g, Acc e, Index k,
                                Acc class_weight) {
  Acc value = logit_gradient_common(g, e, class_weight);
  if (k == g.target) value += g.at_target;
  if (k == g.nearest) value += g.at_nearest;
  return value;
}

}  // namespace margin
