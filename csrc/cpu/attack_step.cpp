// attack_step: one step of an attack, its projection to the ball and to the data range.
#include <cmath>
#include <cstring>
#include <vector>

#include "core/attack.h"
#include "cpu/dispatch.h"
#include "cpu/gradient_rows.h"
#include "cpu/ops.h"

namespace margin::cpu {
namespace {

// One value for each element of a row. Empty where there are no values.
template <typename A>
std::vector<A> for_elements(const ChannelScale& channels, int64_t size) {
  std::vector<A> values;
  if (channels.scale == nullptr) return values;
  values.resize(size);
  for (int64_t j = 0; j < size; ++j) {
    values[j] = static_cast<const A*>(channels.scale)[(j / channels.stride) % channels.count];
  }
  return values;
}

template <typename A>
const A* data_of(const std::vector<A>& values) {
  return values.empty() ? nullptr : values.data();
}

// The l2 norm of x [n].
template <typename A>
A norm_of(const A* x, int64_t n) {
  const auto accumulate = [&](A factor) {
    NormState<A> state;
    row_kernels<A>().accumulate(Norm::kTwo, x, nullptr, n, A(2), factor, state);
    return state;
  };
  NormState<A> state = accumulate(A(1));
  const A factor = second_pass_factor<Norm::kTwo>(state);
  if (factor != 1) {
    state = accumulate(factor);
    state.extra = factor;
  }
  return norm_value<Norm::kTwo>(state, A(2));
}

template <typename T>
void attack_step_typed(const AttackArguments& arguments, const Parallel& parallel) {
  using A = Acc<T>;
  const RowKernels<T>& kernels = row_kernels<T>();
  const GradientReader<T> reader(arguments.grad, arguments.batch, arguments.norm);
  const Norm norm = arguments.norm.norm;
  const int64_t size = reader.size();
  const std::vector<A> scale = for_elements<A>(arguments.grad.channels, size);
  const std::vector<A> low = for_elements<A>(arguments.low, size);
  const std::vector<A> high = for_elements<A>(arguments.high, size);
  const auto row = [](const void* data, int64_t stride, int64_t i) {
    return static_cast<const T*>(data) + i * stride;
  };
  const auto step = [&](int64_t i, A* moved) {
    const NormState<A> state = reader.state(i);
    const A norm_of_grad = reader.norm(state);
    T* const out = static_cast<T*>(arguments.out) + i * arguments.out_stride;
    if (is_nan(norm_of_grad)) {
      std::memset(static_cast<void*>(out), 0, size * sizeof(T));
      kernels.scale(out, size, static_cast<A>(NAN));
      return;
    }
    const A length = static_cast<const A*>(arguments.length)[i];
    const T* center = row(arguments.center, arguments.center_stride, i);
    kernels.move(norm, row(arguments.x, arguments.x_stride, i), center,
                 row(arguments.grad.data, arguments.grad.batch_stride, i), data_of(scale), size,
                 reader.direction(state, norm_of_grad, length), moved);
    Projection<A> projection{static_cast<const A*>(arguments.radius)[i], A(1), A(0)};
    if (norm == Norm::kTwo) {
      const A length_moved = norm_of(moved, size);
      if (length_moved > projection.radius) projection.factor = projection.radius / length_moved;
    } else if (norm == Norm::kMax) {
      projection.threshold = l1_threshold(projection.radius, [&](A threshold) {
        return kernels.sum_above(moved, size, threshold);
      });
    }
    kernels.project(norm, moved, center, data_of(scale), data_of(low), data_of(high), size,
                    projection, out);
  };
  parallel.for_range(arguments.batch, grain_for(4 * size * sizeof(T)),
                     [&](int64_t begin, int64_t end) {
                       std::vector<A> moved(size);
                       for (int64_t i = begin; i < end; ++i) step(i, moved.data());
                     });
}

}  // namespace

void attack_step(const AttackArguments& arguments, const Parallel& parallel) {
  dispatch(arguments.grad.dtype,
           [&]<typename T>(Type<T>) { attack_step_typed<T>(arguments, parallel); });
}

}  // namespace margin::cpu
