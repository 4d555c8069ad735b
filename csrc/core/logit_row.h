// What one pass over a sample's logits z [C] yields; parts of a row combine in any grouping.
#pragma once

#include "core/platform.h"

namespace margin {

// -inf without <limits>, which device code may not call.
template <typename Acc>
MARGIN_HD Acc minus_infinity() {
  return -static_cast<Acc>(HUGE_VALF);
}

// The largest logit among the classes other than the target, and its class. Ties: the lowest class.
// A NaN anywhere wins, so that a broken sample shows.
template <typename Acc>
struct RunnerUp {
  Acc value = minus_infinity<Acc>();
  int64_t index = INT64_MAX;  // none yet

  MARGIN_HD void add(Acc z, int64_t k) {
    if (is_nan(value)) return;
    if (z > value || is_nan(z) || (z == value && k < index)) {
      value = z;
      index = k;
    }
  }
  MARGIN_HD void combine(const RunnerUp& other) { add(other.value, other.index); }
};

// log-sum-exp kept as (max, sum of exp(z - max)).
template <typename Acc>
struct LogSumExp {
  Acc max = minus_infinity<Acc>();
  Acc sum = 0;

  MARGIN_HD void add(Acc z) { combine(LogSumExp{z, Acc(1)}); }
  MARGIN_HD void combine(const LogSumExp& other) {
    if (other.sum == 0) return;
    if (sum == 0) {
      *this = other;
      return;
    }
    const bool larger = other.max > max;
    // Only -inf so far: stays an empty sum at -inf.
    if (!larger && other.max == max && max == minus_infinity<Acc>()) return;
    // +inf and NaN fall through to inf - inf = NaN, as in log_softmax.
    const Acc ratio = exponential(larger ? max - other.max : other.max - max);
    sum = larger ? sum * ratio + other.sum : sum + other.sum * ratio;
    if (larger) max = other.max;
  }
};

// The value of log-sum-exp minus z, for any class's logit z. A row that holds +inf has none (NaN,
// as in log_softmax).
template <typename Acc>
MARGIN_HD Acc negative_log_probability(const LogSumExp<Acc>& lse, Acc z) {
  if (lse.max == -minus_infinity<Acc>()) return lse.max - lse.max;
  return (lse.max - z) + logarithm(lse.sum);
}

template <typename Acc>
struct LogitRow {
  LogSumExp<Acc> log_sum_exp;
  RunnerUp<Acc> runner_up;
  Acc target = 0;  // z_y
  // The class that the gap is measured to: the runner-up, or the caller's choice.
  Acc critical = 0;
  int64_t critical_index = -1;
  // Label smoothing only: sum_c w_c (z_max - z_c), summed once z_max is known.
  Acc smoothing_sum = 0;
};

}  // namespace margin
