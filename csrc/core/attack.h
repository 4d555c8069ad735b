// One step of an attack on a sample, coordinate by coordinate. s are the channels' factors; d is in
// pixel units, hence the division by s:
//
//   d   = (x + s L v(s g) - c) / s     c: the center, L: the length, v: the dual direction
//   out = clamp(c + s P(d), low, high)
//
// Without a radius out = clamp(x + s L v(s g), low, high), without a center c = x, and without a
// gradient v = 0. Under p = 1 the step can be shared by the k steepest coordinates: see
// steepest_direction.
//
// P brings d into the l_p ball of radius r. For p = 1, 2 and inf it is the nearest point:
//
//   p = inf   clamp(d, -r, r)
//   p = 1     sign(d) max(|d| - t, 0), with the smallest t >= 0 for which the l1 norm is at most r
//             (Duchi et al., 2008); t is found by Michelot's algorithm (1986)
//   others    d min(1, r / ||d||_p)
//
// A sample whose gradient holds a NaN becomes NaN, so that no attack stands still in silence.
#pragma once

#include "core/dual_norm.h"

namespace margin {

// Whether the dual direction lies along single coordinates, so that several can share a step.
MARGIN_HD constexpr bool steps_along_coordinates(Norm dual) {
  return direction_needs(dual) == DirectionNeeds::kLargest;
}

// Whether P multiplies every coordinate by the same factor.
MARGIN_HD constexpr bool shrinks_into_ball(Norm dual) {
  switch (dual) {
    case Norm::kTwo:
    case Norm::kGeneral:
      return true;
    case Norm::kOne:
    case Norm::kMax:
      return false;
  }
  __builtin_unreachable();
}

// The exponent of the threat norm: p with 1/p + 1/q = 1, for a real q > 1.
MARGIN_HD constexpr double threat_exponent(double q) { return q / (q - 1); }

template <typename Acc>
struct Projection {
  Acc radius;
  Acc factor;     // of a norm that shrinks
  Acc threshold;  // p = 1
};

template <Norm norm, typename Acc>
MARGIN_HD Acc project_at(const Projection<Acc>& projection, Acc d) {
  if constexpr (norm == Norm::kOne) {
    const Acc r = projection.radius;
    return select(d > r, r, select(d < -r, -r, d));
  } else if constexpr (shrinks_into_ball(norm)) {
    return d * projection.factor;
  } else {
    static_assert(norm == Norm::kMax, "a norm without a projection");
    const Acc rest = absolute(d) - projection.threshold;
    const Acc size = select(rest < Acc(0), Acc(0), rest);  // a NaN stays
    return select(d < Acc(0), -size, size);
  }
}

template <typename Acc>
MARGIN_HD Acc clamp_to(Acc x, Acc low, Acc high) {
  return select(x < low, low, select(x > high, high, x));
}

// The l1 norm and number of the elements that are larger than a threshold.
template <typename Acc>
struct SumAbove {
  Acc sum = Acc(0);
  Acc count = Acc(0);
};

// The l1 ball's threshold. `above(t)` returns the SumAbove of the whole row. In exact arithmetic
// the threshold only rises and elements only drop out, so it is final when none has dropped out.
// But rounding in sums of many similar elements can make it fall, and elements could drop out and
// return forever. So the search ends as soon as their count has not fallen. A row inside the ball
// has 0, one with a NaN has NaN, which makes all of it NaN.
MARGIN_NO_EXEC_CHECK
template <typename Acc, typename Above>
MARGIN_HD Acc l1_threshold(Acc radius, const Above& above) {
  SumAbove<Acc> found = above(Acc(0));
  if (!(found.sum > radius)) return is_nan(found.sum) ? found.sum : Acc(0);
  Acc threshold = Acc(0);
  for (;;) {
    threshold = (found.sum - radius) / found.count;
    const SumAbove<Acc> next = above(threshold);
    // No element may be left where the radius is 0 or rounding is unlucky.
    if (!(next.count < found.count) || next.count == Acc(0)) return threshold;
    found = next;
  }
}

// Where the k steepest coordinates begin: the number of magnitudes that are at least `least`.
template <typename Acc>
struct Steepest {
  Acc least = Acc(0);
  int64_t count = 0;
};

// The dual direction of p = 1 with its step shared by the k steepest coordinates, and those tied
// with the last of them. Numbers without all their bits do not count as steep, so that zeros never
// move.
template <typename Acc>
MARGIN_HD Direction<Acc> steepest_direction(const Steepest<Acc>& found, int64_t k, Acc length) {
  const bool full = found.least >= Range<Acc>::kLeastNormal;
  const int64_t sharing = full && found.count > k ? found.count : k;
  return {Acc(1) / static_cast<Acc>(sharing) * length,
          full ? found.least : Range<Acc>::kLeastNormal, Acc(0)};
}

}  // namespace margin
