// x is quantized to int8 per row (formats/int8_code.h): x[m, k] ~ (q[m, k] - x_zero[m]) * x_scale[m]. Then
//
//   out[m, n] = x_scale[m] * (sum over groups g of scale[n, g] * (sum over k in g of q[m, k] * (code[n, k] -
//   zero_point[n, g]))
//                             - x_zero[m] * w_sum[n]) + bias[n]
//
// Sums over a group are exact integers, each group's scale is applied to them in fp32: nothing is rounded to 8 bits
// twice. w_sum[n], the sum over k of w[n, k], is given when x is to be quantized asymmetrically.
#include <torch/csrc/stable/library.h>

#include "mm/mm.h"

namespace aoq {
namespace {

const bool kRegistered = register_mm_op("int8_int4_mm", FormatId::int4, XAs::int8);

Tensor int8_int4_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero_point,
                    const std::optional<Tensor>& w_sum, const std::optional<Tensor>& bias, int64_t n,
                    int64_t group_size, int64_t config) {
  return mm("int8_int4_mm", FormatId::int4, XAs::int8, {x, packed, scale, zero_point, w_sum, bias}, n, group_size,
            config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "int8_int4_mm(Tensor x, Tensor packed, Tensor scale, Tensor? zero_point, Tensor? w_sum, Tensor? bias, int n, int "
      "group_size, int config=-1) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int8_int4_mm", TORCH_BOX(&aoq::int8_int4_mm)); }
