#include <torch/csrc/stable/library.h>

#include "mm/cuda/mm_cuda.h"
#include "ops/fp8_mm/fp8_mm_entry.h"

namespace aoq {
namespace {

Tensor fp8_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias,
                   int64_t n, std::optional<ScalarType> w_dtype, std::optional<ScalarType> x_dtype,
                   const std::string& granularity, std::optional<double> lb, std::optional<double> ub, int64_t config) {
  const MmCodes codes = fp8_codes(w_dtype, x_dtype, granularity, lb, ub);
  const FormatId format = codes.w == Codes::e5m2 ? FormatId::fp8_e5m2 : FormatId::fp8_e4m3;
  return mm_on_cuda("fp8_mm", format, codes.x, {x, packed, scale, {}, {}, bias}, n, {}, config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("fp8_mm", TORCH_BOX(&aoq::fp8_mm_cuda)); }
