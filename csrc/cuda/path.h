// The ways along a row: with per-channel factors, or plain.
#pragma once

#include "core/arguments.h"
#include "cuda/platform.h"

namespace margin::cuda {

template <typename Acc>
MARGIN_DEVICE Acc channel_factor(const ChannelScale& channels, int64_t element) {
  if (channels.scale == nullptr) return Acc(1);
  return static_cast<const Acc*>(channels.scale)[element / channels.stride % channels.count];
}

// How a thread goes along its packs, where these have factors or are not stored whole. The factors
// are found by addition: a division for every pack would cost as much as everything else that is
// done to it. Launchers make sure that count and stride fit 32 bits.
template <typename Acc>
class GeneralPath {
 public:
  static constexpr bool kPlain = false;

  // From `element` on; step() then goes `step` elements forward.
  MARGIN_DEVICE GeneralPath(const ChannelScale& channels, int64_t element, int step)
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
    if (factors_ == nullptr) return;
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

// The usual case: no factors, and all rows of a sample lie alike to 16-byte boundaries. Apart from
// the general one, because the kernels for it need half the code and fewer registers.
struct PlainPath {
  static constexpr bool kPlain = true;

  MARGIN_DEVICE void step() {}
  template <typename Acc, int count>
  MARGIN_DEVICE void scale(Acc (&)[count]) const {}
};

}  // namespace margin::cuda
