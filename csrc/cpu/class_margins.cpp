// class_margins: margins to several classes a sample in several norms, each row read once.
#include <algorithm>
#include <vector>

#include "core/class_margin.h"
#include "cpu/dispatch.h"
#include "cpu/gradient_rows.h"
#include "cpu/ops.h"

namespace margin::cpu {
namespace {

// Elements that all norms take before the next ones are read: they stay in the nearest cache.
inline constexpr int64_t kBlock = 2048;

template <typename T>
class ClassRows {
 public:
  using A = Acc<T>;

  explicit ClassRows(const ClassMarginArguments& arguments) : arguments_(arguments) {
    const ChannelScale& channels = arguments.grad.channels;
    if (channels.scale == nullptr) return;
    scale_.resize(arguments.grad.size);
    for (int64_t j = 0; j < arguments.grad.size; ++j) {
      scale_[j] = static_cast<const A*>(channels.scale)[(j / channels.stride) % channels.count];
    }
  }

  // Norms and margins of row r, one for each class of each sample.
  void measure(int64_t r) const {
    NormState<A> states[ClassMarginArguments::kMaxNorms];
    accumulate(r, 0, arguments_.norms, A(1), states);
    const int64_t rows = arguments_.batch * arguments_.classes;
    const A gap = static_cast<const A*>(arguments_.gap)[r];
    for (int p = 0; p < arguments_.norms; ++p) {
      const A norm = visit_norm(arguments_.norm[p].norm, [&](auto n) {
        const A factor = second_pass_factor<n.value>(states[p]);
        if (factor != 1) {
          states[p] = NormState<A>();
          accumulate(r, p, p + 1, factor, states);
          states[p].extra = factor;
        }
        return norm_value<n.value>(states[p], q(p));
      });
      static_cast<A*>(arguments_.norm_out)[p * rows + r] = norm;
      static_cast<A*>(arguments_.margin)[p * rows + r] = class_margin(gap, norm);
    }
  }

  // The nearest class of pair u, one for each sample of each norm.
  void find_nearest(int64_t u) const {
    const A* margins = static_cast<const A*>(arguments_.margin) + u * arguments_.classes;
    NearestClass<A> nearest;
    for (int64_t k = 0; k < arguments_.classes; ++k) {
      nearest_combine(nearest, {margins[k], static_cast<int>(k)});
    }
    arguments_.nearest[u] = arguments_.classes == 0 ? -1 : nearest.number;
  }

 private:
  A q(int p) const { return static_cast<A>(arguments_.norm[p].q); }

  // Adds row r to the states of norms first to last - 1.
  void accumulate(int64_t r, int first, int last, A factor, NormState<A>* states) const {
    const T* const row = static_cast<const T*>(arguments_.grad.data) +
                         r / arguments_.classes * arguments_.grad.batch_stride +
                         r % arguments_.classes * arguments_.class_stride;
    const int64_t size = arguments_.grad.size;
    for (int64_t begin = 0; begin < size; begin += kBlock) {
      const int64_t count = std::min(kBlock, size - begin);
      const A* const scale = scale_.empty() ? nullptr : scale_.data() + begin;
      for (int p = first; p < last; ++p) {
        kernels_.accumulate(arguments_.norm[p].norm, row + begin, scale, count, q(p), factor,
                            states[p]);
      }
    }
  }

  const ClassMarginArguments& arguments_;
  const RowKernels<T>& kernels_ = row_kernels<T>();
  std::vector<A> scale_;
};

}  // namespace

void class_margins(const ClassMarginArguments& arguments, const Parallel& parallel) {
  dispatch(arguments.grad.dtype, [&]<typename T>(Type<T>) {
    const ClassRows<T> rows(arguments);
    parallel.for_range(arguments.batch * arguments.classes,
                       grain_for(arguments.grad.size * sizeof(T)), [&](int64_t begin, int64_t end) {
                         for (int64_t r = begin; r < end; ++r) rows.measure(r);
                       });
    parallel.for_range(arguments.norms * arguments.batch,
                       grain_for(arguments.classes * sizeof(Acc<T>)),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t u = begin; u < end; ++u) rows.find_nearest(u);
                       });
  });
}

}  // namespace margin::cpu
