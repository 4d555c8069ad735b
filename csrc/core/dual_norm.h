// The dual norm ||x||_q of one sample's input gradient x, and its dual direction v.
//
// v is the vector with ||v||_p <= 1 that maximises <v, x>, where 1/p + 1/q = 1. The maximum is
// ||x||_q, and by the envelope theorem v is also the gradient of the norm. v = 0 where x = 0.
//
// A norm is accumulated element by element into a NormState. The states of the parts of a row can
// be combined in any grouping.
//
// To add a norm, add an enumerator to Norm and build: the compiler names every switch of this file
// that lacks it (no switch over Norm has a default). No other file of csrc/cpu or csrc/cuda
// changes.
#pragma once

#include <type_traits>

#include "core/platform.h"

namespace margin {

enum class Norm : int32_t {
  kOne = 0,      // p = inf
  kTwo = 1,      // p = 2
  kMax = 2,      // p = 1
  kGeneral = 3,  // any other real p > 1
};

// The norm of a dual exponent q >= 1. The compiler does not ask for a new norm here; compare its q
// with a tolerance, because q is computed from p.
inline Norm norm_from_q(double q) {
  if (q == 1) return Norm::kOne;
  if (q == 2) return Norm::kTwo;
  if (std::isinf(q)) return Norm::kMax;
  return Norm::kGeneral;
}

// Calls visit(std::integral_constant<Norm, norm>()): from a norm as a value to a norm as a template
// argument. This is the only switch over the norms that is not a formula.
MARGIN_NO_EXEC_CHECK
template <typename Visit>
MARGIN_HD decltype(auto) visit_norm(Norm norm, const Visit& visit) {
  switch (norm) {
    case Norm::kOne:
      return visit(std::integral_constant<Norm, Norm::kOne>());
    case Norm::kTwo:
      return visit(std::integral_constant<Norm, Norm::kTwo>());
    case Norm::kMax:
      return visit(std::integral_constant<Norm, Norm::kMax>());
    case Norm::kGeneral:
      return visit(std::integral_constant<Norm, Norm::kGeneral>());
  }
  __builtin_unreachable();
}

// What the dual direction needs to know of a row, apart from its norm.
enum class DirectionNeeds {
  kElements,  // every element
  kSigns,     // the sign of every element
  kLargest,   // the elements of largest magnitude
};

MARGIN_HD constexpr DirectionNeeds direction_needs(Norm norm) {
  switch (norm) {
    case Norm::kOne:
      return DirectionNeeds::kSigns;
    case Norm::kTwo:
    case Norm::kGeneral:
      return DirectionNeeds::kElements;
    case Norm::kMax:
      return DirectionNeeds::kLargest;
  }
  __builtin_unreachable();
}

// Whether the formulas of a norm take one number at a time and no vectors: because they compute
// powers, which makes them bound by arithmetic and not by memory, or because they branch or divide,
// which the CPU's vectors cannot.
MARGIN_HD constexpr bool takes_scalars(Norm norm) {
  switch (norm) {
    case Norm::kOne:
    case Norm::kTwo:
    case Norm::kMax:
      return false;
    case Norm::kGeneral:
      return true;
  }
  __builtin_unreachable();
}

// Whether sums of a norm can over- or underflow where the norm itself does not: see
// second_pass_factor.
MARGIN_HD constexpr bool may_need_second_pass(Norm norm) {
  switch (norm) {
    case Norm::kOne:
    case Norm::kMax:
    case Norm::kGeneral:  // scaled by its largest element
      return false;
    case Norm::kTwo:
      return true;
  }
  __builtin_unreachable();
}

// The two fields hold:
//
//   norm       sum             extra
//   kOne       sum |x|         -
//   kTwo       sum (f x)^2     the factor f of a second pass (second_pass_factor); 0: f = 1
//   kMax       max |x|         the number of elements that attain it
//   kGeneral   sum (|x|/m)^q   m = max |x|; scaled, because |x|^q would under- or overflow
//
// Every reduction propagates NaN, as torch.linalg.vector_norm does.
template <typename Acc>
struct NormState {
  Acc sum = Acc(0);
  Acc extra = Acc(0);
};

// Whether states combine by adding their sums, and `extra` has no meaning.
MARGIN_HD constexpr bool is_plain_sum(Norm norm) {
  switch (norm) {
    case Norm::kOne:
    case Norm::kTwo:
      return true;
    case Norm::kMax:
    case Norm::kGeneral:
      return false;
  }
  __builtin_unreachable();
}

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
    static_assert(norm == Norm::kGeneral, "a norm without a formula");
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
    static_assert(norm == Norm::kGeneral, "a norm without a formula");
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

// The range of squares, and powers of two that bring elements outside of it into its middle.
template <typename Acc>
struct Range;

template <>
struct Range<float> {
  static constexpr float kLeastSum = 0x1p-96f;  // a smaller sum of squares may have lost bits
  static constexpr float kLeastNormal = 0x1p-126f;
  static constexpr float kUp = 0x1p90f;
  static constexpr float kDown = 0x1p-80f;
  MARGIN_HD static float infinity() { return HUGE_VALF; }
};

template <>
struct Range<double> {
  static constexpr double kLeastSum = 0x1p-800;
  static constexpr double kLeastNormal = 0x1p-1022;
  static constexpr double kUp = 0x1p800;
  static constexpr double kDown = 0x1p-700;
  MARGIN_HD static double infinity() { return HUGE_VAL; }
};

// 1 if the state of a row is right, as it nearly always is. Otherwise the squares of the row have
// over- or underflowed. The caller then accumulates the row once more, with every element
// multiplied by this factor before anything else, and writes the factor into `extra` of the new
// state. (The three ranges are those of Blue, ACM TOMS 4 (1978).) A row of zeros, or one that holds
// an infinity, is accumulated twice too, and stays what it is.
template <Norm norm, typename Acc>
MARGIN_HD Acc second_pass_factor(const NormState<Acc>& state) {
  if constexpr (may_need_second_pass(norm)) {
    if (state.sum < Range<Acc>::kLeastSum) return Range<Acc>::kUp;
    if (state.sum == Range<Acc>::infinity()) return Range<Acc>::kDown;
  }
  return Acc(1);
}

template <Norm norm, typename Acc>
MARGIN_HD Acc norm_value(const NormState<Acc>& state, Acc q) {
  if constexpr (norm == Norm::kTwo) {
    const Acc root = square_root(state.sum);
    return state.extra == 0 ? root : root / state.extra;
  } else if constexpr (norm == Norm::kOne || norm == Norm::kMax) {
    return state.sum;
  } else {
    static_assert(norm == Norm::kGeneral, "a norm without a formula");
    return state.extra * power(state.sum, Acc(1) / q);
  }
}

// A row of c * v, c the coefficient given to make_direction. Its element j is
// direction_at(make_direction(...), x_j). The fields hold:
//
//   norm       coefficient     unit              last
//   kOne       c               -                 -
//   kTwo       c / ||x||       1                 1
//   kTwo, *    c               f                 1 / ||f x||
//   kMax       c / ties        max |x|           -
//   kGeneral   c               ||x||             q - 1
//
// *: where c / ||x|| is not a normal number, or the row was accumulated twice (second_pass_factor).
// A kGeneral norm that is not a normal number is replaced by max |x|, and c makes up for it. A row
// with a NaN has a NaN coefficient, and then all its elements are NaN. Under an infinite or NaN
// coefficient the elements that are 0 become NaN, as c times 0 is.
template <typename Acc>
struct Direction {
  Acc coefficient;
  Acc unit;
  Acc last;
};

// Whether a number has all its bits: not subnormal, 0, infinite or NaN.
template <typename Acc>
MARGIN_HD bool is_normal(Acc x) {
  return absolute(x) >= Range<Acc>::kLeastNormal && absolute(x) < Range<Acc>::infinity();
}

// c times 0 without its sign: 0, or NaN where c is infinite or NaN.
template <typename Acc>
MARGIN_HD Acc times_zero(Acc c) {
  return c - c;
}

template <Norm norm, typename Acc>
MARGIN_HD Direction<Acc> make_direction(const NormState<Acc>& state, Acc value, Acc coefficient,
                                        Acc q) {
  Direction<Acc> direction{coefficient, value, q - 1};
  if constexpr (norm == Norm::kTwo) {
    const bool once = state.extra == 0;
    const Acc root = once ? value : square_root(state.sum);
    direction = {root == 0 ? times_zero(coefficient) : coefficient / root, Acc(1), Acc(1)};
    const bool finite = absolute(coefficient) < Range<Acc>::infinity();
    if (root > 0 && finite && !(once && is_normal(direction.coefficient))) {
      direction = {coefficient, once ? Acc(1) : state.extra, 1 / root};
    }
  } else if constexpr (norm == Norm::kMax) {
    // Tied elements share the gradient equally, as in torch.linalg.vector_norm.
    direction.coefficient = value == 0 ? times_zero(coefficient) : coefficient / state.extra;
  } else if constexpr (norm == Norm::kGeneral) {
    if (!is_normal(value) && state.extra > 0 && state.extra < Range<Acc>::infinity()) {
      direction.unit = state.extra;
      direction.coefficient = coefficient * power(state.sum, (1 - q) / q);
    }
  } else {
    static_assert(norm == Norm::kOne, "a norm without a formula");
  }
  if (is_nan(value)) direction.coefficient = value;
  return direction;
}

template <Norm norm, typename Acc>
MARGIN_HD Acc direction_at(const Direction<Acc>& direction, Acc x) {
  const Acc c = direction.coefficient;
  const Acc zero = times_zero(c);
  if constexpr (norm == Norm::kTwo) {
    return c * (x * direction.unit * direction.last);
  } else if constexpr (norm == Norm::kOne) {
    return select(x > Acc(0), c, select(x < Acc(0), -c, zero));
  } else if constexpr (norm == Norm::kMax) {
    // No element is larger than the unit, except in an attack's step, whose unit may lie below the
    // maximum (steepest_direction). In a zero row both conditions hold, but there the coefficient
    // is 0.
    return select(x >= direction.unit, c, select(x <= -direction.unit, -c, zero));
  } else {
    static_assert(norm == Norm::kGeneral, "a norm without a formula");
    if (x == 0) return zero;
    const Acc size = c * power(absolute(x) / direction.unit, direction.last);
    return x > 0 ? size : -size;
  }
}

}  // namespace margin
