// The two passes over a row: read() accumulates the norm and keeps what the direction needs,
// write() writes the direction. What is kept, and where, is the variant's (variants.h).
#pragma once

#include "cuda/row.h"
#include "cuda/variants.h"

namespace margin::cuda {

// The norm of a kernel's rows as a value, and core's formulas as functions of it. One kernel serves
// all norms: compiling one for each would repeat everything but the loops over a row, and take
// three times as long. The switch is uniform and is outside those loops.
template <Variant variant, RowUse use, typename Acc>
struct ServedNorm {
  Norm norm;
  Acc q;

  // visit(std::integral_constant<Norm, norm>()), for the norms that this kernel serves.
  template <typename Visit>
  MARGIN_DEVICE void apply(const Visit& visit) const {
    visit_norm(norm, [&](auto n) {
      if constexpr (kept(variant, use, n.value) != Kept::kUnserved) visit(n);
    });
  }

  // Combines `other` into `state`.
  MARGIN_DEVICE void operator()(NormState<Acc>& state, const NormState<Acc>& other) const {
    apply([&](auto n) { norm_combine<n.value>(state, other, q); });
  }

  MARGIN_DEVICE Acc value(const NormState<Acc>& state) const {
    Acc value = 0;
    apply([&](auto n) { value = norm_value<n.value>(state, q); });
    return value;
  }

  MARGIN_DEVICE Direction<Acc> direction(const NormState<Acc>& state, Acc value,
                                         Acc coefficient) const {
    Direction<Acc> direction{};
    apply([&](auto n) { direction = make_direction<n.value>(state, value, coefficient, q); });
    return direction;
  }
};

// Bit k: x_k > 0; bit V + k: x_k < 0.
template <typename T>
using SignBits = std::conditional_t<(kPackSize<T> > 4), uint16_t, uint8_t>;

// The bytes of shared memory that one pack takes.
template <typename T>
constexpr int kept_bytes(Kept how) {
  return how == Kept::kPacks ? 16 : how == Kept::kSigns ? static_cast<int>(sizeof(SignBits<T>)) : 0;
}

template <typename T, Variant variant, RowUse use>
class RowPass {
 public:
  using Acc = AccOf<T>;

  // `shared` has room for `capacity` packs of the slice: a multiple of the threads, or all of them.
  // A thread reads only what it wrote there itself, so no barrier is needed. `plain`: PlainPath
  // will do.
  MARGIN_DEVICE RowPass(const RowSlice<T>& slice, const GradientRows& rows, bool plain,
                        const ServedNorm<variant, use, Acc>& norm, unsigned thread,
                        unsigned threads, unsigned char* shared, int capacity)
      : slice_(slice),
        channels_(rows.channels),
        plain_(plain),
        norm_(norm),
        thread_(static_cast<int>(thread)),
        threads_(static_cast<int>(threads)),
        shared_(shared),
        kept_packs_(min(slice.packs, capacity)) {}

  // Under Kept::kLargest this pass writes too, unless nothing is to be `written`.
  template <typename Output>
  MARGIN_DEVICE NormState<Acc> read(const Output& output, bool written) {
    own_ = NormState<Acc>();
    norm_.apply([&](auto n) {
      if constexpr (kept(variant, use, n.value) == Kept::kLargest) position_ = thread_;
      if (plain_) {
        read_as<n.value>(output, written, PlainPath());
      } else {
        read_as<n.value>(output, written, path_from(thread_));
      }
    });
    NormState<Acc> state = own_;
    if (thread_ < slice_.ends) {
      const Acc x = end_element().x;
      norm_.apply([&](auto n) { norm_add<n.value>(state, x, norm_.q); });
    }
    return state;
  }

  // Writes the direction with the channels' factors.
  template <typename Output>
  MARGIN_DEVICE void write(const Direction<Acc>& direction, const Output& output) {
    norm_.apply([&](auto n) {
      if constexpr (kept(variant, use, n.value) == Kept::kLargest) {
        write_maxima<n.value>(direction, output, path_from(position_));
      } else if (plain_) {
        write_as<n.value>(direction, output, PlainPath());
      } else {
        write_as<n.value>(direction, output, path_from(thread_));
      }
      if (thread_ < slice_.ends) {
        const End own = end_element();
        output.store_element(own.offset, own.factor * direction_at<n.value>(direction, own.x));
      }
    });
  }

