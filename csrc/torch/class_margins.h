// The body of class_margins: rows of several classes a sample, in several norms.
#pragma once

#include <tuple>
#include <vector>

#include "torch/arguments_from_tensors.h"

namespace margin::binding {

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> class_margins(const Tensor& gap, const Tensor& grad,
                                                 std::vector<double> q,
                                                 const MaybeTensor& input_scale) {
  check(grad.dim() >= 3, "grad must be [B, K, ...], got ", shape(grad));
  const int64_t batch = grad.size(0), classes = grad.size(1);
  const int64_t rows = batch * classes;
  int64_t size = 1;
  for (int64_t d = 2; d < grad.dim(); ++d) size *= grad.size(d);
  check(rows == 0 || size > 0, "grad must have at least one element a class, got ", shape(grad));
  check(classes <= INT32_MAX, "grad must have fewer than 2^31 classes, got ", shape(grad));
  constexpr int64_t kMost = ClassMarginArguments::kMaxNorms;
  const int64_t norms = static_cast<int64_t>(q.size());
  check(norms >= 1 && norms <= kMost, "q must name 1 to ", kMost, " norms, got ", norms);
  const ScalarType type = accumulation_dtype(grad);
  check(gap.dim() == 2 && gap.size(0) == batch && gap.size(1) == classes, "gap must be [", batch,
        ", ", classes, "], got ", shape(gap));
  check(gap.scalar_type() == type, "gap must be ", type_name(type), ", got ",
        type_name(gap.scalar_type()));
  check_same_device("gap", gap, grad);

  const Tensor dense = sample_is_dense(grad, 2) ? grad : torch::stable::contiguous(grad);
  const Tensor dense_gap = torch::stable::contiguous(gap);
  ClassMarginArguments arguments;
  arguments.batch = batch;
  arguments.classes = classes;
  arguments.norms = static_cast<int>(norms);
  for (int64_t p = 0; p < norms; ++p) arguments.norm[p] = norm_options(q[p]);
  arguments.grad.dtype = dtype_of("grad", dense);
  arguments.grad.data = dense.const_data_ptr();
  arguments.grad.batch_stride = dense.stride(0);
  arguments.grad.size = size;
  arguments.class_stride = dense.stride(1);
  MaybeTensor scale;
  if (input_scale.has_value()) {
    const int64_t count = input_scale->numel();
    check(input_scale->dim() == 1 && (count == 1 || count == grad.size(2)),
          "input_scale must be [1] or one value a channel, [", grad.size(2), "], got ",
          shape(*input_scale));
    check_vector("input_scale", *input_scale, type, count);
    check_same_device("input_scale", *input_scale, grad);
    scale = contiguous_vector(*input_scale);
    const int64_t stride = dense.size(2) > 1 ? dense.stride(2) : 1;
    arguments.grad.channels = {scale->const_data_ptr(), count, stride};
  }
  const auto made = [&](ScalarType of) {
    return empty_strided(grad, of, {norms, batch, classes}, {rows, classes, 1});
  };
  Tensor margin = made(type);
  Tensor norm = made(type);
  Tensor nearest = empty_strided(grad, ScalarType::Long, {norms, batch}, {batch, 1});
  arguments.gap = dense_gap.const_data_ptr();
  arguments.margin = margin.mutable_data_ptr();
  arguments.norm_out = norm.mutable_data_ptr();
  arguments.nearest = static_cast<int64_t*>(nearest.mutable_data_ptr());
  if (batch > 0) Backend(grad).class_margins(arguments);
  return {margin, norm, nearest};
}

}  // namespace margin::binding
