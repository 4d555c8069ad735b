// From values to template arguments.
#pragma once

#include <type_traits>

#include "core/arguments.h"
#include "cpu/types.h"

namespace margin::cpu {

template <typename T>
struct Type {
  using type = T;
};

// body(Type<T>{}) with T the stored type.
template <typename Body>
void dispatch(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat16:
      return body(Type<Float16>{});
    case Dtype::kBFloat16:
      return body(Type<BFloat16>{});
    case Dtype::kFloat32:
      return body(Type<float>{});
    case Dtype::kFloat64:
      return body(Type<double>{});
  }
}

// As dispatch, over the types whose accumulation dtype is A: that of double is double alone.
template <typename A, typename Body>
void dispatch_within(Dtype dtype, const Body& body) {
  if constexpr (std::is_same_v<A, double>) {
    body(Type<double>{});
  } else if (dtype != Dtype::kFloat64) {
    dispatch(dtype, [&]<typename T>(Type<T> type) {
      if constexpr (!std::is_same_v<T, double>) body(type);
    });
  }
}

// body(std::bool_constant<flag>()...): one template argument for each flag.
template <typename Body>
void with_flags(const Body& body) {
  body();
}
template <typename Body, typename... Flags>
void with_flags(const Body& body, bool flag, Flags... flags) {
  const auto with = [&](auto known) {
    with_flags([&](auto... others) { body(known, others...); }, flags...);
  };
  flag ? with(std::true_type()) : with(std::false_type());
}

}  // namespace margin::cpu
