// From tensors to the plain arguments of csrc/core/arguments.h. Checks everything that can be
// checked without reading device memory.
#pragma once

#include <limits>
#include <optional>

#include "torch/layout.h"

namespace margin::binding {

using MaybeTensor = std::optional<Tensor>;

// The ops take 0 for an infinite q: exported programs are stored as JSON, which has no infinity.
inline NormOptions norm_options(double q) {
  check(q >= 1 || q == 0, "q must be at least 1, or 0 for infinity, got ", q);
  if (q == 0) q = std::numeric_limits<double>::infinity();
  NormOptions options;
  options.q = q;
  options.norm = norm_from_q(q);
  return options;
}

// The accumulation dtype of tensors of a type.
inline ScalarType accumulation_dtype(const Tensor& tensor) {
  return is_double(tensor) ? ScalarType::Double : ScalarType::Float;
}

// The floor of the norm, and its inverse, must be normal numbers of the type that they are used in.
inline double checked_eps(double eps, ScalarType type) {
  const bool wide = type == ScalarType::Double;
  const double least =
      wide ? std::numeric_limits<double>::min() : std::numeric_limits<float>::min();
  const double most = wide ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
  check(eps >= least && eps <= most, "eps must lie in ", least, "..", most, " for ",
        type_name(type), ", got ", eps);
  return eps;
}

// Logits whose last dimension is contiguous. The tensors own the memory that `rows` points to.
struct LogitInput {
  Tensor logits;
  Tensor target;
  MaybeTensor nearest;
  LogitRows rows;
};

inline LogitInput logit_input(const Tensor& logits, const Tensor& target,
                              const MaybeTensor& nearest, int64_t ignore_index) {
  check(logits.dim() == 2, "logits must be [B, C], got ", shape(logits));
  check(logits.size(1) >= 2, "logits must have at least 2 classes, got ", shape(logits));
  const int64_t batch = logits.size(0);
  check(target.scalar_type() == ScalarType::Long, "target must be int64 class indices, got ",
        type_name(target.scalar_type()));
  check(target.dim() == 1 && target.size(0) == batch, "target must be [B] = [", batch,
        "] (logits are ", shape(logits), "), got ", shape(target));
  check_same_device("target", target, logits);
  LogitInput input{logits, contiguous_vector(target), std::nullopt, {}};
  if (logits.stride(1) != 1) input.logits = torch::stable::contiguous(logits);
  if (nearest.has_value()) {
    check_vector("nearest", *nearest, ScalarType::Long, batch);
    check_same_device("nearest", *nearest, logits);
    input.nearest = contiguous_vector(*nearest);
  }
  input.rows.dtype = dtype_of("logits", logits);
  input.rows.data = input.logits.const_data_ptr();
  input.rows.batch_stride = input.logits.stride(0);
  input.rows.classes = logits.size(1);
  input.rows.target = static_cast<const int64_t*>(input.target.const_data_ptr());
  if (input.nearest.has_value()) {
    input.rows.nearest = static_cast<const int64_t*>(input.nearest->const_data_ptr());
  }
  input.rows.ignore_index = ignore_index;
  return input;
}

struct GradInput {
  Tensor grad;  // with dense samples
  MaybeTensor scale;
  GradientRows rows;
};

inline GradInput grad_input(const Tensor& grad, const MaybeTensor& input_scale, int64_t batch) {
  check(grad.dim() >= 2 && grad.size(0) == batch, "grad must be [B, ...] with B = ", batch,
        ", got ", shape(grad));
  check(batch == 0 || sample_size(grad) > 0, "grad must have at least one element a sample, got ",
        shape(grad));
  GradInput input{dense_samples(grad), std::nullopt, {}};
  input.rows.dtype = dtype_of("grad", grad);
  input.rows.data = input.grad.const_data_ptr();
  input.rows.batch_stride = input.grad.stride(0);
  input.rows.size = sample_size(grad);
  if (input_scale.has_value()) {
    const int64_t count = input_scale->numel();
    check(input_scale->dim() == 1 && (count == 1 || count == grad.size(1)),
          "input_scale must be [1] or one value a channel, [", grad.size(1), "], got ",
          shape(*input_scale));
    check_vector("input_scale", *input_scale, accumulation_dtype(grad), count);
    check_same_device("input_scale", *input_scale, grad);
    input.scale = contiguous_vector(*input_scale);
    input.rows.channels = {input.scale->const_data_ptr(), count, channel_stride(input.grad)};
  }
  return input;
}

// The input that average_margin_loss and its backward share.
struct LossInput {
  LogitInput logits;
  std::optional<GradInput> grad;
  MaybeTensor class_weight;
  LossArguments arguments;
  ScalarType type = ScalarType::Float;  // the accumulation dtype
};

struct LossSettings {
  double q, eps, mu;
  int64_t regularizer;
  double lo, hi, label_smoothing;
  int64_t ignore_index, reduction;
};

inline LossInput loss_input(const Tensor& logits, const Tensor& target, const MaybeTensor& grad,
                            const MaybeTensor& nearest, const MaybeTensor& class_weight,
                            const MaybeTensor& input_scale, const LossSettings& settings) {
  LossInput input{logit_input(logits, target, nearest, settings.ignore_index), {}, {}, {}, {}};
  const int64_t batch = logits.size(0);
  LossArguments& arguments = input.arguments;
  arguments.batch = batch;
  arguments.logits = input.logits.rows;
  input.type = accumulation_dtype(logits);
  if (grad.has_value()) {
    check(is_double(*grad) == is_double(logits),
          "logits and grad must both be float64, or neither of them, got ",
          type_name(logits.scalar_type()), " and ", type_name(grad->scalar_type()));
    check_same_device("grad", *grad, logits);
    input.grad = grad_input(*grad, input_scale, batch);
    arguments.grad = input.grad->rows;
  }
  if (class_weight.has_value()) {
    check_vector("class_weight", *class_weight, input.type, logits.size(1));
    check_same_device("class_weight", *class_weight, logits);
    input.class_weight = contiguous_vector(*class_weight);
    arguments.class_weight = input.class_weight->const_data_ptr();
  }
  check(is_regularizer(settings.regularizer), "unknown regularizer number ", settings.regularizer);
  if (static_cast<RegularizerKind>(settings.regularizer) == RegularizerKind::kAdditive) {
    check(grad.has_value() && !nearest.has_value(),
          "the additive margin needs grad and takes no nearest class");
  }
  check(settings.reduction >= 0 && settings.reduction <= 2, "unknown reduction number ",
        settings.reduction);
  check(settings.label_smoothing >= 0 && settings.label_smoothing <= 1,
        "label_smoothing must lie in 0..1, got ", settings.label_smoothing);
  arguments.norm = norm_options(settings.q);
  arguments.eps = grad.has_value() ? checked_eps(settings.eps, input.type) : settings.eps;
  arguments.mu = settings.mu;
  arguments.regularizer = static_cast<RegularizerKind>(settings.regularizer);
  arguments.lo = settings.lo;
  arguments.hi = settings.hi;
  arguments.label_smoothing = settings.label_smoothing;
  arguments.reduction = static_cast<Reduction>(settings.reduction);
  return input;
}

}  // namespace margin::binding
