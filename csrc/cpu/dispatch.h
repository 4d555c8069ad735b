// From run-time types to template arguments.
#pragma once

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

// As dispatch, over the types that are computed in A: double stands alone.
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

}  // namespace margin::cpu
