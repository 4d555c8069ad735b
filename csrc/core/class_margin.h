// The first-order margin to one class, and the nearest of several classes.
#pragma once

#include "core/sample_loss.h"

namespace margin {

// gap / norm. A gap of 0 lies on the boundary, whatever the norm. For any other gap and a norm of 0
// the margin is infinite and has the sign of the gap (NaN stays NaN).
template <typename Acc>
MARGIN_HD Acc class_margin(Acc gap, Acc norm) {
  if (gap == Acc(0)) return Acc(0);
  if (norm == Acc(0))
    return is_nan(gap) ? gap : gap > 0 ? -minus_infinity<Acc>() : minus_infinity<Acc>();
  return gap / norm;
}

// The smallest margin, and the first of the classes that have it. NaN counts as the smallest.
template <typename Acc>
struct NearestClass {
  Acc margin = -minus_infinity<Acc>();
  int number = INT32_MAX;
};

// The result does not depend on order and grouping.
template <typename Acc>
MARGIN_HD void nearest_combine(NearestClass<Acc>& nearest, const NearestClass<Acc>& other) {
  const bool nan = is_nan(nearest.margin), other_nan = is_nan(other.margin);
  const bool smaller = other_nan ? !nan : !nan && other.margin < nearest.margin;
  const bool equal = nan ? other_nan : other.margin == nearest.margin;
  if (smaller || (equal && other.number < nearest.number)) nearest = other;
}

}  // namespace margin
