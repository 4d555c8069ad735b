// The two passes over a row: read() accumulates the norm and keeps what the direction needs,
// write() writes the direction. What is kept, and where, is what distinguishes the regimes.
#pragma once

#include "core/dual_norm.h"
#include "cuda/channels.h"
#include "cuda/constants.h"
#include "cuda/row.h"

namespace margin::cuda {

enum class Keeping {
  kAbsent,     // there is no row at all
  kNothing,    // for ops that write no row
  kRegisters,  // the packs; at most kRegisterPacks a thread
  kShared,     // the packs, in shared memory
  kSigns,      // q = 1: two bits an element, in shared memory
  kPosition,   // q = inf: where the thread saw its maximum. read() writes zeros, write() the maxima
  kReread,     // nothing: write() reads the row again
};

// Bit k: x_k > 0; bit V + k: x_k < 0.
template <typename T>
using SignBits = std::conditional_t<(kPackSize<T> > 4), uint16_t, uint8_t>;

// Bytes of shared memory that one pack takes.
template <typename T>
constexpr int kept_bytes(Keeping keeping) {
  return keeping == Keeping::kShared  ? 16
         : keeping == Keeping::kSigns ? static_cast<int>(sizeof(SignBits<T>))
                                      : 0;
}

template <typename T, Norm norm, Keeping keeping>
class RowPass {
 public:
  using Acc = AccOf<T>;

  // `shared` has room for the slice's packs. A thread reads there what it wrote itself, so no
  // barrier is needed.
  MARGIN_DEVICE RowPass(const RowSlice<T>& slice, const ChannelScale& channels, Acc q,
                        unsigned thread, unsigned threads, unsigned char* shared)
      : slice_(slice),
        channels_(channels),
        q_(q),
        thread_(static_cast<int>(thread)),
        threads_(static_cast<int>(threads)),
        shared_(reinterpret_cast<Kept*>(shared)) {}

  // Under kPosition the first pass writes too, unless nothing is `written`.
  template <typename Output>
  MARGIN_DEVICE NormState<Acc> read(const Output& output, bool written) {
    T edge = narrow<T>(Acc(0));
    if (thread_ < slice_.edges) edge = slice_.row[slice_.element_of_edge(thread_)];
    own_ = NormState<Acc>();
    position_ = thread_;
    if (scaled()) {
      read_packs(output, written, cursor(thread_));
    } else {
      read_packs(output, written, NoChannels());
    }
    NormState<Acc> state = own_;
    if (thread_ < slice_.edges) {
      edge_factor_ = channel_factor<Acc>(channels_, slice_.element_of_edge(thread_));
      edge_ = widen(edge) * edge_factor_;
      norm_add<norm>(state, edge_, q_);
    }
    return state;
  }

  // Writes the direction with the channels' factors.
  template <typename Output>
  MARGIN_DEVICE void write(const Direction<Acc>& direction, const Output& output) {
    if (thread_ < slice_.edges) {
      output.store_element(slice_.element_of_edge(thread_),
                           edge_factor_ * direction_at<norm>(direction, edge_));
    }
    if (scaled()) {
      write_slice(direction, output, cursor(keeping == Keeping::kPosition ? position_ : thread_));
    } else {
      write_slice(direction, output, NoChannels());
    }
  }

  template <typename Output>
  MARGIN_DEVICE void write_zeros(const Output& output) const {
    if (thread_ < slice_.edges) output.store_element(slice_.element_of_edge(thread_), Acc(0));
    if constexpr (keeping != Keeping::kPosition) {
      for (int64_t i = thread_; i < slice_.packs; i += threads_) write_zero_pack(output, i);
    }
  }

 private:
  static constexpr int kPack = kPackSize<T>;
  // Packs under way at a time. General q is bound by its powers, not by memory.
  template <typename Cursor>
  static constexpr int kUnroll = keeping == Keeping::kRegisters       ? kRegisterPacks
                                 : norm == Norm::kGeneral             ? 1
                                 : std::is_same_v<Cursor, NoChannels> ? 4
                                                                      : 2;
  static constexpr bool kBounded =
      keeping == Keeping::kRegisters || keeping == Keeping::kShared || keeping == Keeping::kSigns;
  using Index = std::conditional_t<kBounded, int, int64_t>;
  using Kept = std::conditional_t<keeping == Keeping::kSigns, SignBits<T>, uint4>;

  // What is loaded under a condition has a value in any case: otherwise the compiler carries the
  // registers' former contents through the whole kernel, which costs up to 40 of them.
  MARGIN_DEVICE static uint4 zero_pack() { return uint4{0, 0, 0, 0}; }

  // A row that is read twice should stay in the cache in between.
  MARGIN_DEVICE static uint4 load(const uint4* address) {
    return keeping == Keeping::kReread ? load_reused(address) : load_streaming(address);
  }

  MARGIN_DEVICE bool scaled() const { return channels_.scale != nullptr; }
  MARGIN_DEVICE ChannelCursor<Acc> cursor(int64_t pack) const {
    return {channels_, slice_.first_element + pack * kPack, opaque(threads_) * kPack};
  }

