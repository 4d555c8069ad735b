// Where the elements of one sample's row [D] lie in memory, as the threads that share it see them.
#pragma once

#include "cuda/numeric.h"

namespace margin::cuda {

// A row is a number of 16-byte packs that lie on 16-byte boundaries, and up to 2 (V - 1) edge
// elements before and after them, V = kPackSize: whatever its alignment, packs are loaded whole.
// Under a cluster every block has a slice of the packs; the edges belong to rank 0.
//
// Count: of packs. A row is limited to 2^31 of them, 32 GB, since 64-bit counters would cost the
// kernels registers; addresses and numbers of elements have 64 bits.
template <typename T, typename Count = int>
struct RowSlice {
  const T* first;         // the slice's first pack
  int64_t size;           // D
  int64_t first_element;  // the number of the first pack's first element
  Count packs;            // of the slice
  int edges;              // of the slice; fewer than a warp has lanes

  MARGIN_DEVICE RowSlice(const T* row, int64_t elements, unsigned rank, unsigned ranks)
      : size(elements) {
    constexpr int kPack = kPackSize<T>;
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    const int to_boundary = past == 0 ? 0 : kPack - past;
    const int head = to_boundary < size ? to_boundary : static_cast<int>(size);
    packs = static_cast<Count>((size - head) / kPack);
    edges = static_cast<int>(size - static_cast<int64_t>(packs) * kPack);
    first_element = head;
    first = row + first_element;
    if (ranks == 1) return;
    const Count share = (packs + static_cast<Count>(ranks) - 1) / static_cast<Count>(ranks);
    const Count before = min(static_cast<Count>(rank) * share, packs);
    packs = min(packs - before, share);
    first_element += static_cast<int64_t>(before) * kPack;
    first = row + first_element;
    if (rank != 0) edges = 0;
  }

  MARGIN_DEVICE const uint4* first_pack() const { return reinterpret_cast<const uint4*>(first); }
  // The distance of edge element e from `first`; negative before it. A slice with edges is the
  // first of its row, so that first_element of them stand before it.
  MARGIN_DEVICE int64_t offset_of_edge(int e) const {
    return (e < first_element ? e : size - edges + e) - first_element;
  }
};

// The row that a pass writes: x -> x. `Path` is PlainPath where its packs lie on 16-byte boundaries
// just where the slice's do.
template <typename T>
struct RowOutput {
  using Acc = AccOf<T>;
  struct Fetched {};

  T* first;  // as the slice's
  Format<T> format;

  template <typename Slice>
  MARGIN_DEVICE RowOutput(T* row, const Slice& slice, Dtype dtype)
      : first(row + slice.first_element), format(dtype) {}

  template <typename Path>
  MARGIN_DEVICE Fetched fetch(int64_t) const {
    return {};
  }
  template <typename Path>
  MARGIN_DEVICE void store_pack(int64_t i, const Acc (&x)[kPackSize<T>], Fetched) const {
    const Pack<T> pack = format.pack(x);
    if (Path::kPlain || is_aligned(first)) {
      store_streaming(reinterpret_cast<uint4*>(first) + i, as_bits(pack));
    } else {
#pragma unroll
      for (int k = 0; k < kPackSize<T>; ++k) first[i * kPackSize<T> + k] = pack.value[k];
    }
  }
  MARGIN_DEVICE void store_element(int64_t offset, Acc x) const {
    first[offset] = format.narrow(x);
  }
};

// The same, with a second row added: x -> base + x. base == null: 0.
template <typename T>
struct RowOutputOnBase {
  using Acc = AccOf<T>;
  using Fetched = uint4;

  RowOutput<T> output;
  const T* first;

  MARGIN_DEVICE RowOutputOnBase(T* row, const T* base, const RowSlice<T>& slice, Dtype dtype)
      : output(row, slice, dtype), first(base == nullptr ? nullptr : base + slice.first_element) {}

  // Apart from store_pack, so that the loads of several packs are under way at a time.
  template <typename Path>
  MARGIN_DEVICE uint4 fetch(int64_t i) const {
    uint4 bits{0, 0, 0, 0};
    if (first == nullptr) return bits;
    if (Path::kPlain || is_aligned(first)) {
      bits = load_streaming(reinterpret_cast<const uint4*>(first) + i);
    } else {
      Pack<T> pack;
#pragma unroll
      for (int k = 0; k < kPackSize<T>; ++k) pack.value[k] = first[i * kPackSize<T> + k];
      bits = as_bits(pack);
    }
    return bits;
  }
  template <typename Path>
  MARGIN_DEVICE void store_pack(int64_t i, const Acc (&x)[kPackSize<T>],
                                const uint4& fetched) const {
    Acc sum[kPackSize<T>];
    output.format.unpack(fetched, sum);
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) sum[k] += x[k];
    output.template store_pack<Path>(i, sum, {});
  }
  MARGIN_DEVICE void store_element(int64_t offset, Acc x) const {
    const Acc under = first == nullptr ? Acc(0) : output.format.widen(first[offset]);
    output.store_element(offset, under + x);
  }
};

}  // namespace margin::cuda
