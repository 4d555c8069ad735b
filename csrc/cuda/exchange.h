// How the states of core's reductions travel between the lanes of a warp, and their combination.
#pragma once

#include "core/dual_norm.h"
#include "core/statistics.h"
#include "cuda/constants.h"
#include "cuda/platform.h"

namespace margin::cuda {

template <typename Value>
MARGIN_DEVICE Value from_lane_xor(Value value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}
MARGIN_DEVICE int64_t from_lane_xor(int64_t value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, static_cast<long long>(value), lanes);
}
template <typename Acc>
MARGIN_DEVICE NormState<Acc> from_lane_xor(const NormState<Acc>& state, int lanes) {
  return {from_lane_xor(state.sum, lanes), from_lane_xor(state.extra, lanes)};
}
template <typename Acc>
MARGIN_DEVICE RunnerUp<Acc> from_lane_xor(const RunnerUp<Acc>& state, int lanes) {
  return {from_lane_xor(state.value, lanes), from_lane_xor(state.index, lanes)};
}
template <typename Acc>
MARGIN_DEVICE LogSumExp<Acc> from_lane_xor(const LogSumExp<Acc>& state, int lanes) {
  return {from_lane_xor(state.max, lanes), from_lane_xor(state.sum, lanes)};
}

MARGIN_DEVICE BatchTotals from_lane_xor(const BatchTotals& totals, int lanes) {
  BatchTotals out;
  out.loss = from_lane_xor(totals.loss, lanes);
  out.weight = from_lane_xor(totals.weight, lanes);
  out.cross_entropy = from_lane_xor(totals.cross_entropy, lanes);
  out.regularizer = from_lane_xor(totals.regularizer, lanes);
  out.margin = from_lane_xor(totals.margin, lanes);
  out.gap = from_lane_xor(totals.gap, lanes);
  out.norm = from_lane_xor(totals.norm, lanes);
  out.correct = from_lane_xor(totals.correct, lanes);
  out.count = from_lane_xor(totals.count, lanes);
  out.minimum = from_lane_xor(totals.minimum, lanes);
  return out;
}

// A butterfly: every lane ends with the same state, combined in the same tree every time. Not
// unrolled: these are few instructions a sample, and were most of the code of every kernel.
template <typename State, typename Combine>
MARGIN_DEVICE State reduce_warp(State state, const Combine& combine) {
#pragma unroll 1
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) combine(state, from_lane_xor(state, lanes));
  return state;
}

}  // namespace margin::cuda