  template <typename Output>
  MARGIN_DEVICE void write_zeros(const Output& output) const {
    wait_for_copies();
    if (thread_ < slice_.ends) output.store_element(slice_.offset_of_end(thread_), Acc(0));
    // Under Kept::kLargest read() wrote them.
    const int packs = kept(variant, use, norm_.norm) == Kept::kLargest ? 0 : slice_.packs;
#pragma unroll 1
    for (int i = thread_; i < packs; i += threads_) write_zero_pack<GeneralPath<Acc>>(output, i);
  }

 private:
  static constexpr int kPack = kPackSize<T>;
  // The number of packs in flight at a time, where they go through registers.
  template <Norm norm, typename Path>
  static constexpr int kUnroll = takes_scalars(norm) ? 1
                                 : Path::kPlain      ? 4
                                                     : 2;

  // A pack that is loaded under a condition gets this value first. Otherwise the compiler would
  // carry the former contents of up to 40 registers through the whole kernel.
  MARGIN_DEVICE static uint4 zero_pack() { return uint4{0, 0, 0, 0}; }

  template <typename Pack>
  MARGIN_DEVICE Pack* packs_in_shared() const {
    return reinterpret_cast<Pack*>(shared_);
  }

  MARGIN_DEVICE GeneralPath<Acc> path_from(int pack) const {
    return {channels_, slice_.first_element + static_cast<int64_t>(pack) * kPack,
            opaque(threads_) * kPack};
  }

  template <typename Path>
  MARGIN_DEVICE static void expand(const uint4& bits, const Path& path, Acc (&x)[kPack]) {
    Format<T>::unpack(bits, x);
    path.scale(x);
  }
  template <typename Path>
  MARGIN_DEVICE static void expand(const SignBits<T>& signs, const Path&, Acc (&x)[kPack]) {
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

  // The thread's element of head and tail, if it has one. It is read in each pass: there are at
  // most 14 in a row, and keeping them would take two registers of every thread.
  struct End {
    int64_t offset;  // from the slice's first pack
    Acc factor;
    Acc x;  // times the factor
  };
  MARGIN_DEVICE End end_element() const {
    const int64_t offset = slice_.offset_of_end(thread_);
    const Acc factor = channel_factor<Acc>(channels_, slice_.first_element + offset);
    return {offset, factor, factor * Format<T>::widen(slice_.first[offset])};
  }

  template <typename Path, typename Output>
  MARGIN_DEVICE static void write_zero_pack(const Output& output, int i) {
    const Acc zeros[kPack] = {};
    output.template store_pack<Path>(i, zeros, output.template fetch<Path>(i));
  }

  template <Norm norm>
  MARGIN_DEVICE void add_pack(const Acc (&x)[kPack]) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) norm_add<norm>(own_, x[k], norm_.q);
  }

  template <Norm norm, typename Pack, typename Output, typename Path>
  MARGIN_DEVICE static void write_pack(const Direction<Acc>& direction, const Output& output, int i,
                                       const Pack& pack, const typename Output::Fetched& fetched,
                                       const Path& path) {
    Acc x[kPack];
    expand(pack, path, x);
    Direction<Acc> along = direction;
    // Rows are accumulated once here, so the unit of such a norm is 1. Known, it costs nothing.
    if constexpr (may_need_second_pass(norm)) along.unit = Acc(1);
#pragma unroll
    for (int k = 0; k < kPack; ++k) x[k] = direction_at<norm>(along, x[k]);
    path.scale(x);
    output.template store_pack<Path>(i, x, fetched);
  }

  // The thread's packs from `begin` to `end`, kBatch at a time: load(i) for each, then visit(i,
  // pack) for each. Packs past the end are zero, and are visited too: a condition would cost more.
  template <int kBatch, typename Pack, typename Path, typename Load, typename Visit>
  MARGIN_DEVICE void for_packs(int begin, int end, Path& path, const Load& load,
                               const Visit& visit) const {
    const int threads = opaque(threads_);
#pragma unroll 1
    for (int start = begin; start < end; start += kBatch * threads) {
      Pack packs[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const int i = start + u * threads;
        packs[u] = Pack{};
        if (i < end) packs[u] = load(i);
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        visit(start + u * threads, packs[u]);
        path.step();
      }
    }
  }

