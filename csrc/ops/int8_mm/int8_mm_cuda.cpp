#include <torch/csrc/stable/library.h>

#include "mm/cuda/mm_cuda.h"

namespace aoq {
namespace {

Tensor int8_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& w_sum,
                    const std::optional<Tensor>& bias, int64_t n, int64_t config) {
  return mm_on_cuda("int8_mm", FormatId::int8, XCodes{Codes::int8}, {x, packed, scale, {}, w_sum, bias}, n, {}, config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int8_mm", TORCH_BOX(&aoq::int8_mm_cuda)); }
