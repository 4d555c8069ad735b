// The arguments of every op as its backends receive them: plain pointers, sizes and options,
// without torch or CUDA.
//
// The D elements of a sample fill one block of memory, in any order, because norms do not depend on
// it. Samples are batch_stride elements apart; the stride may have any value, including 0.
// Per-sample vectors are contiguous. `Acc`, the accumulation dtype, is double where logits and grad
// are float64, and float otherwise.
#pragma once

#include "core/dual_norm.h"
#include "core/statistics.h"

namespace margin {

enum class Dtype : int32_t { kFloat16 = 0, kBFloat16 = 1, kFloat32 = 2, kFloat64 = 3 };

struct NormOptions {
  Norm norm = Norm::kTwo;
  double q = 2;
};

// Factors s per channel (1 / input_std). The norm is that of s * g, and the direction that is
// written is multiplied by s. Element j of a sample belongs to channel (j / stride) % count.
struct ChannelScale {
  const void* scale = nullptr;  // Acc [count]; null: no factors
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
  int64_t classes = 0;               // C
  const int64_t* target = nullptr;   // [B]
  const int64_t* nearest = nullptr;  // [B]: the class the gap is measured to; null: the runner-up
  int64_t ignore_index = -100;
};

// gap [B], runner_up [B]. An ignored sample has gap NaN and runner_up -1.
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

// Rows of K classes a sample: margin [P, B, K], norm [P, B, K] in P norms, and nearest [P, B], the
// number of the class with the smallest margin (core/class_margin.h). grad.batch_stride leads from
// sample to sample, class_stride from class to class.
struct ClassMarginArguments {
  static constexpr int kMaxNorms = 8;

  int64_t batch = 0;
  int64_t classes = 0;  // K
  int norms = 0;        // P
  NormOptions norm[kMaxNorms];
  GradientRows grad;
  int64_t class_stride = 0;
  const void* gap = nullptr;   // Acc [B, K]
  void* margin = nullptr;      // Acc
  void* norm_out = nullptr;    // Acc
  int64_t* nearest = nullptr;  // -1 where there is no class
};

// out [B, D] = base + factor_i * v(grad_i), where v is the dual direction (dual_norm.h).
struct DirectionArguments {
  int64_t batch = 0;
  NormOptions norm;
  GradientRows grad;
  const void* factor = nullptr;  // Acc [B]
  const void* base = nullptr;    // [B, D], dtype and element order of grad; null: 0
  int64_t base_stride = 0;
  void* out = nullptr;  // dtype of grad
  int64_t out_stride = 0;
};

// out [B, D]: x after one step of an attack (core/attack.h). x, center and out have the dtype and
// the element order of grad. out may be x.
struct AttackArguments {
  int64_t batch = 0;
  NormOptions norm;      // the dual of the threat norm
  GradientRows grad;     // data == null: no step, only the projections; the rest describes x
  int64_t steepest = 1;  // p = 1: the number of coordinates that share the step
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* center = nullptr;  // null: x
  int64_t center_stride = 0;
  const void* length = nullptr;  // Acc [B]; null where there is no grad
  const void* radius = nullptr;  // Acc [B]; null: no ball
  ChannelScale low;              // of the data range, by channel; null: no range
  ChannelScale high;
  void* out = nullptr;
  int64_t out_stride = 0;
};

struct LossArguments {
  int64_t batch = 0;
  LogitRows logits;
  GradientRows grad;  // data == null: the regularizer takes the gap, and no norm is written
  NormOptions norm;
  double eps = 0;
  double mu = 0;
  RegularizerKind regularizer = RegularizerKind::kRamp;
  double lo = 0;
  double hi = 0;
  double label_smoothing = 0;
  const void* class_weight = nullptr;  // Acc [C]
  Reduction reduction = Reduction::kMean;

  // Outputs; an output that is null is not computed.
  void* loss = nullptr;         // Acc [1], or [B] under Reduction::kNone
  void* margin = nullptr;       // Acc [B]; margin, gap and norm of an ignored sample are NaN
  void* gap = nullptr;          // Acc [B]
  void* norm_out = nullptr;     // Acc [B]
  void* statistics = nullptr;   // Acc [kStatisticCount]
  void* grad_logits = nullptr;  // dtype of logits, contiguous [B, C]
  void* grad_grad = nullptr;    // dtype of grad
  int64_t grad_grad_stride = 0;

  // The gradients are those of sum_i L_i * upstream_i. Without upstream they are those of sum_i
  // L_i, divided by B under Reduction::kMean; statistics[kGradientScale] is the factor that is then
  // still missing.
  const void* upstream = nullptr;  // Acc [1] or [B]
  bool upstream_per_sample = false;
};

// The backward pass multiplies the gradients that the forward pass stored, in place, by
// upstream[0] * gradient_scale[0]. It touches nothing where that product is exactly 1.
struct ScaleArguments {
  struct Block {
    void* data = nullptr;  // null: there is no such gradient
    Dtype dtype = Dtype::kFloat32;
    int64_t size = 0;  // elements, dense
  };
  Block blocks[2];                       // grad_logits, grad_grad
  const void* upstream = nullptr;        // Acc [1]
  const void* gradient_scale = nullptr;  // Acc [1]: statistics + kGradientScale
};

}  // namespace margin
