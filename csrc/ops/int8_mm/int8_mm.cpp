// x is quantized to int8 per row (formats/int8_code.h): x[m, k] ~ (q[m, k] - x_zero[m]) * x_scale[m]. Then
//
//   out[m, n] = x_scale[m] * (scale[n] * (sum over k of q[m, k] * w_code[n, k]) - x_zero[m] * w_sum[n]) + bias[n]
//
// w_sum[n], the sum over k of w[n, k], is given when x is to be quantized asymmetrically.
#include <torch/csrc/stable/library.h>

#include "mm/mm.h"

namespace aoq {
namespace {

const bool kRegistered = register_mm_op("int8_mm", FormatId::int8, XAs::int8);

Tensor int8_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& w_sum,
               const std::optional<Tensor>& bias, int64_t n, int64_t config) {
  return mm("int8_mm", FormatId::int8, XAs::int8, {x, packed, scale, {}, w_sum, bias}, n, {}, config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def("int8_mm(Tensor x, Tensor packed, Tensor scale, Tensor? w_sum, Tensor? bias, int n, int config=-1) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int8_mm", TORCH_BOX(&aoq::int8_mm)); }
