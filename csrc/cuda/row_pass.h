// The two passes over a row: read() accumulates the norm and keeps what the direction needs,
// write() writes the direction. What is kept, and where, is what distinguishes the regimes.
#pragma once

#include "cuda/constants.h"
#include "cuda/norm_switch.h"
#include "cuda/path.h"
#include "cuda/row.h"

namespace margin::cuda {

enum class Keeping {
  kNothing,
  kRegisters,  // the packs; at most kRegisterPacks a thread
  kShared,     // the packs, in shared memory
  kSigns,      // q = 1: two bits an element, in shared memory
  kPosition,   // q = inf: where the thread saw its maximum. read() writes zeros, write() the maxima
  kReread,     // nothing: write() reads the row again
};

MARGIN_HD constexpr Keeping keeping_of(Storage storage, Norm norm) {
  switch (storage) {
    case Storage::kRegisters:
      return Keeping::kRegisters;
    case Storage::kOnChip:
      return norm == Norm::kOne   ? Keeping::kSigns
             : norm == Norm::kMax ? Keeping::kPosition
                                  : Keeping::kShared;
    case Storage::kReread:
      return Keeping::kReread;
    default:
      return Keeping::kNothing;
  }
}

// Bit k: x_k > 0; bit V + k: x_k < 0.
template <typename T>
using SignBits = std::conditional_t<(kPackSize<T> > 4), uint16_t, uint8_t>;

template <typename T, Keeping keeping>
using Kept = std::conditional_t<keeping == Keeping::kSigns, SignBits<T>, uint4>;

// Bytes of shared memory that one pack takes.
template <typename T>
MARGIN_HD constexpr int kept_bytes(Keeping keeping) {
  return keeping == Keeping::kShared  ? 16
         : keeping == Keeping::kSigns ? static_cast<int>(sizeof(SignBits<T>))
                                      : 0;
}

template <typename T, Storage storage>
class RowPass {
 public:
  using Acc = AccOf<T>;

  // `shared` has room for the slice's packs. A thread reads there what it wrote itself, so no
  // barrier is needed. `plain`: PlainPath will do; kRegisters has no other.
  MARGIN_DEVICE RowPass(const RowSlice<T>& slice, const GradientRows& rows, bool plain,
                        const NormSwitch<storage, Acc>& norm, unsigned thread, unsigned threads,
                        unsigned char* shared)
      : slice_(slice),
        format_(rows.dtype),
        channels_(rows.channels),
        plain_(plain || storage == Storage::kRegisters),
        norm_(norm),
        thread_(static_cast<int>(thread)),
        threads_(static_cast<int>(threads)),
        shared_(shared) {}

  // Under kPosition the first pass writes too, unless nothing is `written`.
  template <typename Output>
  MARGIN_DEVICE NormState<Acc> read(const Output& output, bool written) {
    NormState<Acc> state;
    norm_.apply([&](auto n) {
      own_ = NormState<Acc>();
      if constexpr (keeping_of(storage, n.value) == Keeping::kPosition) position_ = thread_;
      if (plain_) {
        read_packs<n.value>(output, written, PlainPath());
      } else {
        read_packs<n.value>(output, written, path_from(thread_));
      }
      state = own_;
      if (thread_ < slice_.edges) norm_add<n.value>(state, edge().x, norm_.q);
    });
    return state;
  }

  // Writes the direction with the channels' factors.
  template <typename Output>
  MARGIN_DEVICE void write(const Direction<Acc>& direction, const Output& output) {
    norm_.apply([&](auto n) {
      if constexpr (keeping_of(storage, n.value) == Keeping::kPosition) {
        write_maxima<n.value>(direction, output, path_from(position_));
      } else if (plain_) {
        write_packs<n.value>(direction, output, PlainPath());
      } else {
        write_packs<n.value>(direction, output, path_from(thread_));
      }
      if (thread_ < slice_.edges) {
        const Edge own = edge();
        output.store_element(own.offset, own.factor * direction_at<n.value>(direction, own.x));
      }
    });
  }

  template <typename Output>
  MARGIN_DEVICE void write_zeros(const Output& output) const {
    if (thread_ < slice_.edges) output.store_element(slice_.offset_of_edge(thread_), Acc(0));
    // Under kPosition read() did.
    const int packs = keeping_of(storage, norm_.norm) == Keeping::kPosition ? 0 : slice_.packs;
#pragma unroll 1
    for (int i = thread_; i < packs; i += threads_) write_zero_pack<GeneralPath<Acc>>(output, i);
  }

 private:
  static constexpr int kPack = kPackSize<T>;
  // Packs under way at a time. General q is bound by its powers, not by memory.
  template <Norm norm, typename Path>
  static constexpr int kUnroll = storage == Storage::kRegisters ? kRegisterPacks
                                 : norm == Norm::kGeneral       ? 1
                                 : Path::kPlain                 ? 4
                                                                : 2;

  // What is loaded under a condition has a value in any case: otherwise the compiler carries the
  // registers' former contents through the whole kernel, which costs up to 40 of them.
  MARGIN_DEVICE static uint4 zero_pack() { return uint4{0, 0, 0, 0}; }

  // A row that is read twice should stay in the cache in between.
  MARGIN_DEVICE static uint4 load(const uint4* address) {
    return storage == Storage::kReread ? load_reused(address) : load_streaming(address);
  }

  template <typename Pack>
  MARGIN_DEVICE Pack* packs_in_shared() const {
    return reinterpret_cast<Pack*>(shared_);
  }

  MARGIN_DEVICE GeneralPath<Acc> path_from(int pack) const {
    return {channels_, slice_.first_element + static_cast<int64_t>(pack) * kPack,
            opaque(threads_) * kPack};
  }

