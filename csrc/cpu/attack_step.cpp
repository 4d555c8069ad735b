// attack_step: one step of an attack, its projection to the ball and to the data range.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
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

// The norm of x [n] with exponent q.
template <Norm norm, typename A>
A norm_of(const A* x, int64_t n, A q) {
  const auto accumulate = [&](A factor) {
    NormState<A> state;
    row_kernels<A>().accumulate(norm, x, nullptr, n, q, factor, state);
    return state;
  };
  NormState<A> state = accumulate(A(1));
  const A factor = second_pass_factor<norm>(state);
  if (factor != 1) {
    state = accumulate(factor);
    state.extra = factor;
  }
  return norm_value<norm>(state, q);
}

template <typename T>
class AttackStep {
 public:
  using A = Acc<T>;

  AttackStep(const AttackArguments& arguments)
      : arguments_(arguments),
        reader_(arguments.grad, arguments.batch, arguments.norm),
        scale_(for_elements<A>(arguments.grad.channels, size())),
        low_(for_elements<A>(arguments.low, size())),
        high_(for_elements<A>(arguments.high, size())) {}

  int64_t size() const { return arguments_.grad.size; }

  // Sample i. buffer [padded_classes(size())].
  void operator()(int64_t i, A* buffer) const {
    const T* const x = static_cast<const T*>(arguments_.x) + i * arguments_.x_stride;
    const T* center = nullptr;  // x
    if (arguments_.center != nullptr && arguments_.radius != nullptr) {
      center = static_cast<const T*>(arguments_.center) + i * arguments_.center_stride;
    }
    T* const out = static_cast<T*>(arguments_.out) + i * arguments_.out_stride;
    if (arguments_.grad.data == nullptr) {
      // Along a direction of zeros, whatever row it is made of.
      kernels_.move(Norm::kOne, x, center, x, data_of(scale_), size(), Direction<A>{}, buffer);
    } else if (!move_along_gradient(i, x, center, buffer)) {
      std::memset(static_cast<void*>(out), 0, size() * sizeof(T));
      kernels_.scale(out, size(), static_cast<A>(NAN));
      return;
    }
    kernels_.project(norm(), buffer, x, center, data_of(scale_), data_of(low_), data_of(high_),
                     size(), projection(i, buffer), out);
  }

 private:
  Norm norm() const { return arguments_.norm.norm; }

  // False: the gradient holds a NaN.
  bool move_along_gradient(int64_t i, const T* x, const T* center, A* moved) const {
    const T* grad = static_cast<const T*>(arguments_.grad.data) + i * arguments_.grad.batch_stride;
    const NormState<A> state = reader_.state(i);
    const A norm_of_grad = reader_.norm(state);
    if (is_nan(norm_of_grad)) return false;
    const A length = static_cast<const A*>(arguments_.length)[i];
    const bool shared = arguments_.steepest > 1;
    const Direction<A> direction =
        shared ? of_steepest(grad, length, moved) : reader_.direction(state, norm_of_grad, length);
    kernels_.move(norm(), x, center, grad, data_of(scale_), size(), direction, moved);
    return true;
  }

  Direction<A> of_steepest(const T* grad, A length, A* buffer) const {
    const int64_t k = arguments_.steepest;
    kernels_.load_logits(grad, size(), buffer);
    const A* scale = data_of(scale_);
    for (int64_t j = 0; j < size(); ++j) {
      buffer[j] = absolute(scale == nullptr ? buffer[j] : buffer[j] * scale[j]);
    }
    std::nth_element(buffer, buffer + k - 1, buffer + size(), std::greater<A>());
    Steepest<A> found{buffer[k - 1], 0};
    for (int64_t j = 0; j < size(); ++j) found.count += buffer[j] >= found.least;
    return steepest_direction(found, k, length);
  }

  Projection<A> projection(int64_t i, const A* moved) const {
    Projection<A> projection{Range<A>::infinity(), A(1), A(0)};  // P(d) = d
    if (arguments_.radius == nullptr) return projection;
    projection.radius = static_cast<const A*>(arguments_.radius)[i];
    visit_norm(norm(), [&](auto n) {
      if constexpr (shrinks_into_ball(n.value)) {
        const A p = static_cast<A>(threat_exponent(arguments_.norm.q));
        const A length = norm_of<n.value>(moved, size(), p);
        if (length > projection.radius) projection.factor = projection.radius / length;
      } else if constexpr (n.value == Norm::kMax) {
        projection.threshold = l1_threshold(projection.radius, [&](A threshold) {
          return kernels_.sum_above(moved, size(), threshold);
        });
      }
    });
    return projection;
  }

  const AttackArguments& arguments_;
  const RowKernels<T>& kernels_ = row_kernels<T>();
  GradientReader<T> reader_;
  std::vector<A> scale_;
  std::vector<A> low_;
  std::vector<A> high_;
};

}  // namespace

void attack_step(const AttackArguments& arguments, const Parallel& parallel) {
  dispatch(arguments.grad.dtype, [&]<typename T>(Type<T>) {
    const AttackStep<T> step(arguments);
    parallel.for_range(arguments.batch, grain_for(4 * step.size() * sizeof(T)),
                       [&](int64_t begin, int64_t end) {
                         std::vector<Acc<T>> buffer(padded_classes(step.size()));
                         for (int64_t i = begin; i < end; ++i) step(i, buffer.data());
                       });
  });
}

}  // namespace margin::cpu
