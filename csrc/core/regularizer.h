// The regularizers phi(t) of the margin or logit gap t, and their slopes. Wu and Yu (arXiv
// 1907.11780) use the ramp; the others are common in margin losses.
//
// To add one, add an enumerator and build: the compiler names both switches of this file that lack
// it. No other C++ file changes. Its Python twins are in margin_ext/regularizers.py and
// margin_ext/reference.
#pragma once

#include "core/platform.h"

namespace margin {

enum class RegularizerKind : int32_t {
  kRamp = 0,         // clamp(hi - t, 0, hi - lo)
  kHinge = 1,        // max(0, tau - t)
  kLinear = 2,       // -t
  kSoftplus = 3,     // tau * log(1 + exp(-t / tau))
  kExponential = 4,  // exp(-t / tau)
  kAdditive = 5,     // no function of t: the label's logit is lowered (additive_margin.h)
};

// Whether a number that came from Python names a kind.
constexpr bool is_regularizer(int64_t number) {
  switch (static_cast<RegularizerKind>(number)) {
    case RegularizerKind::kRamp:
    case RegularizerKind::kHinge:
    case RegularizerKind::kLinear:
    case RegularizerKind::kSoftplus:
    case RegularizerKind::kExponential:
    case RegularizerKind::kAdditive:
      return number == static_cast<int32_t>(number);
  }
  return false;
}

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

// At a kink the slope is -1, that of the side which pushes the margin up. This includes both ends
// of the ramp, and agrees with torch.clamp and with the authors' code. A NaN gives a NaN value.
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
    case RegularizerKind::kExponential: {
      const Acc e = exponential(-t / phi.hi);
      return {e, -e / phi.hi};
    }
    case RegularizerKind::kAdditive:
      break;
  }
  __builtin_unreachable();
}

}  // namespace margin
