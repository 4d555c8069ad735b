// One sample's row [D] in memory: its packs and slices, its factors, and how a row is written.
#pragma once

#include "core/arguments.h"
#include "cuda/numeric.h"

namespace margin::cuda {

// A row consists of a head, 16-byte packs on 16-byte boundaries, and a tail. Head and tail have
// fewer than V = kPackSize elements each. So packs are always loaded whole, whatever the row's
// alignment. In a cluster every block has a slice of the packs, and rank 0 has head and tail.
//
// Count: the type that counts packs. A row has at most 2^31 of them, 32 GB, because 64-bit counters
// would take registers. Addresses and element numbers have 64 bits.
template <typename T, typename Count = int>
struct RowSlice {
  const T* first;         // the slice's first pack
  int64_t size;           // D
  int64_t first_element;  // the number of the first element of the first pack
  Count packs;            // of the slice
  int ends;               // elements of the slice's head and tail; fewer than a warp has lanes

  MARGIN_DEVICE RowSlice(const T* row, int64_t elements, unsigned rank, unsigned ranks)
      : size(elements) {
    constexpr int kPack = kPackSize<T>;
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    const int to_boundary = past == 0 ? 0 : kPack - past;
    const int head = to_boundary < size ? to_boundary : static_cast<int>(size);
    packs = static_cast<Count>((size - head) / kPack);
    ends = static_cast<int>(size - static_cast<int64_t>(packs) * kPack);
    first_element = head;
    first = row + first_element;
    if (ranks == 1) return;
    const Count share = (packs + static_cast<Count>(ranks) - 1) / static_cast<Count>(ranks);
    const Count before = min(static_cast<Count>(rank) * share, packs);
    packs = min(packs - before, share);
    first_element += static_cast<int64_t>(before) * kPack;
    first = row + first_element;
    if (rank != 0) ends = 0;
  }

  MARGIN_DEVICE const uint4* first_pack() const { return reinterpret_cast<const uint4*>(first); }
  // The distance from `first` of element e of head and tail, e < ends. It is negative in the head.
  // A slice that has them is the first of its row, so the head has first_element elements.
  MARGIN_DEVICE int64_t offset_of_end(int e) const {
    return (e < first_element ? e : size - ends + e) - first_element;
  }
};

// Asks for the same slice of the row that lies `elements` further on.
template <typename T>
MARGIN_DEVICE void prefetch_slice(const RowSlice<T>& slice, int64_t elements) {
  prefetch(slice.first + elements, static_cast<int64_t>(slice.packs) * 16);
}

template <typename Acc>
MARGIN_DEVICE Acc channel_factor(const ChannelScale& channels, int64_t element) {
  if (channels.scale == nullptr) return Acc(1);
  return static_cast<const Acc*>(channels.scale)[element / channels.stride % channels.count];
}

// The ways along a row. The launcher chooses one for all rows of a batch (launch.h).
enum class RowWay : int32_t {
  kPlain,      // PlainPath; in a second pass over the elements ChannelPath
  kByChannel,  // channel after channel: ChannelPath
  kGeneral,    // GeneralPath
};

// A thread's way along its packs, where a pack spans channels or is not stored whole. The factors
// are found by addition: a division for every pack would cost as much as all other work on it.
// Launchers check that count and stride fit 32 bits.
template <typename Acc>
class GeneralPath {
 public:
  static constexpr bool kPlain = false;
  static constexpr bool kAligned = false;

  // Starts at `element`; step() goes `step` elements forward. What is read is multiplied by `first`
  // before anything else.
  MARGIN_DEVICE GeneralPath(const ChannelScale& channels, int64_t element, int step,
                            Acc first = Acc(1))
      : first_(first),
        factors_(static_cast<const Acc*>(channels.scale)),
        count_(static_cast<int>(channels.count)),
        stride_(static_cast<int>(channels.stride)),
        within_(static_cast<int>(element % stride_)),
        channel_(static_cast<int>(element / stride_ % count_)),
        step_within_(step % stride_),
        step_channel_(step / stride_ % count_) {}

  MARGIN_DEVICE void step() {
    within_ += step_within_;
    channel_ += step_channel_;
    if (within_ >= stride_) {
      within_ -= stride_;
      ++channel_;
    }
    if (channel_ >= count_) channel_ -= count_;
  }

  template <int count>
  MARGIN_DEVICE void scale_read(Acc (&x)[count]) const {
#pragma unroll
    for (int k = 0; k < count; ++k) x[k] *= first_;
    scale_written(x);
  }
  // Multiplies x by the factors of the elements from here on.
  template <int count>
  MARGIN_DEVICE void scale_written(Acc (&x)[count]) const {
    if (factors_ == nullptr) return;
    // The usual case: all elements of the pack belong to one channel.
    if (within_ + count <= stride_) {
      const Acc factor = factors_[channel_];
#pragma unroll
      for (int k = 0; k < count; ++k) x[k] *= factor;
      return;
    }
    int within = within_;
    int channel = channel_;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      x[k] *= factors_[channel];
      if (++within == stride_) {
        within = 0;
        if (++channel == count_) channel = 0;
      }
    }
  }

