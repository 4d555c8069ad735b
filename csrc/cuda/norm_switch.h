// The dual norm as a value, with core's formulas as functions of it. A kernel serves all norms: its
// code apart from the rows, most of it, would otherwise be compiled once for each, and the build
// would take three times as long. The switch is uniform and stands outside the loops over a row.
#pragma once

#include <type_traits>

#include "core/dual_norm.h"
#include "cuda/platform.h"

namespace margin::cuda {

// Where a kernel keeps a row between its two passes; with the norm it says what is kept.
enum class Storage {
  kAbsent,     // there is no row at all
  kNothing,    // the row is only read
  kRegisters,  // of a warp
  kOnChip,     // registers and shared memory of a block
  kReread,     // nowhere: it is read again
};

// q = inf keeps nothing of a row and reads it once, so there is nothing to reread. General q
// computes two powers an element: that takes longer than reading the row twice, so nothing is
// gained by keeping it.
MARGIN_HD constexpr bool serves(Storage storage, Norm norm) {
  switch (storage) {
    case Storage::kRegisters:
    case Storage::kOnChip:
      return norm != Norm::kGeneral;
    case Storage::kReread:
      return norm != Norm::kMax;
    default:
      return true;
  }
}

template <Storage storage, typename Acc>
struct NormSwitch {
  Norm norm;
  Acc q;

  // visit(std::integral_constant<Norm, norm>())
  template <typename Visit>
  MARGIN_DEVICE void apply(const Visit& visit) const {
    switch (norm) {
      case Norm::kOne:
        return apply_as<Norm::kOne>(visit);
      case Norm::kTwo:
        return apply_as<Norm::kTwo>(visit);
      case Norm::kMax:
        return apply_as<Norm::kMax>(visit);
      default:
        return apply_as<Norm::kGeneral>(visit);
    }
  }

  // Combines `other` into `state`.
  MARGIN_DEVICE void operator()(NormState<Acc>& state, const NormState<Acc>& other) const {
    apply([&](auto n) { norm_combine<n.value>(state, other, q); });
  }

  MARGIN_DEVICE Acc value(const NormState<Acc>& state) const {
    Acc value = 0;
    apply([&](auto n) { value = norm_value<n.value>(state, q); });
    return value;
  }

  MARGIN_DEVICE Direction<Acc> direction(const NormState<Acc>& state, Acc value,
                                         Acc coefficient) const {
    Direction<Acc> direction{};
    apply([&](auto n) { direction = make_direction<n.value>(state, value, coefficient, q); });
    return direction;
  }

 private:
  template <Norm n, typename Visit>
  MARGIN_DEVICE static void apply_as(const Visit& visit) {
    if constexpr (storage != Storage::kAbsent && serves(storage, n)) {
      visit(std::integral_constant<Norm, n>());
    }
  }
};

}  // namespace margin::cuda
