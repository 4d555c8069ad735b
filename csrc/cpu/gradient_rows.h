// The rows of an input gradient [B, D]: their norms and what is written along their directions.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/row_kernels.h"

namespace margin::cpu {

// A row is always reduced in chunks of this many elements, in order, so the bits of a norm do not
// depend on the number of threads. A chunk is large enough to be worth a task.
inline constexpr int64_t kChunk = 32768;

// Outputs of this size and above are written by non-temporal stores, which bypass the caches: the
// output is new memory that no cache holds yet, and the caches are needed for what is read. The
// size is a constant because a virtual machine often reports the last-level cache of its host.
inline constexpr int64_t kNonTemporalBytes = int64_t{8} << 20;

template <typename T>
class GradientReader {
 public:
  using A = Acc<T>;

  GradientReader(const GradientRows& rows, int64_t batch, const NormOptions& norm)
      : rows_(rows),
        non_temporal_(batch * rows.size * static_cast<int64_t>(sizeof(T)) >= kNonTemporalBytes),
        kernels_(row_kernels<T>()),
        norm_(norm.norm),
        q_(static_cast<A>(norm.q)) {
    if (rows.channels.scale != nullptr) expand_scale();
  }

  int64_t size() const { return rows_.size; }
  int64_t chunks() const { return (rows_.size + kChunk - 1) / kChunk; }

  // The norm's state over one chunk of sample i, in the first or the second pass.
  NormState<A> chunk_state(int64_t i, int64_t chunk, A factor = A(1)) const {
    const int64_t begin = chunk * kChunk;
    NormState<A> state;
    kernels_.accumulate(norm_, row(i) + begin, scale_at(begin), chunk_size(begin), q_, factor,
                        state);
    return state;
  }

  // The state of sample i, from those of all its chunks, in order.
  NormState<A> combine(int64_t i, const NormState<A>* states) const {
    NormState<A> total = states[0];
    for (int64_t c = 1; c < chunks(); ++c) {
      combine_into(total, states[c]);
    }
    return second_pass_of(i, total);
  }

  NormState<A> state(int64_t i) const { return second_pass_of(i, one_pass(i, A(1))); }

  A norm(const NormState<A>& state) const {
    return visit_norm(norm_, [&](auto norm) { return norm_value<norm.value>(state, q_); });
  }

  // coefficient * v of a sample whose state and norm are known.
  Direction<A> direction(const NormState<A>& state, A norm_of_row, A coefficient) const {
    return visit_norm(norm_, [&](auto norm) {
      return make_direction<norm.value>(state, norm_of_row, coefficient, q_);
    });
  }

  // One chunk of out = base + direction; out and base point at the sample's first element.
  void write_chunk(int64_t i, int64_t chunk, const Direction<A>& direction, const T* base,
                   T* out) const {
    const int64_t begin = chunk * kChunk;
    kernels_.write_direction(norm_, row(i) + begin, scale_at(begin),
                             base == nullptr ? nullptr : base + begin, chunk_size(begin), direction,
                             out + begin, non_temporal_);
  }

  void write(int64_t i, const Direction<A>& direction, const T* base, T* out) const {
    for (int64_t c = 0; c < chunks(); ++c) write_chunk(i, c, direction, base, out);
  }

 private:
  NormState<A> one_pass(int64_t i, A factor) const {
    NormState<A> total = chunk_state(i, 0, factor);
    for (int64_t c = 1; c < chunks(); ++c) {
      combine_into(total, chunk_state(i, c, factor));
    }
    return total;
  }
  // The state of the first pass, or where that does not stand, of a second one.
  NormState<A> second_pass_of(int64_t i, const NormState<A>& first) const {
    const A factor =
        visit_norm(norm_, [&](auto norm) { return second_pass_factor<norm.value>(first); });
    if (factor == 1) return first;
    NormState<A> second = one_pass(i, factor);
    second.extra = factor;
    return second;
  }
  void combine_into(NormState<A>& total, const NormState<A>& next) const {
    visit_norm(norm_, [&](auto norm) { norm_combine<norm.value>(total, next, q_); });
  }
  const T* row(int64_t i) const {
    return static_cast<const T*>(rows_.data) + i * rows_.batch_stride;
  }
  int64_t chunk_size(int64_t begin) const { return std::min(kChunk, rows_.size - begin); }
  const A* scale_at(int64_t begin) const {
    return scale_.empty() ? nullptr : scale_.data() + begin;
  }

  // One factor for each element. They stay in the cache, and the row kernels need no channels.
  void expand_scale() {
    const ChannelScale& channels = rows_.channels;
    const A* factors = static_cast<const A*>(channels.scale);
    scale_.resize(rows_.size);
    for (int64_t j = 0; j < rows_.size; ++j) {
      scale_[j] = factors[(j / channels.stride) % channels.count];
    }
  }

  GradientRows rows_;
  bool non_temporal_;
  const RowKernels<T>& kernels_;
  Norm norm_;
  A q_;
  std::vector<A> scale_;
};

// Whether threads share chunks, not samples: where there are few samples with long rows.
inline bool split_rows(int64_t batch, int64_t size, const Parallel& parallel) {
  return parallel.threads > 1 && batch < 2 * parallel.threads && size >= 2 * kChunk;
}

// The states of all chunks of all samples, computed by all threads. [B * chunks]
template <typename T>
std::vector<NormState<Acc<T>>> chunk_states(const GradientReader<T>& reader, int64_t batch,
                                            const Parallel& parallel) {
  const int64_t chunks = reader.chunks();
  std::vector<NormState<Acc<T>>> states(batch * chunks);
  parallel.for_range(batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) states[u] = reader.chunk_state(u / chunks, u % chunks);
  });
  return states;
}

}  // namespace margin::cpu
