// The fused loss. Each sample's logits and input gradient are read once, and its gradients are
// written while the row is still in the cache.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/additive_margin.h"
#include "cpu/dispatch.h"
#include "cpu/gradient_rows.h"
#include "cpu/ops.h"

namespace margin::cpu {
namespace {

// The number of samples whose totals are summed together. The groups' totals are then summed in
// order. The number depends on the batch alone, so the bits of the sums do not depend on threads.
int64_t group_size(int64_t batch) { return batch <= 1024 ? 1 : 16; }

template <typename A>
SampleOptions<A> sample_options(const LossArguments& arguments) {
  SampleOptions<A> options;
  options.regularizer = {arguments.regularizer, static_cast<A>(arguments.lo),
                         static_cast<A>(arguments.hi)};
  options.mu = static_cast<A>(arguments.mu);
  options.eps = static_cast<A>(arguments.eps);
  options.label_smoothing = static_cast<A>(arguments.label_smoothing);
  options.classes = arguments.logits.classes;
  options.first_order = arguments.grad.data != nullptr;
  options.class_weight_sum = static_cast<A>(options.classes);
  const A* weight = static_cast<const A*>(arguments.class_weight);
  if (weight != nullptr && options.label_smoothing > 0) {
    SumOverClasses<A> sum;
    for (int64_t k = 0; k < options.classes; ++k) sum.add(weight[k]);
    options.class_weight_sum = sum.total();
  }
  return options;
}

// The logits of neighbouring samples, reduced together.
template <typename A>
struct LogitBlock {
  explicit LogitBlock(int64_t classes)
      : size(classes <= kFewClasses ? kMostSamples : 1),
        padded(padded_classes(classes)),
        buffer(size * padded) {}

  // Of the sample at this place of the block; exp(z - max) once it is reduced.
  A* logits(int64_t place) { return buffer.data() + place * padded; }

  static constexpr int64_t kMostSamples = 16;
  int64_t size;  // the number of samples that there is room for
  int64_t padded;
  std::vector<A> buffer;
  LogitRow<A> rows[kMostSamples];
};

// L: the stored type of the logits. A: the accumulation dtype.
template <typename L, typename A>
class LossSamples {
 public:
  explicit LossSamples(const LossArguments& arguments)
      : arguments_(arguments), options_(sample_options<A>(arguments)) {}

  bool ignored(int64_t i) const {
    return arguments_.logits.target[i] == arguments_.logits.ignore_index;
  }

  // Reduces the logits of samples first, ..., first + count - 1. Those of an ignored sample are not
  // read.
  void reduce(int64_t first, int64_t count, LogitBlock<A>& block) const {
    const LogitRows& logits = arguments_.logits;
    const A* class_weight = static_cast<const A*>(arguments_.class_weight);
    const bool smoothing = options_.label_smoothing > 0;
    int64_t target[LogitBlock<A>::kMostSamples], nearest[LogitBlock<A>::kMostSamples];
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = first + j;
      target[j] = ignored(i) ? 0 : logits.target[i];
      nearest[j] = ignored(i) || logits.nearest == nullptr ? -1 : logits.nearest[i];
      if (ignored(i)) {
        std::fill_n(block.logits(j), block.padded, A(0));
      } else {
        row_kernels<L>().load_logits(static_cast<const L*>(logits.data) + i * logits.batch_stride,
                                     logits.classes, block.logits(j));
      }
    }
    if (block.size > 1 && !smoothing) {
      const auto reduce_all = options_.additive() ? logit_kernels<A>().reduce_others_together
                                                  : logit_kernels<A>().reduce_together;
      reduce_all(block.logits(0), block.padded, logits.classes, count, target, nearest, block.rows);
      return;
    }
    for (int64_t j = 0; j < count; ++j) {
      block.rows[j] = options_.additive()
                          ? logit_kernels<A>().reduce_others(block.logits(j), logits.classes,
                                                             target[j], smoothing, class_weight)
                          : logit_kernels<A>().reduce(block.logits(j), logits.classes, target[j],
                                                      nearest[j], smoothing, class_weight);
    }
  }

