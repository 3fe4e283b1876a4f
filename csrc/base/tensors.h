// Tensors that op entries make: results, and copies of operands that kernels cannot read where they lie.
#pragma once
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "base/check.h"

namespace aoq {

// make(), or an error that says what there was no memory for. On CUDA it may be another that torch has no words for.
template <class Make>
Tensor with_memory(const Tensor& like, const char* what, const std::vector<int64_t>& sizes, Make make) {
  try {
    return make();
  } catch (const std::exception&) {
    if (!like.is_cpu()) throw;
    std::string text;
    for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
    throw std::runtime_error(join("OutOfMemoryError: aoq: no memory for ", what, " of shape [", text, "]"));
  }
}

// Uninitialised, on the device of `like` and by default of its dtype.
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, std::optional<ScalarType> dtype = {}) {
  return with_memory(like, "a tensor", sizes, [&] { return torch::stable::new_empty(like, sizes, dtype); });
}

// Whether elements lie at multiples of their size: torch.frombuffer makes tensors of which they do not.
inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % tensor.element_size() == 0;
}

// The tensor, or a copy whose elements follow each other in memory, at multiples of their size.
inline Tensor as_contiguous(const Tensor& tensor) {
  if (tensor.is_contiguous() && is_aligned(tensor)) return tensor;
  const std::vector<int64_t> sizes(tensor.sizes().begin(), tensor.sizes().end());
  return with_memory(tensor, "a copy", sizes, [&] {
    return tensor.is_contiguous() ? torch::stable::clone(tensor) : torch::stable::contiguous(tensor);
  });
}

// The same for rows of the last dimension: those of a 2-d tensor may be `stride` elements apart.
inline Tensor as_rows(const Tensor& tensor, int64_t& stride) {
  const int64_t last = tensor.dim() - 1;
  const bool rows = tensor.dim() == 2 && tensor.stride(1) == 1 && is_aligned(tensor);
  stride = rows && tensor.size(0) > 1 ? tensor.stride(0) : tensor.size(last);  // of a row alone it says nothing
  return rows ? tensor : as_contiguous(tensor);
}

}  // namespace aoq
