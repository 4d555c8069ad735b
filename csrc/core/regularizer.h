// The regularizers phi(t) of the margin or logit gap t, and their slopes.
// Wu and Yu 2019 use the ramp; the rest are what users of margin losses expect.
// To add one: an enumerator, a case in each function, and its twin in margin_ext/regularizers.py.
#pragma once

#include "core/platform.h"

namespace margin {

enum class RegularizerKind : int32_t {
  kRamp = 0,         // clamp(hi - t, 0, hi - lo)
  kHinge = 1,        // max(0, tau - t)
  kLinear = 2,       // -t
  kSoftplus = 3,     // tau * log(1 + exp(-t / tau))
  kExponential = 4,  // exp(-t / tau)
};

template <typename Acc>
struct Regularizer {
  RegularizerKind kind;
  Acc lo;  // ramp only
  Acc hi;  // ramp; tau for the others
};

template <typename Acc>
struct RegularizerValue {
  Acc value;
  Acc slope;
};

// At a kink the slope is that of the pushing side (-1), both ends of the ramp included: so computes
// torch.clamp, and so the authors' code. A NaN gives a NaN value.
template <typename Acc>
MARGIN_HD RegularizerValue<Acc> regularize(const Regularizer<Acc>& phi, Acc t) {
  switch (phi.kind) {
    case RegularizerKind::kRamp: {
      const Acc u = phi.hi - t;
      const Acc width = phi.hi - phi.lo;
      if (u < 0) return {Acc(0), Acc(0)};
      if (u > width) return {width, Acc(0)};
      return {u, Acc(-1)};
    }
    case RegularizerKind::kHinge: {
      const Acc u = phi.hi - t;
      if (u < 0) return {Acc(0), Acc(0)};
      return {u, Acc(-1)};
    }
    case RegularizerKind::kLinear:
      return {-t, Acc(-1)};
    case RegularizerKind::kSoftplus: {
      const Acc u = -t / phi.hi;
      const Acc e = exponential(-absolute(u));  // never overflows
      const Acc value = (u > 0 ? u : Acc(0)) + logarithm_1p(e);
      const Acc sigmoid = (u > 0 ? Acc(1) : e) / (1 + e);
      return {is_nan(u) ? u : phi.hi * value, -sigmoid};
    }
    default: {
      const Acc e = exponential(-t / phi.hi);
      return {e, -e / phi.hi};
    }
  }
}

}  // namespace margin
