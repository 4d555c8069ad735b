#include <cmath>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/row_kernels.h"

namespace margin::cpu {

void logit_gap(const LogitGapArguments& arguments, const Parallel& parallel) {
  dispatch(arguments.logits.dtype, [&]<typename T>(Type<T>) {
    using A = Acc<T>;
    const LogitRows& logits = arguments.logits;
    A* gap = static_cast<A*>(arguments.gap);
    const auto one = [&](int64_t i, A* buffer) {
      const int64_t target = logits.target[i];
      if (target == logits.ignore_index) {
        gap[i] = static_cast<A>(NAN);
        arguments.runner_up[i] = -1;
        return;
      }
      row_kernels<T>().load_logits(static_cast<const T*>(logits.data) + i * logits.batch_stride,
                                   logits.classes, buffer);
      const int64_t nearest =
          logits.nearest != nullptr
              ? logits.nearest[i]
              : logit_kernels<A>().runner_up(buffer, logits.classes, target).index;
      gap[i] = buffer[target] - buffer[nearest];
      arguments.runner_up[i] = nearest;
    };
    parallel.for_range(arguments.batch, grain_for(logits.classes * sizeof(A)),
                       [&](int64_t begin, int64_t end) {
                         std::vector<A> buffer(padded_classes(logits.classes));
                         for (int64_t i = begin; i < end; ++i) one(i, buffer.data());
                       });
  });
}

}  // namespace margin::cpu
