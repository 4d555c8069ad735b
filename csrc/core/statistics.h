// The batch reduction: the loss and the statistics of the samples that are not ignored. Sums are in
// double and have a fixed order, so results repeat bit for bit.
#pragma once

#include "core/sample_loss.h"

namespace margin {

enum class Reduction : int32_t { kNone = 0, kMean = 1, kSum = 2 };

// The layout of the op's `statistics` output. margin_ext/statistics.py has the same order.
enum Statistic : int32_t {
  kMinimumMargin = 0,
  kAverageMargin = 1,
  kAverageGap = 2,
  kAverageGradientNorm = 3,
  kAccuracy = 4,
  kCrossEntropy = 5,  // as it enters the loss: weighted mean
  kRegularizer = 6,   // weighted mean of phi, or of CE(z') - CE(z) (additive_margin.h)
  kCount = 7,
  // The stored gradients are those of (sum of L_i) / B. Multiplied by this they are those of the
  // loss. For the mean it is B / (sum of weights): exactly 1 where nothing is weighted or ignored,
  // negative or infinite where that sum is negative or 0, as in torch, and 0 where all are ignored.
  kGradientScale = 8,
  kStatisticCount = 9,
};

struct BatchTotals {
  double loss = 0;
  double weight = 0;
  double cross_entropy = 0;
  double regularizer = 0;
  double margin = 0;
  double gap = 0;
  double norm = 0;
  double correct = 0;
  double count = 0;
  double minimum = HUGE_VAL;

  template <typename Acc>
  MARGIN_HD void add(const SampleLoss<Acc>& sample, Acc sample_norm, Acc sample_weight,
                     bool is_correct) {
    BatchTotals one;
    one.loss = sample.loss;
    one.weight = sample_weight;
    one.cross_entropy = sample.cross_entropy;
    one.regularizer = sample.regularizer;
    one.margin = sample.margin;
    one.gap = sample.gap;
    one.norm = sample_norm;
    one.correct = is_correct ? 1 : 0;
    one.count = 1;
    one.minimum = sample.margin;
    combine(one);
  }

  MARGIN_HD void combine(const BatchTotals& other) {
    loss += other.loss;
    weight += other.weight;
    cross_entropy += other.cross_entropy;
    regularizer += other.regularizer;
    margin += other.margin;
    gap += other.gap;
    norm += other.norm;
    correct += other.correct;
    count += other.count;
    // NaN wins.
    if (other.minimum < minimum || is_nan(other.minimum)) minimum = other.minimum;
  }

  // statistics [kStatisticCount] and loss [1]; either may be null.
  template <typename Acc>
  MARGIN_HD void write(Reduction reduction, int64_t batch, Acc* statistics, Acc* loss_out) const {
    const bool mean = reduction == Reduction::kMean;
    if (loss_out != nullptr) *loss_out = static_cast<Acc>(mean ? loss / weight : loss);
    if (statistics == nullptr) return;
    statistics[kMinimumMargin] = static_cast<Acc>(count > 0 ? minimum : count / count);
    statistics[kAverageMargin] = static_cast<Acc>(margin / count);
    statistics[kAverageGap] = static_cast<Acc>(gap / count);
    statistics[kAverageGradientNorm] = static_cast<Acc>(norm / count);
    statistics[kAccuracy] = static_cast<Acc>(correct / count);
    statistics[kCrossEntropy] = static_cast<Acc>(cross_entropy / weight);
    statistics[kRegularizer] = static_cast<Acc>(regularizer / weight);
    statistics[kCount] = static_cast<Acc>(count);
    const double scale = mean ? (count > 0 ? static_cast<double>(batch) / weight : 0.0) : 1.0;
    statistics[kGradientScale] = static_cast<Acc>(scale);
  }
};

}  // namespace margin