 private:
  Acc first_;
  const Acc* factors_;
  int count_;
  int stride_;
  int within_;
  int channel_;
  int step_within_;
  int step_channel_;
};

// A way along packs of one channel. All rows of a sample have the same offset from 16-byte
// boundaries.
template <typename Acc>
struct ChannelPath {
  static constexpr bool kPlain = true;
  static constexpr bool kAligned = true;

  Acc first;   // of what is read, before anything else: that of a second pass, or 1
  Acc factor;  // the channel's

  MARGIN_DEVICE void step() {}
  template <int count>
  MARGIN_DEVICE void scale_read(Acc (&x)[count]) const {
#pragma unroll
    for (int k = 0; k < count; ++k) x[k] = x[k] * first * factor;
  }
  template <int count>
  MARGIN_DEVICE void scale_written(Acc (&x)[count]) const {
#pragma unroll
    for (int k = 0; k < count; ++k) x[k] *= factor;
  }
};

// The usual way: no factors, and all rows of a sample have the same offset from 16-byte boundaries.
// It needs half the code of the general one, and fewer registers.
struct PlainPath {
  static constexpr bool kPlain = true;
  static constexpr bool kAligned = true;

  MARGIN_DEVICE void step() {}
  template <typename Acc, int count>
  MARGIN_DEVICE void scale_read(Acc (&)[count]) const {}
  template <typename Acc, int count>
  MARGIN_DEVICE void scale_written(Acc (&)[count]) const {}
};

// The row that a pass writes: x -> x. `Path` is aligned (kAligned) only where its packs are on
// 16-byte boundaries exactly where those of the slice are.
template <typename T>
struct RowOutput {
  using Acc = AccOf<T>;
  struct Fetched {};

  T* first;  // the output's element that belongs to the slice's `first`

  template <typename Slice>
  MARGIN_DEVICE RowOutput(T* row, const Slice& slice) : first(row + slice.first_element) {}

  template <typename Path>
  MARGIN_DEVICE Fetched fetch(int64_t) const {
    return {};
  }
  template <typename Path>
  MARGIN_DEVICE void store_pack(int64_t i, const Acc (&x)[kPackSize<T>], Fetched) const {
    if (Path::kAligned || is_aligned(first)) {
      store_streaming(reinterpret_cast<uint4*>(first) + i, Format<T>::pack(x));
    } else {
#pragma unroll
      for (int k = 0; k < kPackSize<T>; ++k) {
        first[i * kPackSize<T> + k] = Format<T>::narrow(x[k]);
      }
    }
  }
  MARGIN_DEVICE void store_element(int64_t offset, Acc x) const {
    first[offset] = Format<T>::narrow(x);
  }
};

// The same with a second row added: x -> base + x. base == null: 0.
template <typename T>
struct RowOutputOnBase {
  using Acc = AccOf<T>;
  using Fetched = uint4;

  RowOutput<T> output;
  const T* first;

  MARGIN_DEVICE RowOutputOnBase(T* row, const T* base, const RowSlice<T>& slice)
      : output(row, slice), first(base == nullptr ? nullptr : base + slice.first_element) {}

  // Separate from store_pack, so that the loads of several packs are in flight at a time.
  template <typename Path>
  MARGIN_DEVICE uint4 fetch(int64_t i) const {
    uint4 bits{0, 0, 0, 0};
    if (first == nullptr) return bits;
    if (Path::kAligned || is_aligned(first)) {
      bits = load_streaming(reinterpret_cast<const uint4*>(first) + i);
    } else {
      struct {
        T x[kPackSize<T>];
      } pack;
#pragma unroll
      for (int k = 0; k < kPackSize<T>; ++k) pack.x[k] = first[i * kPackSize<T> + k];
      bits = bit_cast<uint4>(pack);
    }
    return bits;
  }
  template <typename Path>
  MARGIN_DEVICE void store_pack(int64_t i, const Acc (&x)[kPackSize<T>],
                                const uint4& fetched) const {
    Acc sum[kPackSize<T>];
    Format<T>::unpack(fetched, sum);
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) sum[k] += x[k];
    output.template store_pack<Path>(i, sum, {});
  }
  MARGIN_DEVICE void store_element(int64_t offset, Acc x) const {
    const Acc under = first == nullptr ? Acc(0) : Format<T>::widen(first[offset]);
    output.store_element(offset, under + x);
  }
};

}  // namespace margin::cuda
