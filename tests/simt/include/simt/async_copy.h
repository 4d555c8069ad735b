// Asynchronous copies from global to shared memory (cp.async). A copy takes place when its thread
// waits for it and not before, so a kernel that forgets to wait reads what was there.
#pragma once

#include <unordered_map>
#include <utility>
#include <vector>

#include "simt/device.h"
#include "simt/machine.h"

namespace [[gnu::visibility("hidden")]] simt {

using Copies = std::vector<std::pair<uint4*, const uint4*>>;

inline std::unordered_map<const Thread*, Copies>& copies_in_flight() {
  static std::unordered_map<const Thread*, Copies> copies;
  return copies;
}

inline void copy_async(uint4* shared, const uint4* global) {
  copies_in_flight()[machine.current].emplace_back(aligned(shared), aligned(global));
}

inline void wait_for_copies() {
  Copies& copies = copies_in_flight()[machine.current];
  for (const auto& [to, from] : copies) *to = *from;
  copies.clear();
}

// What a prefetch does here: it reads one byte at either end, so that the address sanitizer sees
// one that leaves its tensor.
inline void touch(uintptr_t begin, uintptr_t end) {
  static_cast<void>(*reinterpret_cast<const volatile char*>(begin));
  static_cast<void>(*reinterpret_cast<const volatile char*>(end - 1));
}

}  // namespace simt
