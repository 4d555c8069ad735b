// The ops: their schemas, and their bodies written once over a Backend:
//
//   struct Backend {
//     explicit Backend(const Tensor& anchor);              // on the device of all tensors
//     void check_labels(const LogitRows&, int64_t batch);  // where that needs no synchronisation
//     void logit_gap(const LogitGapArguments&);            // and so on for each op
//   };
//
// A Backend may own what must outlive the launch, such as a device guard.
#pragma once

#include <tuple>

#include "core/attack.h"
#include "torch/arguments_from_tensors.h"
#include "torch/class_margins.h"

namespace margin::binding {

// The ops' schemas. Their arguments are explained in core/arguments.h.
inline constexpr const char* kSchemas[] = {
    "logit_gap(Tensor logits, Tensor target, Tensor? nearest, int ignore_index) -> (Tensor "
    "gap, Tensor runner_up)",
    "first_order_margin(Tensor gap, Tensor grad, float q, float eps, Tensor? input_scale) -> "
    "(Tensor margin, Tensor norm)",
    "class_margins(Tensor gap, Tensor grad, float[] q, Tensor? input_scale) -> (Tensor margin, "
    "Tensor norm, Tensor nearest)",
    "dual_direction(Tensor grad, Tensor factor, Tensor? base, float q, Tensor? input_scale) "
    "-> Tensor",
    "attack_step(Tensor x, Tensor? grad, Tensor? length, Tensor? center, Tensor? radius, float q, "
    "int steepest, Tensor? low, Tensor? high, Tensor? input_scale) -> Tensor",
    "attack_step_(Tensor(a!) x, Tensor? grad, Tensor? length, Tensor? center, Tensor? radius, "
    "float q, int steepest, Tensor? low, Tensor? high, Tensor? input_scale) -> ()",
    "average_margin_loss(Tensor logits, Tensor target, Tensor? grad, Tensor? nearest, "
    "Tensor? class_weight, Tensor? input_scale, float q, float eps, float mu, int "
    "regularizer, float lo, float hi, float label_smoothing, int ignore_index, int "
    "reduction, bool need_grad_logits, bool need_grad_grad) -> (Tensor loss, Tensor margin, "
    "Tensor gap, Tensor norm, Tensor statistics, Tensor grad_logits, Tensor grad_grad)",
    "average_margin_loss_backward(Tensor upstream, Tensor logits, Tensor target, Tensor? "
    "grad, Tensor? nearest, Tensor? class_weight, Tensor? input_scale, float q, float eps, "
    "float mu, int regularizer, float lo, float hi, float label_smoothing, int ignore_index, "
    "bool need_grad_logits, bool need_grad_grad) -> (Tensor grad_logits, Tensor grad_grad)",
    "scale_gradients_(Tensor(a!) grad_logits, Tensor(b!) grad_grad, Tensor upstream, Tensor "
    "statistics) -> ()",
    "build_info() -> str",
};

template <typename Backend>
std::tuple<Tensor, Tensor> logit_gap(const Tensor& logits, const Tensor& target,
                                     const MaybeTensor& nearest, int64_t ignore_index) {
  LogitInput input = logit_input(logits, target, nearest, ignore_index);
  const int64_t batch = logits.size(0);
  Tensor gap = empty_vector(logits, accumulation_dtype(logits), batch);
  Tensor runner_up = empty_vector(target, ScalarType::Long, batch);
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
  const ScalarType type = accumulation_dtype(grad);
  checked_eps(eps, type);
  check_vector("gap", gap, type, batch);
  check_same_device("gap", gap, grad);
  const Tensor dense_gap = contiguous_vector(gap);
  Tensor margin = empty_vector(gap, type, batch);
  Tensor norm = empty_vector(gap, type, batch);
  if (batch > 0) {
    Backend(grad).first_order_margin({batch, norm_options(q), eps, input.rows,
                                      dense_gap.const_data_ptr(), margin.mutable_data_ptr(),
                                      norm.mutable_data_ptr()});
  }
  return {margin, norm};
}

// A tensor of the shape and type of grad, whose samples are dense and have its layout.
inline Tensor with_layout_of(const char* name, const Tensor& tensor, const Tensor& grad) {
  check(tensor.scalar_type() == grad.scalar_type() && same_shape(tensor, grad), name,
        " must have the shape and type of grad, ", shape(grad), " ", type_name(grad.scalar_type()),
        ", got ", shape(tensor), " ", type_name(tensor.scalar_type()));
  check_same_device(name, tensor, grad);
  if (sample_is_dense(tensor) && same_sample_layout(tensor, grad)) return tensor;
  Tensor copy = empty_like_samples(grad);
  torch::stable::copy_(copy, tensor);
  return copy;
}

// One value, or one for each channel of grad. The tensor returned owns their memory.
inline Tensor channel_values(const char* name, const Tensor& values, const Tensor& grad,
                             ChannelScale& channels) {
  const int64_t count = values.numel();
  check(values.dim() == 1 && (count == 1 || count == grad.size(1)), name,
        " must be [1] or one value a channel, [", grad.size(1), "], got ", shape(values));
  check_vector(name, values, accumulation_dtype(grad), count);
  check_same_device(name, values, grad);
  Tensor dense = contiguous_vector(values);
  channels = {dense.const_data_ptr(), count, channel_stride(grad)};
  return dense;
}

template <typename Backend>
Tensor dual_direction(const Tensor& grad, const Tensor& factor, const MaybeTensor& base, double q,
                      const MaybeTensor& input_scale) {
  check(grad.dim() >= 1, "grad must be [B, ...], got ", shape(grad));
  const int64_t batch = grad.size(0);
  GradInput input = grad_input(grad, input_scale, batch);
  check_vector("factor", factor, accumulation_dtype(grad), batch);
  check_same_device("factor", factor, grad);
  const Tensor dense_factor = contiguous_vector(factor);
  Tensor out = empty_like_samples(input.grad);
  DirectionArguments arguments;
  arguments.batch = batch;
  arguments.norm = norm_options(q);
  arguments.grad = input.rows;
  arguments.factor = dense_factor.const_data_ptr();
  MaybeTensor dense_base;
  if (base.has_value()) {
    dense_base = with_layout_of("base", *base, input.grad);
    arguments.base = dense_base->const_data_ptr();
    arguments.base_stride = dense_base->stride(0);
  }
  arguments.out = out.mutable_data_ptr();
  arguments.out_stride = out.stride(0);
  if (batch > 0) Backend(grad).dual_direction(arguments);
  return out;
}

// A step of an attack from x, in the memory layout of grad, or without grad of x. The tensors own
// the memory that `arguments` points to; `out` is still to be set.
struct AttackInput {
  GradInput grad;
  Tensor x;
  MaybeTensor center, length, radius, low, high;
  AttackArguments arguments;
};

inline AttackInput attack_input(const Tensor& x, const MaybeTensor& grad, const MaybeTensor& length,
                                const MaybeTensor& center, const MaybeTensor& radius, double q,
                                int64_t steepest, const MaybeTensor& low, const MaybeTensor& high,
                                const MaybeTensor& input_scale) {
  const Tensor& rows = grad.has_value() ? *grad : x;
  check(rows.dim() >= 1, grad.has_value() ? "grad" : "x", " must be [B, ...], got ", shape(rows));
  const int64_t batch = rows.size(0);
  AttackInput input{grad_input(rows, input_scale, batch), {}, {}, {}, {}, {}, {}, {}};
  AttackArguments& arguments = input.arguments;
  arguments.batch = batch;
  arguments.norm = norm_options(q);
  arguments.grad = input.grad.rows;
  if (!grad.has_value()) arguments.grad.data = nullptr;
  check(batch == 0 || (steepest >= 1 && steepest <= arguments.grad.size),
        "steepest must lie in 1..", arguments.grad.size, ", got ", steepest);
  check(steepest == 1 || steps_along_coordinates(arguments.norm.norm),
        "steepest is for p = 1, got q = ", q, " and steepest = ", steepest);
  arguments.steepest = steepest;
  check(length.has_value() == grad.has_value(), "grad and length must be given together");
  check(low.has_value() == high.has_value(), "low and high must be given together");
  input.x = with_layout_of("x", x, input.grad.grad);
  arguments.x = input.x.const_data_ptr();
  arguments.x_stride = input.x.stride(0);
  if (center.has_value()) {
    input.center = with_layout_of("center", *center, input.grad.grad);
    arguments.center = input.center->const_data_ptr();
    arguments.center_stride = input.center->stride(0);
  }
  const auto vector = [&](const char* name, const MaybeTensor& from, MaybeTensor& to) {
    if (!from.has_value()) return static_cast<const void*>(nullptr);
    check_vector(name, *from, accumulation_dtype(rows), batch);
    check_same_device(name, *from, rows);
    to = contiguous_vector(*from);
    return to->const_data_ptr();
  };
  arguments.length = vector("length", length, input.length);
  arguments.radius = vector("radius", radius, input.radius);
  if (low.has_value()) {
    input.low = channel_values("low", *low, input.grad.grad, arguments.low);
    input.high = channel_values("high", *high, input.grad.grad, arguments.high);
  }
  return input;
}

template <typename Backend>
Tensor attack_step(const Tensor& x, const MaybeTensor& grad, const MaybeTensor& length,
                   const MaybeTensor& center, const MaybeTensor& radius, double q, int64_t steepest,
                   const MaybeTensor& low, const MaybeTensor& high,
                   const MaybeTensor& input_scale) {
  AttackInput input =
      attack_input(x, grad, length, center, radius, q, steepest, low, high, input_scale);
  Tensor out = empty_like_samples(input.grad.grad);
  input.arguments.out = out.mutable_data_ptr();
  input.arguments.out_stride = out.stride(0);
  if (input.arguments.batch > 0) Backend(x).attack_step(input.arguments);
  return out;
}

// Into the memory of x.
template <typename Backend>
void attack_step_(Tensor x, const MaybeTensor& grad, const MaybeTensor& length,
                  const MaybeTensor& center, const MaybeTensor& radius, double q, int64_t steepest,
                  const MaybeTensor& low, const MaybeTensor& high, const MaybeTensor& input_scale) {
  AttackInput input =
      attack_input(x, grad, length, center, radius, q, steepest, low, high, input_scale);
  if (input.arguments.batch == 0) return;
  input.arguments.out = input.x.mutable_data_ptr();
  input.arguments.out_stride = input.x.stride(0);
  check(input.arguments.batch == 1 || input.x.stride(0) >= input.arguments.grad.size,
        "x must not share memory between its samples");
  Backend(x).attack_step(input.arguments);
  // Where x has another layout than grad, a copy was moved.
  if (input.x.const_data_ptr() != x.const_data_ptr()) torch::stable::copy_(x, input.x);
}

// Allocates outputs for the gradients that are needed and sets the arguments' pointers to them. The
// other outputs are empty.
inline std::tuple<Tensor, Tensor> allocate_gradients(const Tensor& logits, LossInput& input,
                                                     bool need_grad_logits, bool need_grad_grad) {
  Tensor grad_logits, grad_grad;
  if (need_grad_logits) {
    grad_logits = empty_strided(logits, logits.scalar_type(), logits.sizes(), {logits.size(1), 1});
    input.arguments.grad_logits = grad_logits.mutable_data_ptr();
  } else {
    grad_logits = empty_vector(logits, logits.scalar_type(), 0);
  }
  if (need_grad_grad && input.grad.has_value()) {
    grad_grad = empty_like_samples(input.grad->grad);
    input.arguments.grad_grad = grad_grad.mutable_data_ptr();
    input.arguments.grad_grad_stride = grad_grad.stride(0);
  } else {
    grad_grad = empty_vector(logits, logits.scalar_type(), 0);
  }
  return {grad_logits, grad_grad};
}

// loss, margin [B], gap [B], norm [B], statistics, grad_logits [B, C], grad_grad. norm is empty
// where there is no grad, and so is a gradient that is not needed.
template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> average_margin_loss(
    const Tensor& logits, const Tensor& target, const MaybeTensor& grad, const MaybeTensor& nearest,
    const MaybeTensor& class_weight, const MaybeTensor& input_scale, double q, double eps,
    double mu, int64_t regularizer, double lo, double hi, double label_smoothing,
    int64_t ignore_index, int64_t reduction, bool need_grad_logits, bool need_grad_grad) {
  LossInput input =
      loss_input(logits, target, grad, nearest, class_weight, input_scale,
                 {q, eps, mu, regularizer, lo, hi, label_smoothing, ignore_index, reduction});
  LossArguments& arguments = input.arguments;
  const int64_t batch = arguments.batch;
  const auto vector = [&](int64_t size) { return empty_vector(logits, input.type, size); };
  Tensor loss = arguments.reduction == Reduction::kNone ? vector(batch)
                                                        : empty_strided(logits, input.type, {}, {});
  Tensor margin = vector(batch);
  Tensor gap = vector(batch);
  Tensor norm = vector(grad.has_value() ? batch : 0);
  Tensor statistics = vector(kStatisticCount);
  const auto [grad_logits, grad_grad] =
      allocate_gradients(logits, input, need_grad_logits, need_grad_grad);
  arguments.loss = loss.mutable_data_ptr();
  arguments.margin = margin.mutable_data_ptr();
  arguments.gap = gap.mutable_data_ptr();
  arguments.statistics = statistics.mutable_data_ptr();
  if (grad.has_value()) arguments.norm_out = norm.mutable_data_ptr();
  // An empty batch is launched too: its loss and statistics have values.
  Backend backend(logits);
  backend.check_labels(arguments.logits, batch);
  backend.average_margin_loss(arguments);
  return {loss, margin, gap, norm, statistics, grad_logits, grad_grad};
}

// Gradients of sum_i upstream_i * L_i; upstream [1] or [B].
template <typename Backend>
std::tuple<Tensor, Tensor> average_margin_loss_backward(
    const Tensor& upstream, const Tensor& logits, const Tensor& target, const MaybeTensor& grad,
    const MaybeTensor& nearest, const MaybeTensor& class_weight, const MaybeTensor& input_scale,
    double q, double eps, double mu, int64_t regularizer, double lo, double hi,
    double label_smoothing, int64_t ignore_index, bool need_grad_logits, bool need_grad_grad) {
  LossInput input = loss_input(logits, target, grad, nearest, class_weight, input_scale,
                               {q, eps, mu, regularizer, lo, hi, label_smoothing, ignore_index,
                                static_cast<int64_t>(Reduction::kSum)});
  LossArguments& arguments = input.arguments;
  const int64_t batch = arguments.batch;
  check(upstream.dim() == 1 && (upstream.size(0) == 1 || upstream.size(0) == batch),
        "upstream must be [1] or [B] = [", batch, "], got ", shape(upstream));
  check_vector("upstream", upstream, input.type, upstream.size(0));
  check_same_device("upstream", upstream, logits);
  const Tensor dense_upstream = contiguous_vector(upstream);
  arguments.upstream = dense_upstream.const_data_ptr();
  arguments.upstream_per_sample = upstream.size(0) != 1;
  const auto [grad_logits, grad_grad] =
      allocate_gradients(logits, input, need_grad_logits, need_grad_grad);
  if (batch > 0) {
    Backend backend(logits);
    backend.check_labels(arguments.logits, batch);
    backend.average_margin_loss(arguments);
  }
  return {grad_logits, grad_grad};
}

inline ScaleArguments::Block scale_block(const char* name, const Tensor& tensor) {
  int64_t span = 1;  // the number of elements from the first to the last in memory
  for (int64_t d = 0; d < tensor.dim(); ++d) span += (tensor.size(d) - 1) * tensor.stride(d);
  check(tensor.numel() == 0 || span == tensor.numel(), name,
        " must be a tensor without gaps or overlaps");
  return {tensor.numel() == 0 ? nullptr : tensor.mutable_data_ptr(), dtype_of(name, tensor),
          tensor.numel()};
}

// Multiplies the stored gradients by upstream * statistics[kGradientScale] in place, and touches
// nothing where that is exactly 1.
template <typename Backend>
void scale_gradients_(Tensor grad_logits, Tensor grad_grad, const Tensor& upstream,
                      const Tensor& statistics) {
  const ScalarType type = accumulation_dtype(statistics);
  check(upstream.numel() == 1 && upstream.scalar_type() == type,
        "upstream must be one number of the type of statistics, got ", shape(upstream));
  check_vector("statistics", statistics, type, kStatisticCount);
  check(statistics.stride(0) == 1, "statistics must be contiguous");
  for (const Tensor* gradient : {&grad_logits, &grad_grad}) {
    check(gradient->numel() == 0 || is_double(*gradient) == is_double(statistics),
          "grad_logits, grad_grad and statistics must all be float64, or none of them");
  }
  check_same_device("grad_grad", grad_grad, grad_logits);
  check_same_device("upstream", upstream, grad_logits);
  check_same_device("statistics", statistics, grad_logits);
  const size_t element = is_double(statistics) ? sizeof(double) : sizeof(float);
  const ScaleArguments arguments{
      {scale_block("grad_logits", grad_logits), scale_block("grad_grad", grad_grad)},
      upstream.const_data_ptr(),
      static_cast<const char*>(statistics.const_data_ptr()) + kGradientScale * element};
  Backend(grad_logits).scale(arguments);
}

}  // namespace margin::binding

// Registers the ops of one backend under its dispatch key.
#define MARGIN_REGISTER_OPS(m, Backend)                                                     \
  m.impl("logit_gap", TORCH_BOX(&margin::binding::logit_gap<Backend>));                     \
  m.impl("first_order_margin", TORCH_BOX(&margin::binding::first_order_margin<Backend>));   \
  m.impl("class_margins", TORCH_BOX(&margin::binding::class_margins<Backend>));             \
  m.impl("dual_direction", TORCH_BOX(&margin::binding::dual_direction<Backend>));           \
  m.impl("attack_step", TORCH_BOX(&margin::binding::attack_step<Backend>));                 \
  m.impl("attack_step_", TORCH_BOX(&margin::binding::attack_step_<Backend>));               \
  m.impl("average_margin_loss", TORCH_BOX(&margin::binding::average_margin_loss<Backend>)); \
  m.impl("average_margin_loss_backward",                                                    \
         TORCH_BOX(&margin::binding::average_margin_loss_backward<Backend>));               \
  m.impl("scale_gradients_", TORCH_BOX(&margin::binding::scale_gradients_<Backend>))