  // Computes everything of sample i that does not need its row of grad, and returns the scaled
  // dL_i / d||g||. norm: ||g||, not read where there is no grad. row, e: from reduce.
  A finish(int64_t i, A norm, const LogitRow<A>& row, const A* e, BatchTotals& totals) const {
    if (ignored(i)) {
      write_ignored(i);
      return 0;
    }
    const int64_t target = arguments_.logits.target[i];
    const A* class_weight = static_cast<const A*>(arguments_.class_weight);
    const A weight = class_weight == nullptr ? A(1) : class_weight[target];
    const A scale = gradient_scale(i);
    LossOfSample<A> found;
    if (options_.additive()) {
      found = additive_margin_loss(row, norm, target, weight, scale, options_);
    } else {
      found.sample = sample_loss(row, norm, weight, options_);
      found.gradient = make_logit_gradient(row, found.sample, target, weight, scale, options_);
    }
    const SampleLoss<A>& loss = found.sample;
    const A norm_for_totals = options_.first_order ? norm : static_cast<A>(NAN);
    totals.add(loss, norm_for_totals, weight, row.target > row.runner_up.value);

    set(arguments_.margin, i, loss.margin);
    set(arguments_.gap, i, loss.gap);
    set(arguments_.norm_out, i, norm_for_totals);
    if (arguments_.reduction == Reduction::kNone) set(arguments_.loss, i, loss.loss);
    if (arguments_.grad_logits != nullptr) {
      row_kernels<L>().write_logit_gradient(e, class_weight, arguments_.logits.classes,
                                            found.gradient, grad_logits(i));
    }
    return scale * loss.grad_norm;
  }

 private:
  void set(void* vector, int64_t i, A value) const {
    if (vector != nullptr) static_cast<A*>(vector)[i] = value;
  }
  L* grad_logits(int64_t i) const {
    return static_cast<L*>(arguments_.grad_logits) + i * arguments_.logits.classes;
  }
  A gradient_scale(int64_t i) const {
    if (arguments_.upstream != nullptr) {
      return static_cast<const A*>(arguments_.upstream)[arguments_.upstream_per_sample ? i : 0];
    }
    return arguments_.reduction == Reduction::kMean ? A(1) / static_cast<A>(arguments_.batch)
                                                    : A(1);
  }
  void write_ignored(int64_t i) const {
    const A nan = static_cast<A>(NAN);
    set(arguments_.margin, i, nan);
    set(arguments_.gap, i, nan);
    set(arguments_.norm_out, i, nan);
    if (arguments_.reduction == Reduction::kNone) set(arguments_.loss, i, A(0));
    if (arguments_.grad_logits != nullptr) {
      std::memset(static_cast<void*>(grad_logits(i)), 0, arguments_.logits.classes * sizeof(L));
    }
  }

