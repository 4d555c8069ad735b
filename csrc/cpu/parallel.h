// The threads that the kernels may use. The binding passes those of torch.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>

namespace margin::cpu {

// Other threads see the non-temporal stores that came before. It waits for the memory, so it is for
// the end of a task, not of a row.
inline void non_temporal_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

struct Parallel {
  int64_t threads = 1;
  // Calls body(begin, end, context) for disjoint parts of [0, count), each of at least `grain`. All
  // that they have stored is seen afterwards.
  void (*run)(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
              void* context) = nullptr;

  template <typename Body>
  void for_range(int64_t count, int64_t grain, const Body& body) const {
    if (count <= 0) return;
    if (threads <= 1 || count <= grain) {
      body(int64_t{0}, count);
      non_temporal_fence();
      return;
    }
    run(
        count, grain,
        [](int64_t begin, int64_t end, void* context) {
          (*static_cast<const Body*>(context))(begin, end);
          non_temporal_fence();
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

// The fewest items a task should have, so that its work outweighs starting a thread.
inline int64_t grain_for(int64_t bytes_per_item) {
  constexpr int64_t kBytesPerTask = 64 * 1024;
  return bytes_per_item >= kBytesPerTask ? 1 : kBytesPerTask / (bytes_per_item + 1) + 1;
}

}  // namespace margin::cpu
