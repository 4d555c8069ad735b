// The number types of tensors, 16-byte packs of them, and cache hints for memory traffic.
#pragma once

#include "core/arguments.h"
#include "cuda/platform.h"

namespace margin::cuda {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The accumulation dtype.
template <typename T>
using AccOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

MARGIN_HD constexpr int size_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// The number of elements that one memory instruction moves.
template <typename T>
inline constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));

// Every element of a row is used once, so it should not evict others from the cache.
MARGIN_DEVICE uint4 load_streaming(const uint4* address) { return __ldcs(address); }
MARGIN_DEVICE uint4 load_reused(const uint4* address) { return __ldcg(address); }
MARGIN_DEVICE void store_streaming(uint4* address, const uint4& value) { __stcs(address, value); }

template <typename To, typename From>
MARGIN_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(static_cast<void*>(&to), static_cast<const void*>(&from), sizeof(to));
  return to;
}

template <typename T>
MARGIN_DEVICE bool is_aligned(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

// Conversion between numbers stored as T and the accumulation dtype, single and by 16-byte packs.
template <typename T>
struct Format {
  using Acc = AccOf<T>;
  struct Elements {
    T x[kPackSize<T>];
  };
  MARGIN_DEVICE static Acc widen(T x) { return x; }
  MARGIN_DEVICE static T narrow(Acc x) { return x; }
  MARGIN_DEVICE static void unpack(const uint4& bits, Acc (&x)[kPackSize<T>]) {
    const Elements elements = bit_cast<Elements>(bits);
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) x[k] = elements.x[k];
  }
  MARGIN_DEVICE static uint4 pack(const Acc (&x)[kPackSize<T>]) {
    Elements elements;
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) elements.x[k] = x[k];
    return bit_cast<uint4>(elements);
  }
};

// Two 16-bit numbers in a word.
template <typename T>
struct Pair;

template <>
struct Pair<Float16> {
  MARGIN_DEVICE static void unpack(unsigned word, float& low, float& high) {
    const float2 both = __half22float2(bit_cast<__half2>(word));
    low = both.x;
    high = both.y;
  }
  MARGIN_DEVICE static unsigned pack(float low, float high) {
    return bit_cast<unsigned>(__floats2half2_rn(low, high));
  }
};

template <>
struct Pair<BFloat16> {
  // A bfloat16 is the upper half of a float.
  MARGIN_DEVICE static void unpack(unsigned word, float& low, float& high) {
    low = bit_cast<float>(word << 16);
    high = bit_cast<float>(word & 0xffff0000u);
  }
  MARGIN_DEVICE static unsigned pack(float low, float high) {
    return bit_cast<unsigned>(__floats2bfloat162_rn(low, high));
  }
};

template <typename T>
struct SixteenBitFormat {
  MARGIN_DEVICE static float widen(T x) {
    float low, high;
    Pair<T>::unpack(x.bits, low, high);
    return low;
  }
  MARGIN_DEVICE static T narrow(float x) { return {static_cast<uint16_t>(Pair<T>::pack(x, 0.0f))}; }
  MARGIN_DEVICE static void unpack(const uint4& bits, float (&x)[8]) {
    Pair<T>::unpack(bits.x, x[0], x[1]);
    Pair<T>::unpack(bits.y, x[2], x[3]);
    Pair<T>::unpack(bits.z, x[4], x[5]);
    Pair<T>::unpack(bits.w, x[6], x[7]);
  }
  MARGIN_DEVICE static uint4 pack(const float (&x)[8]) {
    return uint4{Pair<T>::pack(x[0], x[1]), Pair<T>::pack(x[2], x[3]), Pair<T>::pack(x[4], x[5]),
                 Pair<T>::pack(x[6], x[7])};
  }
};
template <>
struct Format<Float16> : SixteenBitFormat<Float16> {};
template <>
struct Format<BFloat16> : SixteenBitFormat<BFloat16> {};

// Numbers whose type is a value, in two steps, so that several loads can be in flight before the
// first conversion waits.
template <typename Acc>
struct RawNumber {
  std::conditional_t<std::is_same_v<Acc, double>, uint64_t, uint32_t> bits = 0;

  MARGIN_DEVICE void load(Dtype dtype, const void* data, int64_t index) {
    if (std::is_same_v<Acc, double>) {
      bits = static_cast<const uint64_t*>(data)[index];
    } else if (dtype == Dtype::kFloat32) {
      bits = static_cast<const uint32_t*>(data)[index];
    } else {
      bits = static_cast<const uint16_t*>(data)[index];
    }
  }
  MARGIN_DEVICE Acc value(Dtype dtype) const {
    if constexpr (std::is_same_v<Acc, double>) {
      return bit_cast<double>(bits);
    } else {
      if (dtype == Dtype::kFloat32) return bit_cast<float>(bits);
      const uint16_t half = static_cast<uint16_t>(bits);
      return dtype == Dtype::kBFloat16 ? Format<BFloat16>::widen({half})
                                       : Format<Float16>::widen({half});
    }
  }
};

template <typename Acc>
MARGIN_DEVICE Acc load_as(Dtype dtype, const void* data, int64_t index) {
  RawNumber<Acc> raw;
  raw.load(dtype, data, index);
  return raw.value(dtype);
}

template <typename Acc>
MARGIN_DEVICE void store_as(Dtype dtype, void* data, int64_t index, Acc value) {
  if constexpr (std::is_same_v<Acc, double>) {
    static_cast<double*>(data)[index] = value;
  } else if (dtype == Dtype::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] = dtype == Dtype::kBFloat16
                                              ? Format<BFloat16>::narrow(value).bits
                                              : Format<Float16>::narrow(value).bits;
  }
}

}  // namespace margin::cuda
