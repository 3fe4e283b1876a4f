#include <torch/csrc/stable/library.h>

#include "mm/cuda/mm_cuda.h"

namespace aoq {
namespace {

Tensor int4_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero_point,
                    const std::optional<Tensor>& bias, int64_t n, int64_t group_size, int64_t config) {
  return mm_on_cuda("int4_mm", FormatId::int4, {}, {x, packed, scale, zero_point, {}, bias}, n, group_size, config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int4_mm", TORCH_BOX(&aoq::int4_mm_cuda)); }
