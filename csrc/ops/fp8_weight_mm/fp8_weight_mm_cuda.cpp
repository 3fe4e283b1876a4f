#include <torch/csrc/stable/library.h>

#include "mm/cuda/mm_cuda.h"
#include "rows/quantize_rows_entry.h"

namespace aoq {
namespace {

Tensor fp8_weight_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias,
                          int64_t n, std::optional<ScalarType> w_dtype, int64_t config) {
  constexpr const char* op = "fp8_weight_mm";
  const Codes codes = codes_of(w_dtype.value_or(ScalarType::Float8_e4m3fn), false, op, "w_dtype");
  const FormatId format = codes == Codes::e5m2 ? FormatId::fp8_e5m2 : FormatId::fp8_e4m3;
  return mm_on_cuda(op, format, {}, {x, packed, scale, {}, {}, bias}, n, {}, config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("fp8_weight_mm", TORCH_BOX(&aoq::fp8_weight_mm_cuda)); }
