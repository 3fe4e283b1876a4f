// out[m, n] = (sum over k of x[m, k] * w[n, k]) * x_scale[m] + bias[n],   w[n, k] = code[n, k] * scale[n]
//
// codes are e4m3fn or e5m2, tiled like int8. x is used as given (bf16, fp16 or fp32): every product of bf16 and fp8 is
// exact in fp32, sums are fp32 and are scaled once. fp8_mm runs the same kernels, on codes of x in bf16 and x's scales.
#include <torch/csrc/stable/library.h>

#include "mm/mm.h"
#include "rows/quantize_rows_entry.h"

namespace aoq {
namespace {

const bool kRegistered = register_mm_op("fp8_weight_mm", FormatId::fp8_e4m3, XAs::given);

Tensor fp8_weight_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias,
                     int64_t n, std::optional<ScalarType> w_dtype, int64_t config) {
  constexpr const char* op = "fp8_weight_mm";
  const bool e5m2 = codes_of(w_dtype.value_or(ScalarType::Float8_e4m3fn), false, op, "w_dtype") == Codes::e5m2;
  return mm(op, e5m2 ? FormatId::fp8_e5m2 : FormatId::fp8_e4m3, XAs::given, {x, packed, scale, {}, {}, bias}, n, {},
            config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "fp8_weight_mm(Tensor x, Tensor packed, Tensor scale, Tensor? bias, int n, ScalarType? w_dtype=None, "
      "int config=-1) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("fp8_weight_mm", TORCH_BOX(&aoq::fp8_weight_mm)); }
