// The memory layout of a tensor [B, ...]: whether each sample is one dense block.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "torch/check.h"

namespace margin::binding {

// Elements of one sample.
inline int64_t sample_size(const Tensor& tensor) {
  int64_t size = 1;
  for (int64_t d = 1; d < tensor.dim(); ++d) size *= tensor.size(d);
  return size;
}

// Whether the elements of the dimensions from `first` on, of a sample if that is 1, fill one block
// of memory, in any order of the dimensions.
inline bool sample_is_dense(const Tensor& tensor, int64_t first = 1) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = first; d < tensor.dim(); ++d) {
    if (tensor.size(d) == 0) return true;
    if (tensor.size(d) > 1) dims.emplace_back(tensor.stride(d), tensor.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline bool same_sample_layout(const Tensor& a, const Tensor& b) {
  for (int64_t d = 1; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// The tensor itself where its samples are dense, else a contiguous copy.
inline Tensor dense_samples(const Tensor& tensor) {
  return sample_is_dense(tensor) ? tensor : torch::stable::contiguous(tensor);
}

// An uninitialised tensor on the device of `anchor`. The shim takes a third of the time that the
// dispatcher would.
inline Tensor empty_strided(const Tensor& anchor, ScalarType type,
                            torch::headeronly::IntHeaderOnlyArrayRef sizes,
                            torch::headeronly::IntHeaderOnlyArrayRef strides) {
  int32_t device_type = 0;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(anchor.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), static_cast<int32_t>(type),
                                                  device_type, anchor.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor empty_vector(const Tensor& anchor, ScalarType type, int64_t size) {
  return empty_strided(anchor, type, {size}, {1});
}

// A tensor of the same shape and type. Its samples have the layout of those of `dense` and follow
// each other without gaps. margin_ext/fake_kernels.py predicts the same strides.
inline Tensor empty_like_samples(const Tensor& dense) {
  std::vector<int64_t> strides(dense.strides().begin(), dense.strides().end());
  strides[0] = sample_size(dense);
  return empty_strided(dense, dense.scalar_type(), dense.sizes(), strides);
}

// A vector or scalar without gaps.
inline Tensor contiguous_vector(const Tensor& vector) {
  return vector.dim() == 0 || vector.size(0) <= 1 || vector.stride(0) == 1
             ? vector
             : torch::stable::contiguous(vector);
}

// The distance in elements between neighbours along the channel dimension (1) of a dense sample.
inline int64_t channel_stride(const Tensor& dense) {
  return dense.dim() > 1 && dense.size(1) > 1 ? dense.stride(1) : 1;
}

}  // namespace margin::binding
