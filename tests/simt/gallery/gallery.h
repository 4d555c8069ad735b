// Runs a gallery kernel with one planted bug and says whether it went wrong.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gallery/cluster_norm.h"
#include "gallery/row_norm.h"
#include "gallery/warp_rows.h"

namespace gallery {

// A buffer between two pads that nobody may read (NaN) or write (checked). Under AddressSanitizer
// the pads are its own red zones.
class Buffer {
 public:
  explicit Buffer(std::size_t size)
      : size_(size), memory_(size + 2 * kPad, std::numeric_limits<float>::quiet_NaN()) {}
  float* data() { return memory_.data() + kPad; }
  std::size_t size() const { return size_; }
  bool pads_untouched() const {
    bool untouched = true;
    for (std::size_t i = 0; i < kPad; ++i) {
      untouched &= std::isnan(memory_[i]) && std::isnan(memory_[kPad + size_ + i]);
    }
    return untouched;
  }

 private:
#ifdef SIMT_ASAN
  static constexpr std::size_t kPad = 0;
#else
  static constexpr std::size_t kPad = 16;
#endif
  std::size_t size_;
  std::vector<float> memory_;
};

inline Buffer input(int rows, int columns) {
  Buffer buffer(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
  unsigned state = 1;
  for (std::size_t i = 0; i < buffer.size(); ++i) {
    state = state * 1664525u + 1013904223u;
    buffer.data()[i] = static_cast<float>(state >> 8) / (1 << 24) - 0.3f;
  }
  return buffer;
}

inline bool close(float got, double expected) {
  return std::fabs(got - expected) <= 1e-4 * (1.0 + std::fabs(expected));
}

// The result of one run: what is wrong with it ("" for nothing), and the bits of the batch's total,
// which must be the same under every schedule.
struct Outcome {
  std::string wrong;
  float total = 0.0f;

  void expect(bool right, const char* otherwise) {
    if (!right && wrong.empty()) wrong = otherwise;
  }
};

inline Outcome run_row_norm(void (*kernel)(RowArguments)) {
  constexpr int rows = 37, columns = 301;
  Buffer x = input(rows, columns), scaled(x.size()), norm(rows), largest(rows), total(1);
  unsigned counter = 0;
  Outcome outcome;
  for (int repeat = 0; repeat < 2; ++repeat) {  // the second finds the counter as the first left it
    *total.data() = 0.0f;
    simt::launch(kernel, simt::Config{dim3(rows), dim3(kRowWarps * 32)},
                 RowArguments{x.data(),
                              columns,
                              scaled.data(),
                              {norm.data(), largest.data(), total.data(), &counter}});
    double sum = 0.0;
    for (int r = 0; r < rows; ++r) {
      double squares = 0.0, peak = 0.0;
      for (int i = 0; i < columns; ++i) {
        const double v = x.data()[r * columns + i];
        squares += v * v;
        peak = std::fmax(peak, std::fabs(v));
      }
      outcome.expect(close(norm.data()[r], std::sqrt(squares)), "wrong norm");
      outcome.expect(close(largest.data()[r], peak), "wrong largest element");
      for (int i = 0; i < columns; ++i) {
        const int at = r * columns + i;
        outcome.expect(close(scaled.data()[at], x.data()[at] / std::sqrt(squares)), "wrong row");
      }
      sum += std::sqrt(squares) + peak;
    }
    outcome.expect(close(*total.data(), sum), "wrong total");
    outcome.total = *total.data();
  }
  for (const Buffer* buffer : {&scaled, &norm, &largest, &total}) {
    outcome.expect(buffer->pads_untouched(), "write outside a buffer");
  }
  return outcome;
}

inline Outcome run_warp_rows(void (*kernel)(WarpArguments)) {
  constexpr int rows = 7, columns = 53;
  Buffer x = input(rows, columns), reversed(x.size()), sum(rows);
  simt::launch(kernel,
               simt::Config{dim3((rows + kWarpRows - 1) / kWarpRows), dim3(kWarpRows * 32),
                            kWarpRows * columns * sizeof(float)},
               WarpArguments{x.data(), rows, columns, reversed.data(), sum.data()});
  Outcome outcome;
  for (int r = 0; r < rows; ++r) {
    double expected = 0.0;
    for (int i = 0; i < columns; ++i) {
      expected += x.data()[r * columns + i];
      outcome.expect(reversed.data()[r * columns + i] == x.data()[r * columns + columns - 1 - i],
                     "wrong row");
    }
    outcome.expect(close(sum.data()[r], expected), "wrong sum");
  }
  outcome.expect(reversed.pads_untouched() && sum.pads_untouched(), "write outside a buffer");
  return outcome;
}

inline Outcome run_cluster_norm(void (*kernel)(ClusterArguments)) {
  constexpr int rows = 3, columns = 203, blocks = 4;
  Buffer x = input(rows, columns), norm(rows * blocks);
  simt::launch(kernel, simt::Config{dim3(rows * blocks), dim3(32), 0, blocks},
               ClusterArguments{x.data(), columns, norm.data()});
  Outcome outcome;
  for (int r = 0; r < rows; ++r) {
    double squares = 0.0;
    for (int i = 0; i < columns; ++i) squares += std::pow(x.data()[r * columns + i], 2.0);
    for (int b = 0; b < blocks; ++b) {
      outcome.expect(close(norm.data()[r * blocks + b], std::sqrt(squares)), "wrong norm");
    }
  }
  return outcome;
}

inline Outcome run_clean() {
  Outcome outcome = run_row_norm(row_norm<kNone>);
  outcome.wrong +=
      run_warp_rows(warp_rows<kNone>).wrong + run_cluster_norm(cluster_norm<kNone>).wrong;
  return outcome;
}

using Run = Outcome (*)();

template <int bug>
Run runner() {
  if constexpr (bug == kNone) {
    return run_clean;
  } else if constexpr (bug < kMissingSyncwarp) {
    return [] { return run_row_norm(row_norm<bug>); };
  } else if constexpr (bug < kMissingFirstClusterSync) {
    return [] { return run_warp_rows(warp_rows<bug>); };
  } else {
    return [] { return run_cluster_norm(cluster_norm<bug>); };
  }
}

template <int... bugs>
Run find_among(int bug) {
  Run found = nullptr;
  ((found = bug == bugs ? runner<bugs>() : found), ...);
  return found;
}

// The run of one bug; null if there is no such bug.
inline Run find(int bug) {
  return find_among<kNone, kMissingBarrier, kReadPastEnd, kHalfMask, kStaticOverrun, kMissedWarp,
                    kUninitialisedShared, kShuffleUnderCondition, kReuseWithoutBarrier,
                    kUnalignedVector, kEarlyReturn, kTwoBarriers, kNarrowShuffle, kWritePastEnd,
                    kEveryBlockIsLast, kCounterNotReset, kFlagWithoutBarrier, kPlainCounter,
                    kCountedTooEarly, kOrderOfArrival, kMissingSyncwarp, kDynamicOverrun,
                    kUnalignedStatic, kLaneLeavesEarly, kMissingFirstClusterSync,
                    kMissingLastClusterSync, kRankOutOfRange, kOneBlockSkipsSync>(bug);
}

}  // namespace gallery
