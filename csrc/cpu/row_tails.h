// The end of a row that fills no vector. A part of row_kernels.cpp, compiled for each instruction
// set.
#pragma once

#include "cpu/lanes.h"

namespace margin::cpu::MARGIN_ISA {
namespace {

// A vector of the last n < kLanes elements and zeros, which are neutral for every norm.
template <typename T>
MARGIN_HD Vector<Acc<T>> load_tail(const T* x, int64_t n) {
  T padded[Vector<Acc<T>>::kLanes] = {};
  std::memcpy(padded, x, n * sizeof(T));
  return load_lanes(padded);
}

template <typename T>
MARGIN_HD void store_tail(T* out, Vector<Acc<T>> v, int64_t n) {
  T padded[Vector<Acc<T>>::kLanes];
  store_lanes(padded, v);
  std::memcpy(out, padded, n * sizeof(T));
}

// whole(j) for every vector of a row of n elements, then rest(j, count) for what is left.
template <typename V, typename Whole, typename Rest>
MARGIN_HD void for_lanes(int64_t n, const Whole& whole, const Rest& rest) {
  int64_t j = 0;
  for (; j + V::kLanes <= n; j += V::kLanes) whole(j);
  if (j < n) rest(j, n - j);
}

}  // namespace
}  // namespace margin::cpu::MARGIN_ISA
