// The dual norm ||x||_q of one sample's input gradient and its dual direction v: the vector with
// ||v||_p <= 1 that maximises <v, x> (1/p + 1/q = 1). <v, x> = ||x||_q, and by the envelope theorem
// d||x||_q = <v, dx>; so v is also the norm's gradient. v = 0 where x = 0.
//
// A norm is accumulated element by element into a NormState; states of parts of a row combine in
// any grouping. To add a norm: one enumerator, and one case in each function below.
#pragma once

#include "core/platform.h"

namespace margin {

enum class Norm : int32_t {
  kOne = 0,      // p = inf
  kTwo = 1,      // p = 2
  kMax = 2,      // p = 1
  kGeneral = 3,  // any other real p > 1
};

// What the two fields hold:   kOne      sum |x|          -
//                             kTwo      sum x^2          -
//                             kMax      max |x|          how many elements attain it
//                             kGeneral  sum (|x|/m)^q    m = max |x|   (scaled: |x|^q under- and
//                                                                       overflows for large q)
// Every reduction propagates NaN, as torch.linalg.vector_norm does.
template <typename Acc>
struct NormState {
  Acc sum = Acc(0);
  Acc extra = Acc(0);
};

template <Norm norm, typename Acc>
MARGIN_HD void norm_add(NormState<Acc>& state, Acc x, Acc q) {
  const Acc magnitude = absolute(x);
  if constexpr (norm == Norm::kOne) {
    state.sum += magnitude;
  } else if constexpr (norm == Norm::kTwo) {
    state.sum += x * x;
  } else if constexpr (norm == Norm::kMax) {
    const auto larger = (magnitude > state.sum) | is_nan(magnitude);
    const auto equal = magnitude == state.sum;
    state.extra = select(larger, Acc(1), select(equal, state.extra + Acc(1), state.extra));
    state.sum = select(larger, magnitude, state.sum);
  } else {
    if (magnitude > state.extra || is_nan(magnitude)) {
      const Acc before = state.extra > 0 ? state.sum * power(state.extra / magnitude, q) : Acc(0);
      state.sum = before + 1;
      state.extra = magnitude;
    } else if (magnitude > 0) {
      state.sum += magnitude == state.extra ? Acc(1) : power(magnitude / state.extra, q);
    }
  }
}

template <Norm norm, typename Acc>
MARGIN_HD void norm_combine(NormState<Acc>& state, const NormState<Acc>& other, Acc q) {
  if constexpr (norm == Norm::kOne || norm == Norm::kTwo) {
    state.sum += other.sum;
  } else if constexpr (norm == Norm::kMax) {
    const auto larger = (other.sum > state.sum) | is_nan(other.sum);
    const auto equal = other.sum == state.sum;
    state.extra =
        select(larger, other.extra, select(equal, state.extra + other.extra, state.extra));
    state.sum = select(larger, other.sum, state.sum);
  } else {
    if (other.extra > state.extra || is_nan(other.extra)) {
      const Acc before = state.extra > 0 ? state.sum * power(state.extra / other.extra, q) : Acc(0);
      state.sum = before + other.sum;
      state.extra = other.extra;
    } else if (other.extra > 0) {
      state.sum +=
          other.extra == state.extra ? other.sum : other.sum * power(other.extra / state.extra, q);
    }
  }
}

template <Norm norm, typename Acc>
MARGIN_HD Acc norm_value(const NormState<Acc>& state, Acc q) {
  if constexpr (norm == Norm::kTwo) {
    return square_root(state.sum);
  } else if constexpr (norm == Norm::kGeneral) {
    return state.extra * power(state.sum, Acc(1) / q);
  } else {
    return state.sum;
  }
}

// A row of coefficient * v, element by element: direction_at(make_direction(...), x_j).
template <typename Acc>
struct Direction {
  Acc coefficient;  // folded with everything that is constant over the row
  Acc norm;
  Acc exponent;  // q - 1, kGeneral only
};

template <Norm norm, typename Acc>
MARGIN_HD Direction<Acc> make_direction(const NormState<Acc>& state, Acc value, Acc coefficient,
                                        Acc q) {
  Direction<Acc> direction{coefficient, value, q - 1};
  if constexpr (norm == Norm::kTwo) {
    direction.coefficient = value == 0 ? Acc(0) : coefficient / value;
  } else if constexpr (norm == Norm::kMax) {
    // Ties share the gradient equally, as torch's vector_norm has it.
    direction.coefficient = value == 0 ? Acc(0) : coefficient / state.extra;
  }
  return direction;
}

template <Norm norm, typename Acc>
MARGIN_HD Acc direction_at(const Direction<Acc>& direction, Acc x) {
  const Acc c = direction.coefficient;
  if constexpr (norm == Norm::kTwo) {
    return c * x;
  } else if constexpr (norm == Norm::kOne) {
    return select(x > Acc(0), c, select(x < Acc(0), -c, Acc(0)));
  } else if constexpr (norm == Norm::kMax) {
    // A zero row has coefficient 0, so that the two cases may overlap there.
    return select(x == direction.norm, c, select(x == -direction.norm, -c, Acc(0)));
  } else {
    if (x == 0) return Acc(0);
    const Acc size = c * power(absolute(x) / direction.norm, direction.exponent);
    return x > 0 ? size : -size;
  }
}

}  // namespace margin