  template <typename Cursor>
  MARGIN_DEVICE static void expand(const uint4& bits, const Cursor& cursor, Acc (&x)[kPack]) {
    const Pack<T> pack = as_pack<T>(bits);
#pragma unroll
    for (int k = 0; k < kPack; ++k) x[k] = widen(pack.value[k]);
    cursor.scale(x);
  }
  template <typename Cursor>
  MARGIN_DEVICE static void expand(const SignBits<T>& signs, const Cursor&, Acc (&x)[kPack]) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      x[k] = static_cast<Acc>((signs >> k & 1) - (signs >> (kPack + k) & 1));
    }
  }

  MARGIN_DEVICE static SignBits<T> signs_of(const Acc (&x)[kPack]) {
    unsigned signs = 0;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      signs |= (x[k] > 0 ? 1u << k : 0u) | (x[k] < 0 ? 1u << (kPack + k) : 0u);
    }
    return static_cast<SignBits<T>>(signs);
  }

  template <typename Output>
  MARGIN_DEVICE void write_zero_pack(const Output& output, int64_t i) const {
    const Acc zeros[kPack] = {};
    output.store_pack(i, zeros, output.fetch(i));
  }

  template <typename Output, typename Cursor>
  MARGIN_DEVICE static void write_pack(const Direction<Acc>& direction, const Output& output,
                                       int64_t i, const Kept& kept,
                                       const typename Output::Fetched& fetched,
                                       const Cursor& cursor) {
    Acc x[kPack];
    expand(kept, cursor, x);
#pragma unroll
    for (int k = 0; k < kPack; ++k) x[k] = direction_at<norm>(direction, x[k]);
    cursor.scale(x);
    output.store_pack(i, x, fetched);
  }

  template <typename Output, typename Cursor>
  MARGIN_DEVICE void read_packs(const Output& output, bool written, Cursor cursor) {
    constexpr int kBatch = kUnroll<Cursor>;
    const int thread = opaque(thread_);
    const int threads = opaque(threads_);
    const uint4* source = slice_.first_pack();
    const Index packs = static_cast<Index>(slice_.packs);
#pragma unroll 1
    for (Index start = thread; start < packs; start += kBatch * threads) {
      uint4 bits[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const Index i = start + u * threads;
        bits[u] = zero_pack();
        if (i < packs) bits[u] = load(source + i);
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const Index i = start + u * threads;
        Acc x[kPack];
        expand(bits[u], cursor, x);
        const Acc largest = own_.sum;
        // Past the end of the row these are zeros, which add nothing to any norm.
#pragma unroll
        for (int k = 0; k < kPack; ++k) norm_add<norm>(own_, x[k], q_);
        cursor.step();
        if constexpr (keeping == Keeping::kRegisters) {
          registers_[u] = bits[u];
        } else if constexpr (keeping == Keeping::kShared) {
          if (i < packs) shared_[i] = bits[u];
        } else if constexpr (keeping == Keeping::kSigns) {
          if (i < packs) shared_[i] = signs_of(x);
        } else if constexpr (keeping == Keeping::kPosition) {
          if (own_.sum != largest) position_ = i;
          if (written && i < packs) write_zero_pack(output, i);
        }
      }
    }
  }

  template <typename Output, typename Cursor>
  MARGIN_DEVICE void write_packs(const Direction<Acc>& direction, const Output& output,
                                 Cursor cursor) const {
    constexpr int kBatch = kUnroll<Cursor>;
    const int thread = opaque(thread_);
    const int threads = opaque(threads_);
    const uint4* source = slice_.first_pack();
    const Index packs = static_cast<Index>(slice_.packs);
#pragma unroll 1
    for (Index start = thread; start < packs; start += kBatch * threads) {
      Kept kept[kBatch];
      typename Output::Fetched fetched[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const Index i = start + u * threads;
        kept[u] = Kept{};
        fetched[u] = typename Output::Fetched{};
        if constexpr (keeping == Keeping::kRegisters) kept[u] = registers_[u];
        if (i < packs) {
          if constexpr (keeping == Keeping::kReread) {
            kept[u] = load_streaming(source + i);
          } else if constexpr (keeping != Keeping::kRegisters) {
            kept[u] = shared_[i];
          }
          fetched[u] = output.fetch(i);
        }
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const Index i = start + u * threads;
        if (i < packs) write_pack(direction, output, i, kept[u], fetched[u], cursor);
        cursor.step();
      }
    }
  }

  // Everything else is zero already. A thread whose packs hold the row's maximum more than once
  // looks at all that follow the first; there are few such threads.
  template <typename Output, typename Cursor>
  MARGIN_DEVICE void write_maxima(const Direction<Acc>& direction, const Output& output,
                                  Cursor cursor) const {
    if (!(own_.sum == direction.norm) || direction.coefficient == 0) return;
    for (int64_t i = position_; i < slice_.packs; i += threads_) {
      const uint4 bits = load_streaming(slice_.first_pack() + i);
      write_pack(direction, output, i, bits, output.fetch(i), cursor);
      if (own_.extra == 1) return;
      cursor.step();
    }
  }

  template <typename Output, typename Cursor>
  MARGIN_DEVICE void write_slice(const Direction<Acc>& direction, const Output& output,
                                 const Cursor& cursor) const {
    if constexpr (keeping == Keeping::kPosition) {
      write_maxima(direction, output, cursor);
    } else {
      write_packs(direction, output, cursor);
    }
  }

  RowSlice<T> slice_;
  const ChannelScale& channels_;
  Acc q_;
  int thread_;
  int threads_;
  Acc edge_ = 0;  // of the threads that have one, times its channel's factor
  Acc edge_factor_ = 1;
  NormState<Acc> own_;  // of the thread's packs, without its edge
  int64_t position_;    // kPosition
  Kept* shared_;        // kShared, kSigns
  uint4 registers_[keeping == Keeping::kRegisters ? kRegisterPacks : 1];
};

}  // namespace margin::cuda
