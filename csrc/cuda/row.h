// Where the elements of one sample's row [D] lie in memory, as the threads that share it see them.
#pragma once

#include "cuda/numeric.h"

namespace margin::cuda {

// A row is a number of 16-byte packs that lie on 16-byte boundaries, and up to 2 (V - 1) edge
// elements before and after them, V = kPackSize: whatever its alignment, packs are loaded whole.
// Under a cluster every block has a slice of the packs; the edges belong to rank 0.
template <typename T>
struct RowSlice {
  const T* row;
  int64_t size;           // D
  int64_t first_element;  // of the slice's first pack
  int64_t packs;          // of the slice
  int edges;              // of the slice; fewer than a warp has lanes
  int head;               // of these, how many stand before the row's first pack

  MARGIN_DEVICE RowSlice(const T* row_start, int64_t elements, unsigned rank, unsigned ranks)
      : row(row_start), size(elements) {
    constexpr int kPack = kPackSize<T>;
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    const int to_boundary = past == 0 ? 0 : kPack - past;
    head = to_boundary < size ? to_boundary : static_cast<int>(size);
    const int64_t all = (size - head) / kPack;
    const int64_t share = (all + ranks - 1) / ranks;
    const int64_t first = rank * share < all ? rank * share : all;
    packs = all - first < share ? all - first : share;
    edges = rank == 0 ? static_cast<int>(size - all * kPack) : 0;
    first_element = head + first * kPack;
  }

  MARGIN_DEVICE int64_t element_of_pack(int64_t i) const {
    return first_element + i * kPackSize<T>;
  }
  MARGIN_DEVICE const uint4* pack(int64_t i) const {
    return reinterpret_cast<const uint4*>(row + element_of_pack(i));
  }
  MARGIN_DEVICE int64_t element_of_edge(int e) const { return e < head ? e : size - edges + e; }
};

// The row that a pass writes: x -> x.
template <typename T>
struct RowOutput {
  using Acc = AccOf<T>;
  struct Fetched {};

  T* row;
  bool whole_packs;  // its packs lie on 16-byte boundaries just where the slice's do

  MARGIN_DEVICE RowOutput(T* row_start, const RowSlice<T>& slice)
      : row(row_start), whole_packs(is_aligned(row_start + slice.first_element)) {}

  MARGIN_DEVICE Fetched fetch(int64_t) const { return {}; }
  MARGIN_DEVICE void store_pack(int64_t element, const Acc (&x)[kPackSize<T>], Fetched) const {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) pack.value[k] = narrow<T>(x[k]);
    if (whole_packs) {
      store_streaming(reinterpret_cast<uint4*>(row + element), as_bits(pack));
    } else {
#pragma unroll
      for (int k = 0; k < kPackSize<T>; ++k) row[element + k] = pack.value[k];
    }
  }
  MARGIN_DEVICE void store_element(int64_t element, Acc x) const { row[element] = narrow<T>(x); }
};

// The same, with a second row added: x -> base + x. base == null: 0.
template <typename T>
struct RowOutputOnBase {
  using Acc = AccOf<T>;
  using Fetched = uint4;

  RowOutput<T> output;
  const T* base;
  bool whole_packs;

  MARGIN_DEVICE RowOutputOnBase(T* row_start, const T* base_start, const RowSlice<T>& slice)
      : output(row_start, slice),
        base(base_start),
        whole_packs(is_aligned(base_start + slice.first_element)) {}

  // Apart from store_pack, so that the loads of several packs are under way at a time.
  MARGIN_DEVICE uint4 fetch(int64_t element) const {
    if (base == nullptr) return uint4{0, 0, 0, 0};
    if (whole_packs) return load_streaming(reinterpret_cast<const uint4*>(base + element));
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) pack.value[k] = base[element + k];
    return as_bits(pack);
  }
  MARGIN_DEVICE void store_pack(int64_t element, const Acc (&x)[kPackSize<T>],
                                const uint4& fetched) const {
    const Pack<T> under = as_pack<T>(fetched);
    Acc sum[kPackSize<T>];
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) sum[k] = widen(under.value[k]) + x[k];
    output.store_pack(element, sum, {});
  }
  MARGIN_DEVICE void store_element(int64_t element, Acc x) const {
    output.store_element(element, (base == nullptr ? Acc(0) : widen(base[element])) + x);
  }
};

// The per-channel factors along a thread's packs, found by addition: a division for every pack
// would cost as much as everything else that is done to it.
template <typename Acc>
class ChannelCursor {
 public:
  // For a thread that goes `step` elements forward at a time.
  MARGIN_DEVICE ChannelCursor(const ChannelScale& channels, int64_t step)
      : scale_(static_cast<const Acc*>(channels.scale)),
        count_(channels.count),
        stride_(channels.stride) {
    if (!present()) return;
    step_within_ = step % stride_;
    step_channel_ = step / stride_ % count_;
  }

  MARGIN_DEVICE bool present() const { return scale_ != nullptr; }

  MARGIN_DEVICE void seek(int64_t element) {
    if (!present()) return;
    within_ = element % stride_;
    channel_ = element / stride_ % count_;
  }

  MARGIN_DEVICE void step() {
    if (!present()) return;
    within_ += step_within_;
    channel_ += step_channel_;
    if (within_ >= stride_) {
      within_ -= stride_;
      ++channel_;
    }
    if (channel_ >= count_) channel_ -= count_;
  }

  // The factors of the elements that follow.
  template <int count>
  MARGIN_DEVICE void factors(Acc (&out)[count]) const {
    int64_t within = within_;
    int64_t channel = channel_;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      out[k] = scale_[channel];
      if (++within == stride_) {
        within = 0;
        if (++channel == count_) channel = 0;
      }
    }
  }

  MARGIN_DEVICE Acc factor_at(int64_t element) const {
    return present() ? scale_[element / stride_ % count_] : Acc(1);
  }

 private:
  const Acc* scale_;
  int64_t count_;
  int64_t stride_;
  int64_t within_ = 0;
  int64_t channel_ = 0;
  int64_t step_within_ = 0;
  int64_t step_channel_ = 0;
};

}  // namespace margin::cuda