  const LossArguments& arguments_;
  SampleOptions<A> options_;
};

template <typename A>
void write_totals(const LossArguments& arguments, const std::vector<BatchTotals>& groups) {
  if (arguments.statistics == nullptr) return;
  BatchTotals total;
  for (const BatchTotals& group : groups) total.combine(group);
  A* loss = arguments.reduction == Reduction::kNone ? nullptr : static_cast<A*>(arguments.loss);
  total.write(arguments.reduction, arguments.batch, static_cast<A*>(arguments.statistics), loss);
}

// Calls body(i, finish) for every sample; the body calls finish(norm), which returns the scaled
// dL_i / d||g||. Threads share the groups.
template <typename L, typename A, typename Body>
void for_samples(const LossArguments& arguments, const LossSamples<L, A>& samples,
                 int64_t bytes_per_sample, const Parallel& parallel, const Body& body) {
  const int64_t group = group_size(arguments.batch);
  std::vector<BatchTotals> groups((arguments.batch + group - 1) / group);
  parallel.for_range(static_cast<int64_t>(groups.size()), grain_for(group * bytes_per_sample),
                     [&](int64_t begin, int64_t end) {
                       LogitBlock<A> block(arguments.logits.classes);
                       const int64_t last = std::min(end * group, arguments.batch);
                       for (int64_t i = begin * group; i < last; ++i) {
                         const int64_t place = (i - begin * group) % block.size;
                         if (place == 0) samples.reduce(i, std::min(block.size, last - i), block);
                         body(i, [&](A norm) {
                           return samples.finish(i, norm, block.rows[place], block.logits(place),
                                                 groups[i / group]);
                         });
                       }
                     });
  write_totals<A>(arguments, groups);
}

template <typename L, typename A>
void gap_loss(const LossArguments& arguments, const Parallel& parallel) {
  const LossSamples<L, A> samples(arguments);
  // One class takes about as long as copying 32 bytes.
  for_samples(arguments, samples, arguments.logits.classes * 32, parallel,
              [](int64_t, const auto& finish) { finish(A(0)); });
}

// T: stored type of grad.
template <typename L, typename T>
void margin_loss(const LossArguments& arguments, const Parallel& parallel) {
  using A = Acc<T>;
  const LossSamples<L, A> samples(arguments);
  const GradientReader<T> reader(arguments.grad, arguments.batch, arguments.norm);
  T* const grad_grad = static_cast<T*>(arguments.grad_grad);
  const auto out_of = [&](int64_t i) { return grad_grad + i * arguments.grad_grad_stride; };
  const int64_t bytes = 2 * reader.size() * sizeof(T) + arguments.logits.classes * 32;

  if (!split_rows(arguments.batch, reader.size(), parallel)) {
    for_samples(arguments, samples, bytes, parallel, [&](int64_t i, const auto& finish) {
      NormState<A> state;
      A norm = 0;
      if (!samples.ignored(i)) {
        state = reader.state(i);
        norm = reader.norm(state);
      }
      const A coefficient = finish(norm);
      if (grad_grad == nullptr) return;
      if (coefficient == 0) {
        std::memset(static_cast<void*>(out_of(i)), 0, reader.size() * sizeof(T));
      } else {
        reader.write(i, reader.direction(state, norm, coefficient), nullptr, out_of(i));
      }
    });
    return;
  }

  const int64_t chunks = reader.chunks();
  const auto states = chunk_states(reader, arguments.batch, parallel);
  std::vector<Direction<A>> directions(arguments.batch);
  std::vector<bool> moving(arguments.batch);
  for_samples(arguments, samples, 0, Parallel{}, [&](int64_t i, const auto& finish) {
    const NormState<A> state = reader.combine(i, &states[i * chunks]);
    const A norm = reader.norm(state);
    const A coefficient = finish(norm);
    moving[i] = coefficient != 0;
    directions[i] = reader.direction(state, norm, coefficient);
  });
  if (grad_grad == nullptr) return;
  parallel.for_range(arguments.batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t i = u / chunks;
      if (moving[i]) {
        reader.write_chunk(i, u % chunks, directions[i], nullptr, out_of(i));
      } else {
        const int64_t first = (u % chunks) * kChunk;
        std::memset(static_cast<void*>(out_of(i) + first), 0,
                    std::min(kChunk, reader.size() - first) * sizeof(T));
      }
    }
  });
}

}  // namespace

void average_margin_loss(const LossArguments& arguments, const Parallel& parallel) {
  if (arguments.grad.data == nullptr) {
    dispatch(arguments.logits.dtype,
             [&]<typename L>(Type<L>) { gap_loss<L, Acc<L>>(arguments, parallel); });
    return;
  }
  dispatch(arguments.grad.dtype, [&]<typename T>(Type<T>) {
    dispatch_within<Acc<T>>(arguments.logits.dtype,
                            [&]<typename L>(Type<L>) { margin_loss<L, T>(arguments, parallel); });
  });
}

}  // namespace margin::cpu
