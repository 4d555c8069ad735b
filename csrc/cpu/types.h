// The stored types of the CPU kernels, and the accumulation dtype of each.
#pragma once

#include <cstdint>
#include <type_traits>

namespace margin::cpu {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace margin::cpu
