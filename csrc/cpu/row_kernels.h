// The vectorised loops over one row, as a table of functions: row_kernels.cpp is compiled once per
// instruction set and the table is chosen when the library is first used.
#pragma once

#include "core/arguments.h"
#include "cpu/types.h"

namespace margin::cpu {

inline constexpr int kNormCount = 4;

// T: Float16, BFloat16, float or double, the stored type of the row.
template <typename T>
struct RowKernels {
  using A = Acc<T>;

  // Adds x [n], times scale [n] where not null, to the norm's state. Indexed by Norm.
  void (*accumulate[kNormCount])(const T* x, const A* scale, int64_t n, A q, NormState<A>& state);
  // out [n] = base [n] (0 where null) + direction_at(x [n]). Indexed by Norm. streamed: out is
  // written past the caches.
  void (*write_direction[kNormCount])(const T* x, const A* scale, const T* base, int64_t n,
                                      const Direction<A>& direction, T* out, bool streamed);

  // z [C] to buffer, which has room for padded_classes(C).
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
  // What one sample's logits yield; leaves e = exp(z - max) in the buffer. critical < 0: the
  // runner-up. class_weight null: ones (label smoothing only).
  LogitRow<A> (*reduce)(A* buffer, int64_t classes, int64_t target, int64_t critical,
                        bool smoothing, const A* class_weight);
  // The runner-up alone; the buffer is left as it was.
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

// Rows of logits are padded to a whole number of the widest vectors.
inline int64_t padded_classes(int64_t classes) { return (classes + 15) / 16 * 16; }

// The best set that this processor runs, or what MARGIN_EXT_INSTRUCTION_SET asks for; throws
// std::invalid_argument where that cannot be had.
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
