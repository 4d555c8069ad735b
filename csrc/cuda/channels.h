// The per-channel factors of a row's elements.
#pragma once

#include "core/arguments.h"
#include "cuda/platform.h"

namespace margin::cuda {

template <typename Acc>
MARGIN_DEVICE Acc channel_factor(const ChannelScale& channels, int64_t element) {
  if (channels.scale == nullptr) return Acc(1);
  return static_cast<const Acc*>(channels.scale)[element / channels.stride % channels.count];
}

// The factors along a thread's packs, found by addition: a division for every pack would cost as
// much as everything else that is done to it. Launchers make sure that count and stride fit 32
// bits.
template <typename Acc>
class ChannelCursor {
 public:
  // From `element` on; step() then goes `step` elements forward.
  MARGIN_DEVICE ChannelCursor(const ChannelScale& channels, int64_t element, int step)
      : factors_(static_cast<const Acc*>(channels.scale)),
        count_(static_cast<int>(channels.count)),
        stride_(static_cast<int>(channels.stride)),
        within_(static_cast<int>(element % stride_)),
        channel_(static_cast<int>(element / stride_ % count_)),
        step_within_(step % stride_),
        step_channel_(step / stride_ % count_) {}

  MARGIN_DEVICE void step() {
    within_ += step_within_;
    channel_ += step_channel_;
    if (within_ >= stride_) {
      within_ -= stride_;
      ++channel_;
    }
    if (channel_ >= count_) channel_ -= count_;
  }

  // x times the factors of the elements that follow.
  template <int count>
  MARGIN_DEVICE void scale(Acc (&x)[count]) const {
    int within = within_;
    int channel = channel_;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      x[k] *= factors_[channel];
      if (++within == stride_) {
        within = 0;
        if (++channel == count_) channel = 0;
      }
    }
  }

 private:
  const Acc* factors_;
  int count_;
  int stride_;
  int within_;
  int channel_;
  int step_within_;
  int step_channel_;
};

// In place of a cursor where there are no factors.
struct NoChannels {
  MARGIN_DEVICE void step() {}
  template <typename Acc, int count>
  MARGIN_DEVICE void scale(Acc (&)[count]) const {}
};

}  // namespace margin::cuda