  template <typename Path>
  MARGIN_DEVICE void expand(const uint4& bits, const Path& path, Acc (&x)[kPack]) const {
    format_.unpack(bits, x);
    path.scale(x);
  }
  template <typename Path>
  MARGIN_DEVICE void expand(const SignBits<T>& signs, const Path&, Acc (&x)[kPack]) const {
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

  // The thread's edge element, if it has one. Read in each pass: there are at most 14 in a row, and
  // keeping them would cost every thread two registers.
  struct Edge {
    int64_t offset;  // from the slice's first pack
    Acc factor;
    Acc x;  // times the factor
  };
  MARGIN_DEVICE Edge edge() const {
    const int64_t offset = slice_.offset_of_edge(thread_);
    const Acc factor = channel_factor<Acc>(channels_, slice_.first_element + offset);
    return {offset, factor, factor * format_.widen(slice_.first[offset])};
  }

  template <typename Path, typename Output>
  MARGIN_DEVICE static void write_zero_pack(const Output& output, int i) {
    const Acc zeros[kPack] = {};
    output.template store_pack<Path>(i, zeros, output.template fetch<Path>(i));
  }

  template <Norm norm, typename KeptPack, typename Output, typename Path>
  MARGIN_DEVICE void write_pack(const Direction<Acc>& direction, const Output& output, int64_t i,
                                const KeptPack& kept, const typename Output::Fetched& fetched,
                                const Path& path) const {
    Acc x[kPack];
    expand(kept, path, x);
#pragma unroll
    for (int k = 0; k < kPack; ++k) x[k] = direction_at<norm>(direction, x[k]);
    path.scale(x);
    output.template store_pack<Path>(i, x, fetched);
  }

  template <Norm norm, typename Output, typename Path>
  MARGIN_DEVICE void read_packs(const Output& output, bool written, Path path) {
    constexpr Keeping keeping = keeping_of(storage, norm);
    constexpr int kBatch = kUnroll<norm, Path>;
    const int thread = opaque(thread_);
    const int threads = opaque(threads_);
    const uint4* source = slice_.first_pack();
    const int packs = slice_.packs;
#pragma unroll 1
    for (int start = thread; start < packs; start += kBatch * threads) {
      uint4 bits[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const int i = start + u * threads;
        bits[u] = zero_pack();
        if (i < packs) bits[u] = load(source + i);
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const int i = start + u * threads;
        Acc x[kPack];
        expand(bits[u], path, x);
        const Acc largest = own_.sum;
        // Past the end of the row these are zeros, which add nothing to any norm.
#pragma unroll
        for (int k = 0; k < kPack; ++k) norm_add<norm>(own_, x[k], norm_.q);
        path.step();
        if constexpr (keeping == Keeping::kRegisters) {
          registers_[u] = bits[u];
        } else if constexpr (keeping == Keeping::kShared) {
          if (i < packs) packs_in_shared<uint4>()[i] = bits[u];
        } else if constexpr (keeping == Keeping::kSigns) {
          if (i < packs) packs_in_shared<SignBits<T>>()[i] = signs_of(x);
        } else if constexpr (keeping == Keeping::kPosition) {
          if (own_.sum != largest) position_ = i;
          if (written && i < packs) write_zero_pack<Path>(output, i);
        }
      }
    }
  }

  template <Norm norm, typename Output, typename Path>
  MARGIN_DEVICE void write_packs(const Direction<Acc>& direction, const Output& output,
                                 Path path) const {
    constexpr Keeping keeping = keeping_of(storage, norm);
    constexpr int kBatch = kUnroll<norm, Path>;
    const int thread = opaque(thread_);
    const int threads = opaque(threads_);
    const uint4* source = slice_.first_pack();
    const int packs = slice_.packs;
#pragma unroll 1
    for (int start = thread; start < packs; start += kBatch * threads) {
      Kept<T, keeping> kept[kBatch];
      typename Output::Fetched fetched[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const int i = start + u * threads;
        kept[u] = Kept<T, keeping>{};
        fetched[u] = typename Output::Fetched{};
        if constexpr (keeping == Keeping::kRegisters) kept[u] = registers_[u];
        if (i < packs) {
          if constexpr (keeping == Keeping::kReread) {
            kept[u] = load_streaming(source + i);
          } else if constexpr (keeping != Keeping::kRegisters) {
            kept[u] = packs_in_shared<Kept<T, keeping>>()[i];
          }
          fetched[u] = output.template fetch<Path>(i);
        }
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const int i = start + u * threads;
        if (i < packs) write_pack<norm>(direction, output, i, kept[u], fetched[u], path);
        path.step();
      }
    }
  }

  // Everything else is zero already. A thread whose packs hold the row's maximum more than once
  // looks at all that follow the first; there are few such threads.
  template <Norm norm, typename Output, typename Path>
  MARGIN_DEVICE void write_maxima(const Direction<Acc>& direction, const Output& output,
                                  Path path) const {
    if (!(own_.sum == direction.norm) || direction.coefficient == 0) return;
    for (int i = position_; i < slice_.packs; i += threads_) {
      const uint4 bits = load_streaming(slice_.first_pack() + i);
      write_pack<norm>(direction, output, i, bits, output.template fetch<Path>(i), path);
      if (own_.extra == 1) return;
      path.step();
    }
  }

  RowSlice<T> slice_;
  Format<T> format_;
  const ChannelScale& channels_;
  bool plain_;
  NormSwitch<storage, Acc> norm_;
  int thread_;
  int threads_;
  NormState<Acc> own_;  // kPosition: of the thread's packs, without its edge
  int position_;        // kPosition
  unsigned char* shared_;
  uint4 registers_[storage == Storage::kRegisters ? kRegisterPacks : 1];
};

}  // namespace margin::cuda
