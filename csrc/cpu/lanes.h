// Loads and stores of whole vectors of every stored type. float16 and bfloat16 are computed in
// float.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/types.h"
#include "cpu/vector.h"

namespace margin::cpu::MARGIN_ISA {

template <typename T>
MARGIN_HD Vector<T> load_lanes(const T* source) {
  return Vector<T>::load(source);
}
template <typename T>
MARGIN_HD void store_lanes(T* target, Vector<T> v) {
  v.store(target);
}

using HalfBits __attribute__((vector_size(kVectorBytes / 2))) = uint16_t;

MARGIN_HD Vector<float> load_lanes(const BFloat16* source) {
  HalfBits bits;
  std::memcpy(&bits, source, sizeof(bits));
  return Vector<float>((Lanes<float>)(__builtin_convertvector(bits, Lanes<uint32_t>) << 16));
}

// Rounds to nearest, with ties to even. Every NaN becomes the quiet NaN.
MARGIN_HD void store_lanes(BFloat16* target, Vector<float> v) {
  const Lanes<uint32_t> bits = (Lanes<uint32_t>)v.raw;
  Lanes<uint32_t> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = v.raw != v.raw ? Lanes<uint32_t>{} + 0x7fc0u : rounded;
  const HalfBits narrow = __builtin_convertvector(rounded, HalfBits);
  std::memcpy(target, &narrow, sizeof(narrow));
}

MARGIN_HD Vector<float> load_lanes(const Float16* source) {
#if defined(__AVX512F__)
  // The masked form with every lane on: gcc 12 warns of an undefined value in the other one.
  return Vector<float>((Lanes<float>)_mm512_maskz_cvtph_ps(
      0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source))));
#elif defined(__F16C__)
  return Vector<float>(
      (Lanes<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
#else
  Vector<float> v;
  for (int i = 0; i < Vector<float>::kLanes; ++i) {
    _Float16 half;
    std::memcpy(&half, &source[i].bits, sizeof(half));
    v.raw[i] = static_cast<float>(half);
  }
  return v;
#endif
}

MARGIN_HD void store_lanes(Float16* target, Vector<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v.raw, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target),
                   _mm256_cvtps_ph((__m256)v.raw, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < Vector<float>::kLanes; ++i) {
    const _Float16 half = static_cast<_Float16>(v.raw[i]);
    std::memcpy(&target[i].bits, &half, sizeof(half));
  }
#endif
}

// The bytes of a vector stored as T. A non-temporal store needs a target aligned to as many.
template <typename T>
inline constexpr int64_t kStoredBytes = Vector<Acc<T>>::kLanes * sizeof(T);

// A store that bypasses the caches: memory that is only written need not be fetched first, and
// takes no cache from other data. target is aligned to kStoredBytes. Parallel::for_range orders
// these stores before what follows it.
template <typename T>
MARGIN_HD void store_non_temporal(T* target, Vector<Acc<T>> v) {
#if defined(__x86_64__)
  alignas(kStoredBytes<T>) T stored[Vector<Acc<T>>::kLanes];
  store_lanes(stored, v);
  if constexpr (kStoredBytes<T> % 16 == 0) {
#if defined(__AVX512F__)
    if constexpr (kStoredBytes<T> == 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(target), _mm512_load_si512(stored));
      return;
    }
#endif
#if defined(__AVX2__)
    if constexpr (kStoredBytes<T> == 32) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target),
                          _mm256_load_si256(reinterpret_cast<const __m256i*>(stored)));
      return;
    }
#endif
    if constexpr (kStoredBytes<T> == 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(target),
                       _mm_load_si128(reinterpret_cast<const __m128i*>(stored)));
      return;
    }
  }
#endif
  store_lanes(target, v);
}

}  // namespace margin::cpu::MARGIN_ISA