  template <Norm norm, typename Output, typename Path>
  MARGIN_DEVICE void read_as(const Output& output, bool written, Path path) {
    constexpr Kept how = kept(variant, use, norm);
    constexpr int kBatch = kUnroll<norm, Path>;
    const uint4* source = slice_.first_pack();
    const int packs = slice_.packs;
    int begin = opaque(thread_);
    if constexpr (how == Kept::kPacks) {
      // All copies are in flight at once, and no register waits for them.
      const int threads = opaque(threads_);
#pragma unroll 4
      for (int i = begin; i < kept_packs_; i += threads) {
        copy_async(packs_in_shared<uint4>() + i, source + i);
      }
      wait_for_copies();
      for_packs<kBatch, uint4>(
          begin, kept_packs_, path, [&](int i) { return packs_in_shared<uint4>()[i]; },
          [&](int, const uint4& bits) {
            Acc x[kPack];
            expand(bits, path, x);
            add_pack<norm>(x);
          });
      begin += kept_packs_;
    }
    // A row that is read twice should stay in the cache between the passes.
    const auto load = [&](int i) {
      return how == Kept::kPacks || variant == Variant::kReread ? load_reused(source + i)
                                                                : load_streaming(source + i);
    };
    for_packs<kBatch, uint4>(begin, packs, path, load, [&](int i, const uint4& bits) {
      Acc x[kPack];
      expand(bits, path, x);
      const Acc largest = own_.sum;
      add_pack<norm>(x);
      if constexpr (how == Kept::kSigns) {
        if (i < kept_packs_) packs_in_shared<SignBits<T>>()[i] = signs_of(x);
      } else if constexpr (how == Kept::kLargest) {
        if (own_.sum != largest) position_ = i;
        if (written && i < packs) write_zero_pack<Path>(output, i);
      }
    });
  }

  template <Norm norm, typename Output, typename Path>
  MARGIN_DEVICE void write_as(const Direction<Acc>& direction, const Output& output, Path path) {
    constexpr Kept how = kept(variant, use, norm);
    constexpr int kBatch = kUnroll<norm, Path>;
    const uint4* source = slice_.first_pack();
    const int packs = slice_.packs;
    int begin = opaque(thread_);
    if constexpr (how == Kept::kPacks || how == Kept::kSigns) {
      using Pack = std::conditional_t<how == Kept::kSigns, SignBits<T>, uint4>;
      write_packs<norm, kBatch, Pack>(direction, output, path, begin, kept_packs_,
                                      [&](int i) { return packs_in_shared<Pack>()[i]; });
      begin += kept_packs_;
    }
    write_packs<norm, kBatch, uint4>(direction, output, path, begin, packs,
                                     [&](int i) { return load_streaming(source + i); });
  }

  template <Norm norm, int kBatch, typename Pack, typename Output, typename Path, typename Load>
  MARGIN_DEVICE void write_packs(const Direction<Acc>& direction, const Output& output, Path& path,
                                 int begin, int end, const Load& load) const {
    struct Both {
      Pack pack;
      typename Output::Fetched fetched;
    };
    for_packs<kBatch, Both>(
        begin, end, path, [&](int i) { return Both{load(i), output.template fetch<Path>(i)}; },
        [&](int i, const Both& both) {
          if (i < end) write_pack<norm>(direction, output, i, both.pack, both.fetched, path);
        });
  }

  // All other elements are zero already. A thread that saw the row's maximum more than once looks
  // at all its packs after the first; there are few such threads.
  template <Norm norm, typename Output, typename Path>
  MARGIN_DEVICE void write_maxima(const Direction<Acc>& direction, const Output& output,
                                  Path path) const {
    if (!(own_.sum == direction.unit) || direction.coefficient == 0) return;
    for (int i = position_; i < slice_.packs; i += threads_) {
      const uint4 bits = load_streaming(slice_.first_pack() + i);
      write_pack<norm>(direction, output, i, bits, output.template fetch<Path>(i), path);
      if (own_.extra == 1) return;
      path.step();
    }
  }

  RowSlice<T> slice_;
  const ChannelScale& channels_;
  bool plain_;
  ServedNorm<variant, use, Acc> norm_;
  int thread_;
  int threads_;
  NormState<Acc> own_;  // of the thread's packs, without head and tail
  int position_;        // under Kept::kLargest: the pack with the thread's largest element
  unsigned char* shared_;
  int kept_packs_;
};

}  // namespace margin::cuda
