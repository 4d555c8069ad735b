// The ops' schemas. margin_ext/functional.py wraps them; arguments are explained in csrc/core.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(margin_ext, m) {
  m.def(
      "logit_gap(Tensor logits, Tensor target, Tensor? critical, int ignore_index) "
      "-> (Tensor gap, Tensor runner_up)");
  m.def(
      "first_order_margin(Tensor gap, Tensor grad, float q, float eps, Tensor? input_scale) "
      "-> (Tensor margin, Tensor norm)");
  m.def(
      "dual_direction(Tensor grad, Tensor factor, Tensor? base, float q, Tensor? input_scale) "
      "-> Tensor");
  m.def(
      "average_margin_loss(Tensor logits, Tensor target, Tensor? grad, Tensor? critical, "
      "Tensor? class_weight, Tensor? input_scale, float q, float eps, float mu, int regularizer, "
      "float lo, float hi, float label_smoothing, int ignore_index, int reduction, "
      "bool need_grad_logits, bool need_grad_grad) -> (Tensor loss, Tensor margin, Tensor gap, "
      "Tensor norm, "
      "Tensor statistics, Tensor grad_logits, Tensor grad_grad)");
  m.def(
      "average_margin_loss_backward(Tensor upstream, Tensor logits, Tensor target, Tensor? grad, "
      "Tensor? critical, Tensor? class_weight, Tensor? input_scale, float q, float eps, float mu, "
      "int regularizer, float lo, float hi, float label_smoothing, int ignore_index, "
      "bool need_grad_logits, bool need_grad_grad) "
      "-> (Tensor grad_logits, Tensor grad_grad)");
  m.def(
      "scale_gradients_(Tensor(a!) grad_logits, Tensor(b!) grad_grad, Tensor upstream, "
      "Tensor statistics) -> ()");
  m.def("build_info() -> str");
}
