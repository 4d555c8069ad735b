// Checks of the tensors that a caller passes to an op. A message says what was expected and what
// came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "core/arguments.h"

namespace margin::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Python sees a ValueError.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// Written as [64, 3072] in a message, and only if that message is needed.
struct Shape {
  const Tensor& tensor;
};

inline Shape shape(const Tensor& tensor) { return {tensor}; }

inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << "[";
  for (int64_t d = 0; d < shape.tensor.dim(); ++d)
    out << (d == 0 ? "" : ", ") << shape.tensor.size(d);
  return out << "]";
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

// torch.int64
inline std::string type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Bool:
      return "torch.bool";
    default:
      return "type number " + std::to_string(static_cast<int>(type));
  }
}

inline bool is_double(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }

inline Dtype dtype_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    default:
      check(false, name, " must be float16, bfloat16, float32 or float64, got ",
            type_name(tensor.scalar_type()));
      return Dtype::kFloat32;
  }
}

inline void check_same_device(const char* name, const Tensor& tensor, const Tensor& reference) {
  check(tensor.is_cuda() == reference.is_cuda() &&
            (!tensor.is_cuda() || tensor.get_device_index() == reference.get_device_index()),
        name, " must be on the device of the other tensors");
}

// A vector of per-sample numbers or indices.
inline void check_vector(const char* name, const Tensor& tensor, ScalarType type, int64_t size) {
  check(tensor.dim() == 1 && tensor.size(0) == size, name, " must be [", size, "], got ",
        shape(tensor));
  check(tensor.scalar_type() == type, name, " must be ", type_name(type), ", got ",
        type_name(tensor.scalar_type()));
}

}  // namespace margin::binding
