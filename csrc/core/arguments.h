// What every backend of an op is handed: plain pointers, sizes and options. No torch, no CUDA.
//
// A sample is D elements that lie densely in memory in any order (norms do not depend on it);
// samples are batch_stride elements apart (any value, 0 included). Per-sample vectors are
// contiguous. `Acc` is float, or double where logits and grad are float64.
#pragma once

#include "core/dual_norm.h"
#include "core/statistics.h"

namespace margin {

enum class Dtype : int32_t { kFloat16 = 0, kBFloat16 = 1, kFloat32 = 2, kFloat64 = 3 };

struct NormOptions {
  Norm norm = Norm::kTwo;
  double q = 2;
};

// Per-channel factors s (1 / input_std): the norm is taken of s * g, and what is written along the
// direction is multiplied by s. Element j of a sample has channel (j / stride) % count.
struct ChannelScale {
  const void* scale = nullptr;  // Acc [count]; null: none
  int64_t count = 1;
  int64_t stride = 1;
};

// grad [B, D]
struct GradientRows {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t batch_stride = 0;
  int64_t size = 0;  // D
  ChannelScale channels;
};

// logits [B, C], last dimension contiguous
struct LogitRows {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t batch_stride = 0;
  int64_t classes = 0;                // C
  const int64_t* target = nullptr;    // [B]
  const int64_t* critical = nullptr;  // [B]: the class the gap is measured to; null: the runner-up
  int64_t ignore_index = -100;
};

// gap [B], runner_up [B] (-1 where the sample is ignored, whose gap is NaN)
struct LogitGapArguments {
  int64_t batch = 0;
  LogitRows logits;
  void* gap = nullptr;  // Acc
  int64_t* runner_up = nullptr;
};

// margin [B], norm [B]
struct MarginArguments {
  int64_t batch = 0;
  NormOptions norm;
  double eps = 0;
  GradientRows grad;
  const void* gap = nullptr;  // Acc [B]
  void* margin = nullptr;     // Acc [B]
  void* norm_out = nullptr;   // Acc [B]
};

// out [B, D] = base + factor_i * v(grad_i); with margin_backward's factor it is that op's backward.
struct DirectionArguments {
  int64_t batch = 0;
  NormOptions norm;
  GradientRows grad;
  const void* factor = nullptr;  // Acc [B]
  const void* base = nullptr;    // dtype of grad, [B, D] in grad's element order; null: 0
  int64_t base_stride = 0;
  void* out = nullptr;  // dtype of grad
  int64_t out_stride = 0;
};

struct LossArguments {
  int64_t batch = 0;
  LogitRows logits;
  GradientRows grad;  // data == null: the regularizer takes the logit gap, and norm is not written
  NormOptions norm;
  double eps = 0;
  double mu = 0;
  RegularizerKind regularizer = RegularizerKind::kRamp;
  double lo = 0;
  double hi = 0;
  double label_smoothing = 0;
  const void* class_weight = nullptr;  // Acc [C]
  Reduction reduction = Reduction::kMean;

  // Outputs; null: not wanted.
  void* loss = nullptr;         // Acc [1], or [B] under Reduction::kNone
  void* margin = nullptr;       // Acc [B]; NaN where the sample is ignored, as gap and norm
  void* gap = nullptr;          // Acc [B]
  void* norm_out = nullptr;     // Acc [B]
  void* statistics = nullptr;   // Acc [kStatisticCount]
  void* grad_logits = nullptr;  // dtype of logits, contiguous [B, C]
  void* grad_grad = nullptr;    // dtype of grad
  int64_t grad_grad_stride = 0;

  // Gradients are those of sum_i L_i * upstream_i, further divided by B under kMean without
  // upstream (statistics[kGradientScale] says what is still missing then).
  const void* upstream = nullptr;  // Acc [1] or [B]
  bool upstream_per_sample = false;
};

// What a backward does to the gradients that the forward stored: both are multiplied in place by
// upstream[0] * gradient_scale[0]; nothing is touched where that product is exactly 1.
struct ScaleArguments {
  struct Block {
    void* data = nullptr;  // null: absent
    Dtype dtype = Dtype::kFloat32;
    int64_t size = 0;  // elements, dense
  };
  Block blocks[2];                       // grad_logits, grad_grad
  const void* upstream = nullptr;        // Acc [1]
  const void* gradient_scale = nullptr;  // Acc [1]: statistics + kGradientScale
};

}  // namespace margin
