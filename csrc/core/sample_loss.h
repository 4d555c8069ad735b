// One sample's loss and the coefficients of its gradients, from what the passes over its logits and
// its input gradient yielded:
//
//   L_i = CE(z, y) + mu * w_y * phi(t),   t = gap a, or first-order margin m = a / max(||g||_q,
//   eps) dL_i/dg   = grad_norm * v(g),         v the dual direction (dual_norm.h) dL_i/dz_k = CE
//   part + grad_gap * ([k = y] - [k = critical])
#pragma once

#include "core/logit_row.h"
#include "core/regularizer.h"

namespace margin {

template <typename Acc>
struct SampleOptions {
  Regularizer<Acc> regularizer;
  Acc mu;
  Acc eps;
  Acc label_smoothing;
  Acc class_weight_sum;  // sum_c w_c; C without weights
  int64_t classes;       // C
  bool first_order;      // t = margin, else t = gap
};

template <typename Acc>
struct SampleLoss {
  Acc loss;
  Acc cross_entropy;  // weighted, as it enters the loss
  Acc regularizer;    // phi(t), bare
  Acc gap;
  Acc margin;     // t
  Acc grad_gap;   // dL_i / d gap
  Acc grad_norm;  // dL_i / d ||g||_q
};

template <typename Acc>
struct Margin {
  Acc value;
  Acc per_gap;   // dm/da
  Acc per_norm;  // dm/d||g||, 0 where ||g|| <= eps or a is infinite
};

// m = a / max(||g||_q, eps); a NaN norm stays NaN. Where every other class is masked with -inf, a
// is infinite, and no norm changes that.
template <typename Acc>
MARGIN_HD Margin<Acc> first_order_margin(Acc gap, Acc norm, Acc eps) {
  const bool clamped = norm <= eps;
  const Acc n = clamped ? eps : norm;
  const bool constant = clamped || absolute(gap) == -minus_infinity<Acc>();
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
  out.gap = row.target - row.critical;
  Margin<Acc> margin{out.gap, Acc(1), Acc(0)};
  if (options.first_order) margin = first_order_margin(out.gap, norm, options.eps);
  out.margin = margin.value;
  const RegularizerValue<Acc> phi = regularize(options.regularizer, out.margin);
  out.regularizer = phi.value;
  out.loss = out.cross_entropy + options.mu * weight * phi.value;
  out.grad_gap = options.mu * weight * phi.slope * margin.per_gap;
  // Not 0 * inf where the exponential's slope overflows.
  out.grad_norm = margin.per_norm == 0 ? Acc(0) : options.mu * weight * phi.slope * margin.per_norm;
  return out;
}

// What the gradient of one logit needs, constant over the row.
template <typename Acc>
struct LogitGradient {
  Acc max;
  Acc probability_scale;  // coefficient of softmax(z)_k, with 1 / sum exp folded in
  Acc at_target;
  Acc at_critical;
  Acc smoothing;  // subtracted, times w_k
  int64_t target;
  int64_t critical;
};

template <typename Acc>
MARGIN_HD LogitGradient<Acc> make_logit_gradient(const LogitRow<Acc>& row,
                                                 const SampleLoss<Acc>& loss, int64_t target,
                                                 Acc weight, Acc scale,
                                                 const SampleOptions<Acc>& options) {
  const Acc s = options.label_smoothing;
  const Acc per_class = s / static_cast<Acc>(options.classes);
  const Acc mass = (1 - s) * weight + per_class * options.class_weight_sum;
  // 0 / 0 where +inf stands in the row: NaN, as softmax has it.
  const Acc zero_or_nan = row.log_sum_exp.max - row.log_sum_exp.max;
  return {row.log_sum_exp.max,
          scale * mass / row.log_sum_exp.sum + zero_or_nan,
          scale * (loss.grad_gap - (1 - s) * weight),
          -scale * loss.grad_gap,
          scale * per_class,
          target,
          row.critical_index};
}

// The part of dL_i/dz_k that is the same for every class, given e = exp(z_k - max). w_k is read
// under label smoothing only. V: Acc, or a vector of it.
template <typename V, typename Acc>
MARGIN_HD V logit_gradient_common(const LogitGradient<Acc>& g, V e, V class_weight) {
  return V(g.probability_scale) * e - V(g.smoothing) * class_weight;
}

// dL_i/dz_k whole.
template <typename Acc>
MARGIN_HD Acc logit_gradient_at(const LogitGradient<Acc>& g, Acc e, int64_t k, Acc class_weight) {
  Acc value = logit_gradient_common(g, e, class_weight);
  if (k == g.target) value += g.at_target;
  if (k == g.critical) value += g.at_critical;
  return value;
}

}  // namespace margin
