// The ops, written once over a Backend:
//
//   struct Backend {
//     explicit Backend(const Tensor& anchor);   // the device of every tensor of the call
//     void check_labels(const LogitRows&, int64_t batch);  // where that costs no synchronisation
//     void logit_gap(const LogitGapArguments&);  and so on for each op of csrc/core/arguments.h
//   };
//
// A Backend may hold what must outlive the launch, such as a device guard.
#pragma once

#include <tuple>

#include "torch/arguments_from_tensors.h"

namespace margin::binding {

template <typename Backend>
std::tuple<Tensor, Tensor> logit_gap(const Tensor& logits, const Tensor& target,
                                     const MaybeTensor& critical, int64_t ignore_index) {
  LogitInput input = logit_input(logits, target, critical, ignore_index);
  const int64_t batch = logits.size(0);
  Tensor gap = torch::stable::new_empty(logits, {batch}, wide_type(is_wide(logits)));
  Tensor runner_up = torch::stable::new_empty(target, {batch});
  if (batch > 0) {
    Backend backend(logits);
    backend.check_labels(input.rows, batch);
    backend.logit_gap({batch, input.rows, gap.mutable_data_ptr(),
                       static_cast<int64_t*>(runner_up.mutable_data_ptr())});
  }
  return {gap, runner_up};
}

template <typename Backend>
std::tuple<Tensor, Tensor> first_order_margin(const Tensor& gap, const Tensor& grad, double q,
                                              double eps, const MaybeTensor& input_scale) {
  check(grad.dim() >= 1, "grad must be [B, ...], got ", shape(grad));
  const int64_t batch = grad.size(0);
  GradInput input = grad_input(grad, input_scale, batch);
  const ScalarType type = wide_type(is_wide(grad));
  check_vector("gap", gap, type, batch);
  check_same_device("gap", gap, grad);
  const Tensor dense_gap = torch::stable::contiguous(gap);
  Tensor margin = torch::stable::new_empty(gap, {batch});
  Tensor norm = torch::stable::new_empty(gap, {batch});
  if (batch > 0) {
    Backend(grad).first_order_margin({batch, norm_options(q), eps, input.rows,
                                      dense_gap.const_data_ptr(), margin.mutable_data_ptr(),
                                      norm.mutable_data_ptr()});
  }
  return {margin, norm};
}

template <typename Backend>
Tensor dual_direction(const Tensor& grad, const Tensor& factor, const MaybeTensor& base, double q,
                      const MaybeTensor& input_scale) {
  check(grad.dim() >= 1, "grad must be [B, ...], got ", shape(grad));
  const int64_t batch = grad.size(0);
  GradInput input = grad_input(grad, input_scale, batch);
  check_vector("factor", factor, wide_type(is_wide(grad)), batch);
  check_same_device("factor", factor, grad);
  const Tensor dense_factor = torch::stable::contiguous(factor);
  Tensor out = empty_like_samples(input.grad);
  DirectionArguments arguments;
  arguments.batch = batch;
  arguments.norm = norm_options(q);
  arguments.grad = input.rows;
  arguments.factor = dense_factor.const_data_ptr();
  MaybeTensor dense_base;
  if (base.has_value()) {
    check(base->scalar_type() == grad.scalar_type() && shape(*base) == shape(grad),
          "base must have the shape and type of grad, ", shape(grad), ", got ", shape(*base));
    check_same_device("base", *base, grad);
    dense_base = *base;
    if (!sample_is_dense(*base) || !same_sample_layout(*base, input.grad)) {
      dense_base = empty_like_samples(input.grad);
      torch::stable::copy_(*dense_base, *base);
    }
    arguments.base = dense_base->const_data_ptr();
    arguments.base_stride = dense_base->stride(0);
  }
  arguments.out = out.mutable_data_ptr();
  arguments.out_stride = out.stride(0);
  if (batch > 0) Backend(grad).dual_direction(arguments);
  return out;
}

// loss, margin [B], gap [B], norm [B], statistics, grad_logits [B, C], grad_grad. Without grad,
// norm and grad_grad are empty; without `gradients`, so are grad_logits and grad_grad.
template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> average_margin_loss(
    const Tensor& logits, const Tensor& target, const MaybeTensor& grad,
    const MaybeTensor& critical, const MaybeTensor& class_weight, const MaybeTensor& input_scale,
    double q, double eps, double mu, int64_t regularizer, double lo, double hi,
    double label_smoothing, int64_t ignore_index, int64_t reduction, bool gradients) {
  LossInput input =
      loss_input(logits, target, grad, critical, class_weight, input_scale,
                 {q, eps, mu, regularizer, lo, hi, label_smoothing, ignore_index, reduction});
  LossArguments& arguments = input.arguments;
  const int64_t batch = arguments.batch;
  const auto vector = [&](int64_t size) {
    return torch::stable::new_empty(logits, {size}, input.type);
  };
  Tensor loss = arguments.reduction == Reduction::kNone
                    ? vector(batch)
                    : torch::stable::new_empty(logits, {}, input.type);
  Tensor margin = vector(batch);
  Tensor gap = vector(batch);
  Tensor norm = vector(grad.has_value() ? batch : 0);
  Tensor statistics = vector(kStatisticCount);
  Tensor grad_logits = gradients ? torch::stable::new_empty(logits, {batch, logits.size(1)})
                                 : torch::stable::new_empty(logits, {0});
  Tensor grad_grad = gradients && grad.has_value() ? empty_like_samples(input.grad->grad)
                                                   : torch::stable::new_empty(logits, {0});
  arguments.loss = loss.mutable_data_ptr();
  arguments.margin = margin.mutable_data_ptr();
  arguments.gap = gap.mutable_data_ptr();
  arguments.statistics = statistics.mutable_data_ptr();
  if (grad.has_value()) arguments.norm_out = norm.mutable_data_ptr();
  if (gradients) {
    arguments.grad_logits = grad_logits.mutable_data_ptr();
    if (grad.has_value()) {
      arguments.grad_grad = grad_grad.mutable_data_ptr();
      arguments.grad_grad_stride = grad_grad.stride(0);
    }
  }
  Backend backend(logits);
  backend.check_labels(arguments.logits, batch);
  backend.average_margin_loss(arguments);
  return {loss, margin, gap, norm, statistics, grad_logits, grad_grad};
}

// Gradients of sum_i upstream_i * L_i; upstream [1] or [B].
template <typename Backend>
std::tuple<Tensor, Tensor> average_margin_loss_backward(
    const Tensor& upstream, const Tensor& logits, const Tensor& target, const MaybeTensor& grad,
    const MaybeTensor& critical, const MaybeTensor& class_weight, const MaybeTensor& input_scale,
    double q, double eps, double mu, int64_t regularizer, double lo, double hi,
    double label_smoothing, int64_t ignore_index) {
  LossInput input = loss_input(logits, target, grad, critical, class_weight, input_scale,
                               {q, eps, mu, regularizer, lo, hi, label_smoothing, ignore_index,
                                static_cast<int64_t>(Reduction::kSum)});
  LossArguments& arguments = input.arguments;
  const int64_t batch = arguments.batch;
  check(upstream.dim() == 1 && (upstream.size(0) == 1 || upstream.size(0) == batch),
        "upstream must be [1] or [B] = [", batch, "], got ", shape(upstream));
  check_vector("upstream", upstream, input.type, upstream.size(0));
  check_same_device("upstream", upstream, logits);
  const Tensor dense_upstream = torch::stable::contiguous(upstream);
  Tensor grad_logits = torch::stable::new_empty(logits, {batch, logits.size(1)});
  Tensor grad_grad = grad.has_value() ? empty_like_samples(input.grad->grad)
                                      : torch::stable::new_empty(logits, {0});
  arguments.upstream = dense_upstream.const_data_ptr();
  arguments.upstream_per_sample = upstream.size(0) != 1;
  arguments.grad_logits = grad_logits.mutable_data_ptr();
  if (grad.has_value()) {
    arguments.grad_grad = grad_grad.mutable_data_ptr();
    arguments.grad_grad_stride = grad_grad.stride(0);
  }
  if (batch > 0) {
    Backend backend(logits);
    backend.check_labels(arguments.logits, batch);
    backend.average_margin_loss(arguments);
  }
  return {grad_logits, grad_grad};
}

// tensor *= factor in place; nothing is touched where factor is exactly 1.
template <typename Backend>
void scale_(Tensor tensor, const Tensor& factor) {
  check(factor.numel() == 1, "factor must have one element, got ", shape(factor));
  check(factor.scalar_type() == wide_type(is_wide(tensor)),
        "factor must be float32 (float64 for a float64 tensor)");
  check_same_device("factor", factor, tensor);
  int64_t span = 1;  // elements between the first and the last, both included
  for (int64_t d = 0; d < tensor.dim(); ++d) span += (tensor.size(d) - 1) * tensor.stride(d);
  if (tensor.numel() == 0) return;
  check(span == tensor.numel(), "scale_ needs a tensor without gaps or overlaps");
  Backend(tensor).scale({tensor.mutable_data_ptr(), dtype_of("tensor", tensor), tensor.numel(),
                         factor.const_data_ptr()});
}

}  // namespace margin::binding

// Registers every op for one dispatch key.
#define MARGIN_REGISTER_OPS(m, Backend)                                                     \
  m.impl("logit_gap", TORCH_BOX(&margin::binding::logit_gap<Backend>));                     \
  m.impl("first_order_margin", TORCH_BOX(&margin::binding::first_order_margin<Backend>));   \
  m.impl("dual_direction", TORCH_BOX(&margin::binding::dual_direction<Backend>));           \
  m.impl("average_margin_loss", TORCH_BOX(&margin::binding::average_margin_loss<Backend>)); \
  m.impl("average_margin_loss_backward",                                                    \
         TORCH_BOX(&margin::binding::average_margin_loss_backward<Backend>));               \
  m.impl("scale_", TORCH_BOX(&margin::binding::scale_<Backend>))
