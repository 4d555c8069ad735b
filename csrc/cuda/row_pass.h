// The two passes over a row: read() accumulates the norm and keeps what the direction needs,
// write() writes the direction. What is kept, and where, is what distinguishes the regimes.
#pragma once

#include "core/dual_norm.h"
#include "cuda/row.h"

namespace margin::cuda {

enum class Keeping {
  kNothing,    // for ops that write no row
  kAbsent,     // there is no row at all
  kRegisters,  // the packs; at most kRegisterPacks a thread
  kShared,     // the packs, in shared memory
  kSigns,      // q = 1: two bits an element, in shared memory
  kPosition,   // q = inf: where the thread saw its maximum. read() writes zeros, write() the maxima
  kReread,     // nothing: write() reads the row again
};

inline constexpr int kRegisterPacks = 8;

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
        cursor_(channels, static_cast<int64_t>(threads) * kPack),
        q_(q),
        thread_(static_cast<int>(thread)),
        threads_(static_cast<int>(threads)),
        shared_(reinterpret_cast<Kept*>(shared)) {}

  // Under kPosition the first pass writes too, unless nothing is `written`.
  template <typename Output>
  MARGIN_DEVICE NormState<Acc> read(const Output& output, bool written) {
    if (thread_ < slice_.edges) edge_ = slice_.row[slice_.element_of_edge(thread_)];
    own_ = NormState<Acc>();
    position_ = thread_;
    cursor_.seek(slice_.element_of_pack(thread_));
    const Index packs = static_cast<Index>(slice_.packs);
    for (Index start = thread_; start < packs; start += kUnroll * threads_) {
      uint4 bits[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const Index i = start + u * threads_;
        if (i < packs) bits[u] = load(slice_.pack(i));
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const Index i = start + u * threads_;
        if (i < packs) {
          Acc x[kPack];
          expand(bits[u], x);
          const Acc largest = own_.sum;
#pragma unroll
          for (int k = 0; k < kPack; ++k) norm_add<norm>(own_, x[k], q_);
          if constexpr (keeping == Keeping::kRegisters) {
            registers_[u] = bits[u];
          } else if constexpr (keeping == Keeping::kShared) {
            shared_[i] = bits[u];
          } else if constexpr (keeping == Keeping::kSigns) {
            shared_[i] = signs_of(x);
          } else if constexpr (keeping == Keeping::kPosition) {
            if (own_.sum != largest) position_ = i;
            if (written) write_zero_pack(output, slice_.element_of_pack(i));
          }
          cursor_.step();
        }
      }
    }
    NormState<Acc> state = own_;
    if (thread_ < slice_.edges) norm_add<norm>(state, edge_value(), q_);
    return state;
  }

  // Writes the direction with the channels' factors.
  template <typename Output>
  MARGIN_DEVICE void write(const Direction<Acc>& direction, const Output& output) {
    if (thread_ < slice_.edges) {
      const int64_t element = slice_.element_of_edge(thread_);
      output.store_element(
          element, cursor_.factor_at(element) * direction_at<norm>(direction, edge_value()));
    }
    if constexpr (keeping == Keeping::kPosition) {
      write_maxima(direction, output);
    } else {
      write_packs(direction, output);
    }
  }

  template <typename Output>
  MARGIN_DEVICE void write_zeros(const Output& output) const {
    if (thread_ < slice_.edges) output.store_element(slice_.element_of_edge(thread_), Acc(0));
    if constexpr (keeping != Keeping::kPosition) {
      for (int64_t i = thread_; i < slice_.packs; i += threads_) {
        write_zero_pack(output, slice_.element_of_pack(i));
      }
    }
  }

 private:
  static constexpr int kPack = kPackSize<T>;
  static constexpr int kUnroll = keeping == Keeping::kRegisters ? kRegisterPacks : 4;
  static constexpr bool kBounded =
      keeping == Keeping::kRegisters || keeping == Keeping::kShared || keeping == Keeping::kSigns;
  using Index = std::conditional_t<kBounded, int, int64_t>;
  using Kept = std::conditional_t<keeping == Keeping::kSigns, SignBits<T>, uint4>;

  // A row that is read twice should stay in the cache in between.
  MARGIN_DEVICE static uint4 load(const uint4* address) {
    return keeping == Keeping::kReread ? load_reused(address) : load_streaming(address);
  }

