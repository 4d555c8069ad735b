// The number types of tensors, 16-byte packs of them, and cache hints for memory traffic.
#pragma once

#include "core/arguments.h"
#include "cuda/platform.h"

namespace margin::cuda {

// float16 or bfloat16. Which of them is a value (Format), not a type, so that one kernel serves
// both.
struct SixteenBit {
  uint16_t bits;
};

// The accumulation dtype.
template <typename T>
using AccOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int size_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// The number of elements that one memory instruction moves.
template <typename T>
inline constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));

template <typename T>
struct alignas(16) Pack {
  T value[kPackSize<T>];
};

// Every element of a row is used once, so it should not evict others from the cache.
MARGIN_DEVICE uint4 load_streaming(const uint4* address) { return __ldcs(address); }
MARGIN_DEVICE uint4 load_reused(const uint4* address) { return __ldcg(address); }
MARGIN_DEVICE void store_streaming(uint4* address, const uint4& value) { __stcs(address, value); }

template <typename T>
MARGIN_DEVICE Pack<T> as_pack(const uint4& bits) {
  Pack<T> pack;
  memcpy(static_cast<void*>(&pack), &bits, sizeof(pack));
  return pack;
}

template <typename T>
MARGIN_DEVICE uint4 as_bits(const Pack<T>& pack) {
  uint4 bits;
  memcpy(&bits, static_cast<const void*>(&pack), sizeof(bits));
  return bits;
}

template <typename T>
MARGIN_DEVICE bool is_aligned(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

MARGIN_DEVICE float from_half(uint16_t bits) {
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}
MARGIN_DEVICE float from_bfloat(uint16_t bits) {
  __nv_bfloat16_raw raw;
  raw.x = bits;
  return __bfloat162float(__nv_bfloat16(raw));
}
MARGIN_DEVICE uint16_t to_half(float x) { return static_cast<__half_raw>(__float2half_rn(x)).x; }
MARGIN_DEVICE uint16_t to_bfloat(float x) {
  return static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(x)).x;
}

// Conversion between numbers stored as T and the accumulation dtype.
template <typename T>
class Format {
 public:
  using Acc = AccOf<T>;

  MARGIN_DEVICE explicit Format(Dtype) {}
  MARGIN_DEVICE Acc widen(T x) const { return x; }
  MARGIN_DEVICE T narrow(Acc x) const { return x; }

  MARGIN_DEVICE void unpack(const uint4& bits, Acc (&x)[kPackSize<T>]) const {
    const Pack<T> pack = as_pack<T>(bits);
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) x[k] = pack.value[k];
  }
  MARGIN_DEVICE Pack<T> pack(const Acc (&x)[kPackSize<T>]) const {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < kPackSize<T>; ++k) pack.value[k] = x[k];
    return pack;
  }
};

template <>
class Format<SixteenBit> {
 public:
  MARGIN_DEVICE explicit Format(Dtype dtype) : bfloat_(dtype == Dtype::kBFloat16) {}

  MARGIN_DEVICE float widen(SixteenBit x) const {
    return bfloat_ ? from_bfloat(x.bits) : from_half(x.bits);
  }
  MARGIN_DEVICE SixteenBit narrow(float x) const { return {bfloat_ ? to_bfloat(x) : to_half(x)}; }

  // The switch is outside the loops: it is uniform, and costs little for a whole pack.
  MARGIN_DEVICE void unpack(const uint4& bits, float (&x)[8]) const {
    const Pack<SixteenBit> pack = as_pack<SixteenBit>(bits);
    if (bfloat_) {
#pragma unroll
      for (int k = 0; k < 8; ++k) x[k] = from_bfloat(pack.value[k].bits);
    } else {
#pragma unroll
      for (int k = 0; k < 8; ++k) x[k] = from_half(pack.value[k].bits);
    }
  }
  MARGIN_DEVICE Pack<SixteenBit> pack(const float (&x)[8]) const {
    Pack<SixteenBit> pack;
    if (bfloat_) {
#pragma unroll
      for (int k = 0; k < 8; ++k) pack.value[k].bits = to_bfloat(x[k]);
    } else {
#pragma unroll
      for (int k = 0; k < 8; ++k) pack.value[k].bits = to_half(x[k]);
    }
    return pack;
  }

 private:
  bool bfloat_;
};

// Logits of any type through one instantiation.
template <typename Acc>
MARGIN_DEVICE Acc load_as(Dtype dtype, const void* data, int64_t index) {
  switch (dtype) {
    case Dtype::kFloat64:
      return static_cast<Acc>(static_cast<const double*>(data)[index]);
    case Dtype::kFloat32:
      return static_cast<Acc>(static_cast<const float*>(data)[index]);
    default:
      return Format<SixteenBit>(dtype).widen(static_cast<const SixteenBit*>(data)[index]);
  }
}

template <typename Acc>
MARGIN_DEVICE void store_as(Dtype dtype, void* data, int64_t index, Acc value) {
  switch (dtype) {
    case Dtype::kFloat64:
      static_cast<double*>(data)[index] = static_cast<double>(value);
      return;
    case Dtype::kFloat32:
      static_cast<float*>(data)[index] = static_cast<float>(value);
      return;
    default:
      static_cast<SixteenBit*>(data)[index] =
          Format<SixteenBit>(dtype).narrow(static_cast<float>(value));
  }
}

template <typename Acc>
MARGIN_DEVICE Acc not_a_number() {
  const Acc infinity = -minus_infinity<Acc>();
  return infinity - infinity;
}

}  // namespace margin::cuda
