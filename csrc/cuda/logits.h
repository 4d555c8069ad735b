// The passes over one sample's logits z [C], by the threads that share its row. In a cluster all
// blocks share the classes: the norm needs an exchange anyway, which carries their partial results
// too, and no block becomes a straggler where C is large.
#pragma once

#include "core/sample_loss.h"
#include "cuda/group.h"
#include "cuda/numeric.h"

namespace margin::cuda {

// A sample's label, read before its logits.
template <typename Acc>
struct Label {
  int target;   // -1 where the label is ignored or bad
  int nearest;  // -1 where it is ignored or bad, or where the runner-up is meant
  bool ignored;
  Acc target_logit;  // NaN where there is none

  // A class out of range, or nearest == target. Device code cannot throw, so the sample becomes
  // NaN.
  MARGIN_DEVICE bool bad() const { return target < 0 && !ignored; }
};

// One sample's logits. Launchers check that the number of classes fits 32 bits.
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
    const bool has_nearest = rows_.nearest != nullptr;
    const int64_t target = rows_.target[sample_];
    const int64_t nearest = has_nearest ? rows_.nearest[sample_] : -1;
    Label<Acc> label;
    label.ignored = target == rows_.ignore_index;
    const bool good = !label.ignored && in_range(target) &&
                      (!has_nearest || (in_range(nearest) && nearest != target));
    label.target = static_cast<int>(good ? target : -1);
    label.nearest = static_cast<int>(good ? nearest : -1);
    label.target_logit = good ? at(label.target) : not_a_number<Acc>();
    return label;
  }

  // Calls visit(k, z_k) for the classes of this thread, with `kUnroll` loads in flight at a time.
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