  // The pack's elements times the factors of their channels.
  MARGIN_DEVICE void expand(const uint4& bits, Acc (&x)[kPack]) const {
    const Pack<T> pack = as_pack<T>(bits);
#pragma unroll
    for (int k = 0; k < kPack; ++k) x[k] = widen(pack.value[k]);
    scale(x);
  }
  MARGIN_DEVICE void expand(const SignBits<T>& signs, Acc (&x)[kPack]) const {
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      x[k] = static_cast<Acc>((signs >> k & 1) - (signs >> (kPack + k) & 1));
    }
  }
  MARGIN_DEVICE void scale(Acc (&x)[kPack]) const {
    if (!cursor_.present()) return;
    Acc factors[kPack];
    cursor_.factors(factors);
#pragma unroll
    for (int k = 0; k < kPack; ++k) x[k] *= factors[k];
  }

  MARGIN_DEVICE static SignBits<T> signs_of(const Acc (&x)[kPack]) {
    unsigned signs = 0;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      signs |= (x[k] > 0 ? 1u << k : 0u) | (x[k] < 0 ? 1u << (kPack + k) : 0u);
    }
    return static_cast<SignBits<T>>(signs);
  }

  MARGIN_DEVICE Acc edge_value() const {
    return widen(edge_) * cursor_.factor_at(slice_.element_of_edge(thread_));
  }

  template <typename Output>
  MARGIN_DEVICE void write_zero_pack(const Output& output, int64_t element) const {
    const Acc zeros[kPack] = {};
    output.store_pack(element, zeros, output.fetch(element));
  }

  template <typename Output>
  MARGIN_DEVICE void write_pack(const Direction<Acc>& direction, const Output& output,
                                int64_t element, const Kept& kept,
                                const typename Output::Fetched& fetched) const {
    Acc x[kPack];
    expand(kept, x);
#pragma unroll
    for (int k = 0; k < kPack; ++k) x[k] = direction_at<norm>(direction, x[k]);
    scale(x);
    output.store_pack(element, x, fetched);
  }

  template <typename Output>
  MARGIN_DEVICE void write_packs(const Direction<Acc>& direction, const Output& output) {
    cursor_.seek(slice_.element_of_pack(thread_));
    const Index packs = static_cast<Index>(slice_.packs);
    for (Index start = thread_; start < packs; start += kUnroll * threads_) {
      Kept kept[kUnroll];
      typename Output::Fetched fetched[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const Index i = start + u * threads_;
        if (i < packs) {
          if constexpr (keeping == Keeping::kRegisters) {
            kept[u] = registers_[u];
          } else if constexpr (keeping == Keeping::kReread) {
            kept[u] = load_streaming(slice_.pack(i));
          } else {
            kept[u] = shared_[i];
          }
          fetched[u] = output.fetch(slice_.element_of_pack(i));
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const Index i = start + u * threads_;
        if (i < packs) {
          write_pack(direction, output, slice_.element_of_pack(i), kept[u], fetched[u]);
          cursor_.step();
        }
      }
    }
  }

  // Everything else is zero already. A thread whose packs hold the row's maximum more than once
  // looks at all that follow the first; there are few such threads.
  template <typename Output>
  MARGIN_DEVICE void write_maxima(const Direction<Acc>& direction, const Output& output) {
    if (!(own_.sum == direction.norm) || direction.coefficient == 0) return;
    cursor_.seek(slice_.element_of_pack(position_));
    for (int64_t i = position_; i < slice_.packs; i += threads_) {
      const int64_t element = slice_.element_of_pack(i);
      write_pack(direction, output, element, *slice_.pack(i), output.fetch(element));
      if (own_.extra == 1) return;
      cursor_.step();
    }
  }

  RowSlice<T> slice_;
  ChannelCursor<Acc> cursor_;
  Acc q_;
  int thread_;
  int threads_;
  T edge_;
  NormState<Acc> own_;  // of the thread's packs, without its edge
  int64_t position_;    // kPosition
  Kept* shared_;        // kShared, kSigns
  uint4 registers_[keeping == Keeping::kRegisters ? kRegisterPacks : 1];
};

}  // namespace margin::cuda
