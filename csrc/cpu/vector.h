// A vector of kLanes numbers, which the formulas of csrc/core accept as their Acc.
//
// Everything here is in a namespace named after the instruction set (MARGIN_ISA): the source that
// includes it is compiled once for each set, and the linker must not mix their code.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/platform.h"

namespace margin::cpu::MARGIN_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct LanesOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Lanes = typename LanesOf<T>::type;

template <typename T>
struct Mask {
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  Lanes<Integer> raw;  // 0 or -1 in each lane

  MARGIN_HD bool any() const {
    Integer found = 0;
    for (size_t i = 0; i < kVectorBytes / sizeof(T); ++i) found |= raw[i];
    return found != 0;
  }
};

template <typename T>
struct Vector {
  static constexpr int kLanes = kVectorBytes / sizeof(T);
  Lanes<T> raw;

  Vector() = default;
  MARGIN_HD explicit Vector(T x) : raw(Lanes<T>{} + x) {}
  MARGIN_HD explicit Vector(Lanes<T> lanes) : raw(lanes) {}

  MARGIN_HD static Vector load(const T* source) {
    Vector v;
    std::memcpy(&v.raw, source, kVectorBytes);
    return v;
  }
  MARGIN_HD void store(T* target) const { std::memcpy(target, &raw, kVectorBytes); }
  MARGIN_HD T operator[](int lane) const { return raw[lane]; }

  MARGIN_HD Vector operator-() const { return Vector(-raw); }
  MARGIN_HD Vector& operator+=(Vector b) {
    raw += b.raw;
    return *this;
  }
};

template <typename T>
MARGIN_HD Vector<T> operator+(Vector<T> a, Vector<T> b) {
  return Vector<T>(a.raw + b.raw);
}
template <typename T>
MARGIN_HD Vector<T> operator-(Vector<T> a, Vector<T> b) {
  return Vector<T>(a.raw - b.raw);
}
template <typename T>
MARGIN_HD Vector<T> operator*(Vector<T> a, Vector<T> b) {
  return Vector<T>(a.raw * b.raw);
}
template <typename T>
MARGIN_HD Vector<T> operator/(Vector<T> a, Vector<T> b) {
  return Vector<T>(a.raw / b.raw);
}
template <typename T>
MARGIN_HD Mask<T> operator<(Vector<T> a, Vector<T> b) {
  return {a.raw < b.raw};
}
template <typename T>
MARGIN_HD Mask<T> operator>(Vector<T> a, Vector<T> b) {
  return {a.raw > b.raw};
}
template <typename T>
MARGIN_HD Mask<T> operator<=(Vector<T> a, Vector<T> b) {
  return {a.raw <= b.raw};
}
template <typename T>
MARGIN_HD Mask<T> operator>=(Vector<T> a, Vector<T> b) {
  return {a.raw >= b.raw};
}
template <typename T>
MARGIN_HD Mask<T> operator==(Vector<T> a, Vector<T> b) {
  return {a.raw == b.raw};
}
template <typename T>
MARGIN_HD Mask<T> operator!=(Vector<T> a, Vector<T> b) {
  return {a.raw != b.raw};
}
template <typename T>
MARGIN_HD Mask<T> operator|(Mask<T> a, Mask<T> b) {
  return {a.raw | b.raw};
}
template <typename T>
MARGIN_HD Mask<T> operator&(Mask<T> a, Mask<T> b) {
  return {a.raw & b.raw};
}
template <typename T>
MARGIN_HD Vector<T> select(Mask<T> mask, Vector<T> a, Vector<T> b) {
  return Vector<T>(mask.raw ? a.raw : b.raw);
}
template <typename T>
MARGIN_HD Vector<T> absolute(Vector<T> a) {
  using Bits = Lanes<typename Mask<T>::Integer>;
  const typename Mask<T>::Integer no_sign =
      sizeof(T) == 8 ? static_cast<typename Mask<T>::Integer>(INT64_MAX) : INT32_MAX;
  return Vector<T>((Lanes<T>)((Bits)a.raw & (Bits{} + no_sign)));
}

// exp(x) for x <= 0, as a softmax needs it. Float: x = n ln 2 + r with |r| <= ln 2 / 2, a
// polynomial of degree 6 in r, error below 2 units in the last place; under -87.3 (the smallest
// normal number) the result is 0. NaN stays NaN.
MARGIN_HD Vector<float> exponential(Vector<float> x) {
  const Lanes<float> shifter = Lanes<float>{} + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const Lanes<float> t = x.raw * 1.44269504088896341f + shifter;
  const Lanes<float> n = t - shifter;
  const Lanes<float> r = (x.raw - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes<float> y = Lanes<float>{} + 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  // Unsigned, because the difference wraps around for x below -8.7e6, where it does not count.
  const Lanes<uint32_t> power = (Lanes<uint32_t>)t - (Lanes<uint32_t>)shifter;
  const Lanes<float> scale = (Lanes<float>)((power + 127u) << 23);
  Lanes<float> result = y * scale;
  result = x.raw < -87.3f ? Lanes<float>{} : result;
  return Vector<float>(x.raw != x.raw ? x.raw : result);
}

MARGIN_HD Vector<double> exponential(Vector<double> x) {
  for (int i = 0; i < Vector<double>::kLanes; ++i) x.raw[i] = ::exp(x.raw[i]);
  return x;
}

}  // namespace margin::cpu::MARGIN_ISA
