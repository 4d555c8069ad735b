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

  // See core's second_pass_factor.
  MARGIN_DEVICE Acc second_pass(const NormState<Acc>& state) const {
    Acc factor = 1;
    apply([&](auto n) { factor = second_pass_factor<n.value>(state); });
    return factor;
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
  // A thread reads only what it wrote there itself, so no barrier is needed.
  MARGIN_DEVICE RowPass(const RowSlice<T>& slice, const GradientRows& rows, RowWay way,
                        const ServedNorm<variant, use, Acc>& norm, unsigned thread,
                        unsigned threads, unsigned char* shared, int capacity)
      : slice_(slice),
        channels_(rows.channels),
        way_(way),
        norm_(norm),
        thread_(static_cast<int>(thread)),
        threads_(static_cast<int>(threads)),
        shared_(shared),
        kept_packs_(min(slice.packs, capacity)) {}

  // Brings what is kept in packs on its way. Other work may come between this and read().
  MARGIN_DEVICE void start() const {
    norm_.apply([&](auto n) {
      if constexpr (kept(variant, use, n.value) == Kept::kPacks) {
        const uint4* source = slice_.first_pack();
        const int threads = opaque(threads_);
        // All copies are in flight at once, and no register waits for them.
#pragma unroll 4
        for (int i = opaque(thread_); i < kept_packs_; i += threads) {
          copy_async(packs_in_shared<uint4>() + i, source + i);
        }
      }
    });
  }

  // After start(). Under Kept::kLargest this pass writes too, unless nothing is to be `written`.
  template <typename Output>
  MARGIN_DEVICE NormState<Acc> read(const Output& output, bool written) {
    own_ = NormState<Acc>();
    norm_.apply([&](auto n) {
      constexpr Kept how = kept(variant, use, n.value);
      if constexpr (how == Kept::kLargest) position_ = thread_;
      if constexpr (how == Kept::kPacks) wait_for_copies();
      for_runs([&](int begin, int end, const auto& path_at) {
        read_run<n.value>(output, written, begin, end, path_at);
      });
    });
    NormState<Acc> state = own_;
    if (thread_ < slice_.ends) {
      const Acc x = end_element().x;
      norm_.apply([&](auto n) { norm_add<n.value>(state, x, norm_.q); });
    }
    return state;
  }

  // A second pass of the whole group, in which every element is multiplied by a factor (core's
  // second_pass_factor); write() will do so too. All threads of the group must call it.
  template <typename Output, typename Group>
  MARGIN_DEVICE NormState<Acc> read_again(Acc factor, const Output& output, Group& group) {
    first_ = factor;
    own_ = NormState<Acc>();
    norm_.apply([&](auto n) {
      if constexpr (may_need_second_pass(n.value)) {
        for_runs([&](int begin, int end, const auto& path_at) {
          read_run<n.value>(output, false, begin, end, path_at);
        });
        if (thread_ < slice_.ends) norm_add<n.value>(own_, end_element().x, norm_.q);
      }
    });
    NormState<Acc> state = norm_of_group(norm_, own_, group);
    state.extra = factor;
    return state;
  }

  // Writes the direction with the channels' factors.
  template <typename Output>
  MARGIN_DEVICE void write(const Direction<Acc>& direction, const Output& output) {
    norm_.apply([&](auto n) {
      if constexpr (kept(variant, use, n.value) == Kept::kLargest) {
        write_maxima<n.value>(direction, output);
      } else {
        for_runs([&](int begin, int end, const auto& path_at) {
          write_run<n.value>(direction, output, begin, end, path_at);
        });
      }
      if (thread_ < slice_.ends) {
        const End own = end_element();
        Direction<Acc> along = direction;
        if constexpr (may_need_second_pass(n.value)) along.unit = Acc(1);  // x has the factor
        output.store_element(own.offset, own.factor * direction_at<n.value>(along, own.x));
      }
    });
  }

  template <typename Output>
  MARGIN_DEVICE void write_zeros(const Output& output) const {
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

  template <typename Pack>
  MARGIN_DEVICE Pack* packs_in_shared() const {
    return reinterpret_cast<Pack*>(shared_);
  }

  MARGIN_DEVICE GeneralPath<Acc> path_from(int pack) const {
    return {channels_, slice_.first_element + static_cast<int64_t>(pack) * kPack,
            opaque(threads_) * kPack, first_};
  }

  template <typename Path>
  MARGIN_DEVICE static void expand(const uint4& bits, const Path& path, Acc (&x)[kPack]) {
    Format<T>::unpack(bits, x);
    path.scale_read(x);
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
    Acc x;  // times the factors
  };
  MARGIN_DEVICE End end_element() const {
    const int64_t offset = slice_.offset_of_end(thread_);
    const Acc factor = channel_factor<Acc>(channels_, slice_.first_element + offset);
    return {offset, factor, Format<T>::widen(slice_.first[offset]) * first_ * factor};
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
    // What is read has the factor of a second pass, so the unit is 1. Known, it costs nothing.
    if constexpr (may_need_second_pass(norm)) along.unit = Acc(1);
#pragma unroll
    for (int k = 0; k < kPack; ++k) x[k] = direction_at<norm>(along, x[k]);
    path.scale_written(x);
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
        // Otherwise the compiler would carry the former contents through the whole kernel.
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

  // visit(begin, end, path_at) for every run of the slice's packs that have one way along them;
  // path_at(pack) is the way from a pack on.
  template <typename Visit>
  MARGIN_DEVICE void for_runs(const Visit& visit) const {
    if (way_ == RowWay::kPlain && first_ == 1) {
      visit(0, slice_.packs, [](int) { return PlainPath(); });
    } else if (way_ != RowWay::kGeneral) {
      const Acc* factors = static_cast<const Acc*>(channels_.scale);
      const int count = factors == nullptr ? 1 : static_cast<int>(channels_.count);
      const int64_t stride = count == 1 ? slice_.size : channels_.stride;
      const int64_t number = slice_.first_element == 0 ? 0 : slice_.first_element / stride;
      int64_t past = (number + 1) * stride - slice_.first_element;  // where the channel ends
      int channel = static_cast<int>(number % count);
#pragma unroll 1
      for (int begin = 0; begin < slice_.packs;) {
        const int64_t of_channels = past / kPack;
        const int end = of_channels < slice_.packs ? static_cast<int>(of_channels) : slice_.packs;
        const Acc factor = factors == nullptr ? Acc(1) : factors[channel];
        const ChannelPath<Acc> path{first_, factor};
        visit(begin, end, [path](int) { return path; });
        begin = end;
        past += stride;
        channel = channel + 1 == count ? 0 : channel + 1;
      }
    } else {
      visit(0, slice_.packs, [this](int pack) { return path_from(pack); });
    }
  }

  // The thread's first pack from `begin` on.
  MARGIN_DEVICE int first_from(int begin) const {
    if (begin == 0) return opaque(thread_);
    const int threads = opaque(threads_);
    const int first = begin - begin % threads + thread_;
    return first < begin ? first + threads : first;
  }
  // The same among the packs beyond those that are kept, of a run from `begin` on.
  MARGIN_DEVICE int first_beyond_kept(int begin) const {
    return begin < kept_packs_ ? kept_packs_ + opaque(thread_) : first_from(begin);
  }

  template <Norm norm, typename Output, typename PathAt>
  MARGIN_DEVICE void read_run(const Output& output, bool written, int begin, int end,
                              const PathAt& path_at) {
    using Path = decltype(path_at(0));
    constexpr Kept how = kept(variant, use, norm);
    constexpr int kBatch = kUnroll<norm, Path>;
    const uint4* source = slice_.first_pack();
    int first = first_from(begin);
    if constexpr (how == Kept::kPacks) {
      Path path = path_at(first);
      for_packs<kBatch, uint4>(
          first, min(end, kept_packs_), path, [&](int i) { return packs_in_shared<uint4>()[i]; },
          [&](int, const uint4& bits) {
            Acc x[kPack];
            expand(bits, path, x);
            add_pack<norm>(x);
          });
      first = first_beyond_kept(begin);
      if (first >= end) return;
    }
    // A row that is read twice should stay in the cache between the passes.
    const auto load = [&](int i) {
      return how == Kept::kPacks || variant == Variant::kReread ? load_reused(source + i)
                                                                : load_streaming(source + i);
    };
    Path path = path_at(first);
    for_packs<kBatch, uint4>(first, end, path, load, [&](int i, const uint4& bits) {
      Acc x[kPack];
      expand(bits, path, x);
      const Acc largest = own_.sum;
      add_pack<norm>(x);
      if constexpr (how == Kept::kSigns) {
        if (i < kept_packs_) packs_in_shared<SignBits<T>>()[i] = signs_of(x);
      } else if constexpr (how == Kept::kLargest) {
        if (own_.sum != largest) position_ = i;
        if (written && i < end) write_zero_pack<Path>(output, i);
      }
    });
  }

  template <Norm norm, typename Output, typename PathAt>
  MARGIN_DEVICE void write_run(const Direction<Acc>& direction, const Output& output, int begin,
                               int end, const PathAt& path_at) {
    using Path = decltype(path_at(0));
    constexpr Kept how = kept(variant, use, norm);
    constexpr int kBatch = kUnroll<norm, Path>;
    const uint4* source = slice_.first_pack();
    int first = first_from(begin);
    if constexpr (how == Kept::kPacks || how == Kept::kSigns) {
      using Pack = std::conditional_t<how == Kept::kSigns, SignBits<T>, uint4>;
      Path path = path_at(first);
      write_packs<norm, kBatch, Pack>(direction, output, path, first, min(end, kept_packs_),
                                      [&](int i) { return packs_in_shared<Pack>()[i]; });
      first = first_beyond_kept(begin);
      if (first >= end) return;
    }
    Path path = path_at(first);
    write_packs<norm, kBatch, uint4>(direction, output, path, first, end,
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

  // All other elements are zero already, unless the coefficient makes NaN of zeros. A thread that
  // saw the row's maximum more than once looks at all its packs after the first; there are few such
  // threads.
  template <Norm norm, typename Output>
  MARGIN_DEVICE void write_maxima(const Direction<Acc>& direction, const Output& output) const {
    const bool all = is_nan(times_zero(direction.coefficient));
    if (!all && (!(own_.sum == direction.unit) || direction.coefficient == 0)) return;
    const int first = all ? thread_ : position_;
    GeneralPath<Acc> path = path_from(first);
    for (int i = first; i < slice_.packs; i += threads_) {
      const uint4 bits = load_streaming(slice_.first_pack() + i);
      write_pack<norm>(direction, output, i, bits, output.template fetch<GeneralPath<Acc>>(i),
                       path);
      if (!all && own_.extra == 1) return;
      path.step();
    }
  }

  RowSlice<T> slice_;
  const ChannelScale& channels_;
  RowWay way_;
  ServedNorm<variant, use, Acc> norm_;
  int thread_;
  int threads_;
  NormState<Acc> own_;  // of the thread's packs; of head and tail too after read_again()
  int position_;        // under Kept::kLargest: the pack with the thread's largest element
  unsigned char* shared_;
  int kept_packs_;
  Acc first_ = Acc(1);  // what every element that is read is multiplied by before anything else
};

}  // namespace margin::cuda
