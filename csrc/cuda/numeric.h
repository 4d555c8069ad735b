// Number types of tensors, 16-byte packs of them, and the cache hints of the traffic to memory.
#pragma once

#include "core/arguments.h"
#include "cuda/platform.h"

namespace margin::cuda {

template <typename T>
struct Numeric {
  using Acc = float;
};
template <>
struct Numeric<double> {
  using Acc = double;
};
template <typename T>
using AccOf = typename Numeric<T>::Acc;

MARGIN_DEVICE float widen(float x) { return x; }
MARGIN_DEVICE double widen(double x) { return x; }
MARGIN_DEVICE float widen(__half x) { return __half2float(x); }
MARGIN_DEVICE float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T, typename Acc>
MARGIN_DEVICE T narrow(Acc x) {
  if constexpr (sizeof(T) >= 4) {
    return static_cast<T>(x);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(static_cast<float>(x));
  } else {
    return __float2bfloat16_rn(static_cast<float>(x));
  }
}

constexpr int size_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// What one memory instruction moves at most.
template <typename T>
inline constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));

template <typename T>
struct alignas(16) Pack {
  T value[kPackSize<T>];
};

// Every element of a row is wanted once, so it should not push others out of the cache.
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

// Logits of any type through one instantiation: the switch is uniform and cheap beside the load.
template <typename Acc>
MARGIN_DEVICE Acc load_as(Dtype dtype, const void* data, int64_t index) {
  switch (dtype) {
    case Dtype::kFloat16:
      return static_cast<Acc>(widen(static_cast<const __half*>(data)[index]));
    case Dtype::kBFloat16:
      return static_cast<Acc>(widen(static_cast<const __nv_bfloat16*>(data)[index]));
    case Dtype::kFloat32:
      return static_cast<Acc>(static_cast<const float*>(data)[index]);
    default:
      return static_cast<Acc>(static_cast<const double*>(data)[index]);
  }
}

template <typename Acc>
MARGIN_DEVICE void store_as(Dtype dtype, void* data, int64_t index, Acc value) {
  switch (dtype) {
    case Dtype::kFloat16:
      static_cast<__half*>(data)[index] = narrow<__half>(value);
      return;
    case Dtype::kBFloat16:
      static_cast<__nv_bfloat16*>(data)[index] = narrow<__nv_bfloat16>(value);
      return;
    case Dtype::kFloat32:
      static_cast<float*>(data)[index] = narrow<float>(value);
      return;
    default:
      static_cast<double*>(data)[index] = narrow<double>(value);
  }
}

template <typename Acc>
MARGIN_DEVICE Acc not_a_number() {
  const Acc infinity = -minus_infinity<Acc>();
  return infinity - infinity;
}

}  // namespace margin::cuda
