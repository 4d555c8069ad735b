// The passes over one sample's logits z [C], shared by the same threads as its row. Under a cluster
// the classes are split over all of its blocks: the partial results travel in the one exchange that
// the norm needs anyway, and at a large C no block becomes a straggler.
#pragma once

#include "core/sample_loss.h"
#include "cuda/group.h"
#include "cuda/numeric.h"

namespace margin::cuda {

// What is known of a sample before its logits are read.
template <typename Acc>
struct Label {
  int64_t target;
  int64_t critical;  // -1: the runner-up
  Acc target_logit;  // NaN where the label is bad
  Acc critical_logit;
  bool ignored;
  // A class out of range, or critical == target. Nothing can be thrown here, so the sample shows it
  // by NaN.
  bool bad;
};

// The classes k of a sample that fall to one thread: `visit(k, z_k)`.
template <typename Acc>
class Logits {
 public:
  MARGIN_DEVICE Logits(const LogitRows& rows, int64_t sample) : rows_(rows), sample_(sample) {}

  MARGIN_DEVICE Acc at(int64_t k) const {
    return load_as<Acc>(rows_.dtype, rows_.data, sample_ * rows_.batch_stride + k);
  }

  MARGIN_DEVICE Label<Acc> label() const {
    const auto in_range = [&](int64_t k) { return k >= 0 && k < rows_.classes; };
    Label<Acc> label;
    label.target = rows_.target[sample_];
    label.critical = rows_.critical == nullptr ? -1 : rows_.critical[sample_];
    label.ignored = label.target == rows_.ignore_index;
    const bool critical_fits =
        rows_.critical == nullptr || (in_range(label.critical) && label.critical != label.target);
    label.bad = !in_range(label.target) || !critical_fits;
    const bool readable = !label.ignored && !label.bad;
    label.target_logit = readable ? at(label.target) : not_a_number<Acc>();
    label.critical_logit =
        readable && rows_.critical != nullptr ? at(label.critical) : not_a_number<Acc>();
    return label;
  }

  template <typename Group, typename Visit>
  MARGIN_DEVICE void for_each(const Group& group, const Visit& visit) const {
    const int64_t step = static_cast<int64_t>(group.threads()) * group.ranks();
    const int64_t first = static_cast<int64_t>(group.threads()) * group.rank() + group.thread();
    for (int64_t start = first; start < rows_.classes; start += kUnroll * step) {
      Acc z[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t k = start + u * step;
        if (k < rows_.classes) z[u] = at(k);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t k = start + u * step;
        if (k < rows_.classes) visit(k, z[u]);
      }
    }
  }

 private:
  static constexpr int kUnroll = 4;  // loads under way at a time

  const LogitRows& rows_;
  int64_t sample_;
};

}  // namespace margin::cuda
