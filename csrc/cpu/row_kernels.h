// The vectorised loops over one row, as a table of functions. row_kernels.cpp is compiled once for
// each instruction set, and the table is chosen when the library is first used.
#pragma once

#include "core/arguments.h"
#include "core/attack.h"
#include "cpu/types.h"

namespace margin::cpu {

// T: Float16, BFloat16, float or double, the stored type of the row.
template <typename T>
struct RowKernels {
  using A = Acc<T>;

  // Adds x [n] times factor, times scale [n] unless that is null, to the norm's state. The factor
  // is 1, or that of a second pass (second_pass_factor).
  void (*accumulate)(Norm norm, const T* x, const A* scale, int64_t n, A q, A factor,
                     NormState<A>& state);
  // out [n] = base [n] (0 where null) + direction_at(x [n]), by non-temporal stores where asked.
  void (*write_direction)(Norm norm, const T* x, const A* scale, const T* base, int64_t n,
                          const Direction<A>& direction, T* out, bool non_temporal);

  // moved [n] = (x + scale * v - center) / scale with v = direction_at(scale * grad); scale null:
  // 1; center null: v.
  void (*move)(Norm norm, const T* x, const T* center, const T* grad, const A* scale, int64_t n,
               const Direction<A>& direction, A* moved);
  // out [n] = clamp(center + scale * project_at(moved), low, high); center null: x; low and high
  // null: no range.
  void (*project)(Norm norm, const A* moved, const T* x, const T* center, const A* scale,
                  const A* low, const A* high, int64_t n, const Projection<A>& projection, T* out);
  // Of moved [n], in a fixed order.
  SumAbove<A> (*sum_above)(const A* moved, int64_t n, A threshold);

  // Copies z [C] to the buffer, which has room for padded_classes(C).
  void (*load_logits)(const T* z, int64_t classes, A* buffer);
  // out [C] = gradient, from e [C] = exp(z - max).
  void (*write_logit_gradient)(const A* e, const A* class_weight, int64_t classes,
                               const LogitGradient<A>& gradient, T* out);
  // data [n] *= factor
  void (*scale)(T* data, int64_t n, A factor);
};

// Loops over a row of logits that were loaded into a buffer.
template <typename A>
struct LogitKernels {
  // Reduces one sample's logits and leaves e = exp(z - max) in the buffer. nearest: the class that
  // the gap is measured to; negative: the runner-up. class_weight: for label smoothing; null: ones.
  LogitRow<A> (*reduce)(A* buffer, int64_t classes, int64_t target, int64_t nearest, bool smoothing,
                        const A* class_weight);
  // The same of the classes other than the target, whose e is 0, for the additive margin.
  LogitRow<A> (*reduce_others)(A* buffer, int64_t classes, int64_t target, bool smoothing,
                               const A* class_weight);
  // The same, without label smoothing, for `count` rows that are `stride` apart and have at most
  // kFewClasses classes: several samples share a vector. The results have the same bits.
  void (*reduce_together)(A* buffer, int64_t stride, int64_t classes, int64_t count,
                          const int64_t* target, const int64_t* nearest, LogitRow<A>* rows);
  void (*reduce_others_together)(A* buffer, int64_t stride, int64_t classes, int64_t count,
                                 const int64_t* target, const int64_t* nearest, LogitRow<A>* rows);
  // Finds the runner-up and leaves the buffer as it was.
  RunnerUp<A> (*runner_up)(A* buffer, int64_t classes, int64_t target);
};

struct KernelSet {
  const char* name;
  const RowKernels<Float16>& float16;
  const RowKernels<BFloat16>& bfloat16;
  const RowKernels<float>& float32;
  const RowKernels<double>& float64;
  const LogitKernels<float>& logits32;
  const LogitKernels<double>& logits64;
};

// Up to this many classes the logits of several samples are reduced together.
inline constexpr int64_t kFewClasses = 32;

// Rows of logits are padded to a whole number of the widest vectors.
inline int64_t padded_classes(int64_t classes) { return (classes + 15) / 16 * 16; }

// The best set that this processor can run, or the one that MARGIN_EXT_INSTRUCTION_SET names.
// Throws std::invalid_argument where that one was not built or cannot run.
const KernelSet& kernel_set();

template <typename T>
const RowKernels<T>& row_kernels() {
  if constexpr (std::is_same_v<T, Float16>) return kernel_set().float16;
  if constexpr (std::is_same_v<T, BFloat16>) return kernel_set().bfloat16;
  if constexpr (std::is_same_v<T, float>) return kernel_set().float32;
  if constexpr (std::is_same_v<T, double>) return kernel_set().float64;
}

template <typename A>
const LogitKernels<A>& logit_kernels() {
  if constexpr (std::is_same_v<A, float>) return kernel_set().logits32;
  if constexpr (std::is_same_v<A, double>) return kernel_set().logits64;
}

}  // namespace margin::cpu
