// The kernel variants: who shares a row, and where the row is kept between its two passes. This is
// the one table of them; policy.h chooses from it.
//
// To add a variant: an enumerator and its cases here, when to take it in policy.h, and in
// row_pass.h how it keeps a row, if that is new.
#pragma once

#include "core/dual_norm.h"

namespace margin::cuda {

enum class Variant : int32_t {
  kAuto = -1,  // not a variant: the policy chooses
  kWarp = 0,   // one warp a row, which is kept in shared memory
  kBlock = 1,  // one block a row, or a cluster of blocks; kept in shared memory as far as it fits
  kReread = 2  // one block a row, or a cluster of blocks; nothing is kept, the row is read twice
};
inline constexpr int kVariantCount = 3;

constexpr const char* name_of(Variant variant) {
  switch (variant) {
    case Variant::kAuto:
      return "none";
    case Variant::kWarp:
      return "warp";
    case Variant::kBlock:
      return "block";
    case Variant::kReread:
      return "reread";
  }
  return "unknown";
}

// Whether an op without rows has a kernel of this variant. Where there is no row, there is nothing
// to read again.
constexpr bool runs_without_row(Variant variant) {
  return variant == Variant::kWarp || variant == Variant::kBlock;
}

// What an op does with its rows.
enum class RowUse {
  kAbsent,    // it has none
  kRead,      // it reads them
  kReadWrite  // it reads them and writes a row along each one's direction
};

// What is kept of a row between its two passes.
enum class Kept {
  kUnserved,  // no kernel of this variant serves the norm
  kNothing,   // nothing: the row is read again, or there is no second pass
  kPacks,     // its packs, in shared memory; those beyond its capacity are read again
  kSigns,     // two bits an element, likewise
  kLargest,   // where each thread saw its largest element; the first pass writes zeros
};

MARGIN_HD constexpr Kept kept(Variant variant, RowUse use, Norm norm) {
  if (use == RowUse::kAbsent) return Kept::kUnserved;
  if (use == RowUse::kRead) return Kept::kNothing;
  switch (variant) {
    case Variant::kAuto:
      return Kept::kUnserved;
    case Variant::kWarp:
    case Variant::kBlock:
      // Powers take longer than a second read of the row, so keeping it would gain nothing.
      if (takes_scalars(norm)) return Kept::kUnserved;
      switch (direction_needs(norm)) {
        case DirectionNeeds::kElements:
          return Kept::kPacks;
        case DirectionNeeds::kSigns:
          return Kept::kSigns;
        case DirectionNeeds::kLargest:
          return Kept::kLargest;
      }
      return Kept::kUnserved;
    case Variant::kReread:
      return takes_scalars(norm) ? Kept::kNothing : Kept::kUnserved;
  }
  return Kept::kUnserved;
}

// Whether an op has a kernel of this variant for rows of T. float64 serves gradient checks, and
// every kernel takes seconds of every build, so it has no kernels for warps.
template <typename T>
constexpr bool has_kernel(Variant variant, RowUse use) {
  if (variant == Variant::kWarp) return !std::is_same_v<T, double>;
  return variant != Variant::kReread || use == RowUse::kReadWrite;
}

}  // namespace margin::cuda
