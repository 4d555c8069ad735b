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
  int target;    // -1 where the label is ignored or bad
  int critical;  // -1 where it is that, or the runner-up is meant
  bool ignored;
  Acc target_logit;  // NaN where there is none

  // A class out of range, or critical == target. Nothing can be thrown here, so the sample shows it
  // by NaN.
  MARGIN_DEVICE bool bad() const { return target < 0 && !ignored; }
};

// One sample's logits. Launchers make sure that classes fit 32 bits.
template <typename Acc>
class Logits {
 public:
  MARGIN_DEVICE Logits(const LogitRows& rows, int64_t sample) : rows_(rows), sample_(sample) {}

  MARGIN_DEVICE int classes() const { return static_cast<int>(rows_.classes); }
  MARGIN_DEVICE Acc at(int k) const {
    return load_as<Acc>(rows_.dtype, rows_.data, sample_ * rows_.batch_stride + k);
  }

  MARGIN_DEVICE Label<Acc> label() const {
    const auto in_range = [&](int64_t k) { return k >= 0 && k < rows_.classes; };
    const bool has_critical = rows_.critical != nullptr;
    const int64_t target = rows_.target[sample_];
    const int64_t critical = has_critical ? rows_.critical[sample_] : -1;
    Label<Acc> label;
    label.ignored = target == rows_.ignore_index;
    const bool good = !label.ignored && in_range(target) &&
                      (!has_critical || (in_range(critical) && critical != target));
    label.target = static_cast<int>(good ? target : -1);
    label.critical = static_cast<int>(good ? critical : -1);
    label.target_logit = good ? at(label.target) : not_a_number<Acc>();
    return label;
  }

  // visit(k, z_k) for the classes that fall to this thread; `kUnroll` loads under way at a time.
  template <int kUnroll, typename Group, typename Visit>
  MARGIN_DEVICE void for_each(const Group& group, const Visit& visit) const {
    const int step = opaque(static_cast<int>(group.threads() * group.ranks()));
    const int first = opaque(static_cast<int>(group.threads() * group.rank() + group.thread()));
#pragma unroll 1
    for (int start = first; start < classes(); start += kUnroll * step) {
      Acc z[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int k = start + u * step;
        z[u] = 0;  // see RowPass::zero_pack
        if (k < classes()) z[u] = at(k);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int k = start + u * step;
        if (k < classes()) visit(k, z[u]);
      }
    }
  }

 private:
  const LogitRows& rows_;
  int64_t sample_;
};

}  // namespace margin::cuda
