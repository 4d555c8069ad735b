// One sample's loss under the additive margin: the cross-entropy after the label's logit was
// lowered by tau ||g||_q, for the input gradient g of the log-odds a:
//
//   a     = z_y - log sum_{k != y} exp(z_k)
//   z'    = z - tau ||g||_q e_y
//   L_i   = CE(z, y) + mu (CE(z', y) - CE(z, y))
//   t     = a / max(||g||_q, eps)                  reported, not a part of the loss
//
// With o(z) the softmax's share of the classes other than y, and without label smoothing,
//
//   dL_i/dg   = mu w_y tau o(z') v(g)
//   dL_i/dz_y = -w_y ((1 - mu) o(z) + mu o(z'))
//
// and the other classes share -dL_i/dz_y in proportion to their exp(z_k). o is computed from the
// sum over the other classes, so that it is precise where it is small.
#pragma once

#include "core/dual_norm.h"
#include "core/sample_loss.h"

namespace margin {

// The cross-entropy of a row whose label has the logit u, and what its gradients need.
template <typename Acc>
struct CrossEntropyWith {
  Acc value;
  Acc others;       // o
  Acc per_other;    // turns exp(z_k - others.max) into a probability
  Acc zero_or_nan;  // NaN where the row holds +inf, as in softmax
};

template <typename Acc>
MARGIN_HD CrossEntropyWith<Acc> cross_entropy_with(Acc u, const LogitRow<Acc>& others, Acc weight,
                                                   const SampleOptions<Acc>& options) {
  LogSumExp<Acc> lse = others.log_sum_exp;
  lse.add(u);
  CrossEntropyWith<Acc> out;
  const Acc s = options.label_smoothing;
  out.value = (1 - s) * weight * negative_log_probability(lse, u);
  if (s > 0) {
    const Acc weight_of_others = options.class_weight_sum - weight;
    const Acc spread =
        others.smoothing_sum + weight_of_others * (lse.max - others.log_sum_exp.max) +
        weight * (lse.max - u) + options.class_weight_sum * negative_log_probability(lse, lse.max);
    out.value += s / static_cast<Acc>(options.classes) * spread;
  }
  const bool alone = others.log_sum_exp.max == minus_infinity<Acc>();
  out.per_other = alone ? Acc(0) : exponential(others.log_sum_exp.max - lse.max) / lse.sum;
  out.others = out.per_other * others.log_sum_exp.sum;
  out.zero_or_nan = lse.max - lse.max;
  return out;
}

// `others` is the row without its label, but its field `target` is z_y. norm: ||g||_q. scale: a
// factor of the gradients. Give logit_gradient_at e = 0 for the label: exp(z_y - max) may overflow.
template <typename Acc, typename Index>
MARGIN_HD LossOfSample<Acc, Index> additive_margin_loss(const LogitRow<Acc>& others, Acc norm,
                                                        Index target, Acc weight, Acc scale,
                                                        const SampleOptions<Acc>& options) {
  const Acc mu = options.mu, tau = options.regularizer.hi;
  const CrossEntropyWith<Acc> plain = cross_entropy_with(others.target, others, weight, options);
  const CrossEntropyWith<Acc> lowered =
      cross_entropy_with(others.target - tau * norm, others, weight, options);
  const Acc s = options.label_smoothing;
  const Acc per_class = s > 0 ? s / static_cast<Acc>(options.classes) : Acc(0);
  const Acc mass = (1 - s) * weight + per_class * options.class_weight_sum;
  // What smoothing takes from the label and gives to the others.
  const Acc given = s > 0 ? per_class * (options.class_weight_sum - weight) : Acc(0);

  LossOfSample<Acc, Index> out;
  SampleLoss<Acc>& sample = out.sample;
  sample.cross_entropy = plain.value;
  sample.regularizer = lowered.value - plain.value;
  sample.loss = plain.value + mu * sample.regularizer;
  const LogSumExp<Acc>& lse = others.log_sum_exp;
  const bool finite = absolute(lse.max) < Range<Acc>::infinity();
  sample.gap = others.target - (finite ? lse.max + logarithm(lse.sum) : lse.max);
  sample.margin = first_order_margin(sample.gap, norm, options.eps).value;
  sample.grad_gap = Acc(0);
  sample.grad_norm = mu * tau * (mass * lowered.others - given);

  const Acc mix = (1 - mu) * plain.others + mu * lowered.others;
  out.gradient.max = lse.max == minus_infinity<Acc>() ? Acc(0) : lse.max;
  out.gradient.probability_scale =
      scale * mass * ((1 - mu) * plain.per_other + mu * lowered.per_other) + plain.zero_or_nan;
  out.gradient.at_target = scale * (given - mass * mix + per_class * weight) + plain.zero_or_nan;
  out.gradient.at_nearest = Acc(0);
  out.gradient.smoothing = scale * per_class;
  out.gradient.target = target;
  out.gradient.nearest = -1;
  return out;
}

}  // namespace margin
