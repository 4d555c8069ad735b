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
  int64_t first_element;  // the number of the slice's first
  int64_t packs;          // of the slice
  int edges;              // of the slice; fewer than a warp has lanes
  int head;               // of these, how many stand before the row's first pack

  MARGIN_DEVICE RowSlice(const T* row_start, int64_t elements, unsigned rank, unsigned ranks)
      : row(row_start), size(elements) {
    constexpr int kPack = kPackSize<T>;
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    const int to_boundary = past == 0 ? 0 : kPack - past;
    head = to_boundary < size ? to_boundary : static_cast<int>(size);
    packs = (size - head) / kPack;
    edges = static_cast<int>(size - packs * kPack);
    first_element = head;
    if (ranks == 1) return;
    const int64_t share = (packs + ranks - 1) / ranks;
    const int64_t first = rank * share < packs ? rank * share : packs;
    packs = packs - first < share ? packs - first : share;
    first_element += first * kPack;
    if (rank != 0) edges = 0;
  }

  MARGIN_DEVICE const uint4* first_pack() const {
    return reinterpret_cast<const uint4*>(row + first_element);
  }
  // The number of edge element e within the row.
  MARGIN_DEVICE int64_t element_of_edge(int e) const { return e < head ? e : size - edges + e; }
};

// The row that a pass writes: x -> x.
template <typename T>
struct RowOutput {
  using Acc = AccOf<T>;
  struct Fetched {};

  T* row;
  T* first;          // the slice's first element
  bool whole_packs;  // its packs lie on 16-byte boundaries just where the slice's do

  MARGIN_DEVICE RowOutput(T* row_start, const RowSlice<T>& slice)
      : row(row_start), first(row_start + slice.first_element), whole_packs(is_aligned(first)) {}

  MARGIN_DEVICE Fetched fetch(int64_t) const { return {}; }
  MARGIN_DEVICE void store_pack(int64_t i, const Acc (&x)[kPackSize<T>], Fetched) const {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) pack.value[k] = narrow<T>(x[k]);
    if (whole_packs) {
      store_streaming(reinterpret_cast<uint4*>(first) + i, as_bits(pack));
    } else {
#pragma unroll
      for (int k = 0; k < kPackSize<T>; ++k) first[i * kPackSize<T> + k] = pack.value[k];
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
  const T* first;
  bool whole_packs;

  MARGIN_DEVICE RowOutputOnBase(T* row_start, const T* base_start, const RowSlice<T>& slice)
      : output(row_start, slice),
        base(base_start),
        first(base_start == nullptr ? nullptr : base_start + slice.first_element),
        whole_packs(is_aligned(first)) {}

  // Apart from store_pack, so that the loads of several packs are under way at a time.
  MARGIN_DEVICE uint4 fetch(int64_t i) const {
    if (base == nullptr) return uint4{0, 0, 0, 0};
    if (whole_packs) return load_streaming(reinterpret_cast<const uint4*>(first) + i);
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) pack.value[k] = first[i * kPackSize<T> + k];
    return as_bits(pack);
  }
  MARGIN_DEVICE void store_pack(int64_t i, const Acc (&x)[kPackSize<T>],
                                const uint4& fetched) const {
    const Pack<T> under = as_pack<T>(fetched);
    Acc sum[kPackSize<T>];
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) sum[k] = widen(under.value[k]) + x[k];
    output.store_pack(i, sum, {});
  }
  MARGIN_DEVICE void store_element(int64_t element, Acc x) const {
    output.store_element(element, (base == nullptr ? Acc(0) : widen(base[element])) + x);
  }
};

}  // namespace margin::cuda
