// One step of an attack on a sample, coordinate by coordinate. In pixel units, that is divided by
// the factors s of the channels:
//
//   d   = (x - c) / s + L v(s g)        c: the center, L: the length, v: the dual direction
//   out = clamp(c + s P(d), low, high)
//
// P brings d into the l_p ball of radius r. It is the nearest point of the ball:
//
//   p = inf   clamp(d, -r, r)
//   p = 2     d min(1, r / ||d||_2)
//   p = 1     sign(d) max(|d| - t, 0), with the smallest t >= 0 for which the l1 norm is at most r
//             (Duchi et al., 2008); t is found by Michelot's algorithm (1986)
//
// A sample whose gradient holds a NaN becomes NaN, so that no attack stands still in silence.
#pragma once

#include "core/dual_norm.h"

namespace margin {

// Whether attacks exist for the dual of a threat norm.
MARGIN_HD constexpr bool is_attackable(Norm norm) {
  switch (norm) {
    case Norm::kOne:
    case Norm::kTwo:
    case Norm::kMax:
      return true;
    case Norm::kGeneral:
      return false;
  }
  return false;
}

template <typename Acc>
struct Projection {
  Acc radius;
  Acc factor;     // p = 2
  Acc threshold;  // p = 1
};

template <Norm norm, typename Acc>
MARGIN_HD Acc project_at(const Projection<Acc>& projection, Acc d) {
  if constexpr (norm == Norm::kOne) {
    const Acc r = projection.radius;
    return select(d > r, r, select(d < -r, -r, d));
  } else if constexpr (norm == Norm::kTwo) {
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

// The l1 ball's threshold. `above(t)` returns the SumAbove of the whole row. The threshold only
// rises, and elements only leave, so it is final when none has left.
MARGIN_NO_EXEC_CHECK
template <typename Acc, typename Above>
MARGIN_HD Acc l1_threshold(Acc radius, const Above& above) {
  SumAbove<Acc> found = above(Acc(0));
  if (!(found.sum > radius)) return Acc(0);  // inside the ball, or NaN
  Acc threshold = Acc(0);
  for (;;) {
    threshold = (found.sum - radius) / found.count;
    const SumAbove<Acc> next = above(threshold);
    // No element may be left where the radius is 0 or rounding is unlucky.
    if (next.count == found.count || next.count == Acc(0)) return threshold;
    found = next;
  }
}

}  // namespace margin
