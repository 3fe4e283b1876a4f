// out[m, n] = (sum over k of x[m, k] * code[n, k]) * scale[n] + bias[n]
//
// codes are int8 in tiles (formats/int8.h). x is used as given (bf16, fp16 or fp32): every product of bf16 and a code
// is exact in fp32, sums are fp32 and are scaled once.
#include <torch/csrc/stable/library.h>

#include "mm/mm.h"

namespace aoq {
namespace {

const bool kRegistered = register_mm_op("int8_weight_mm", FormatId::int8, XAs::given);

Tensor int8_weight_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias,
                      int64_t n, int64_t config) {
  return mm("int8_weight_mm", FormatId::int8, XAs::given, {x, packed, scale, {}, {}, bias}, n, {}, config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def("int8_weight_mm(Tensor x, Tensor packed, Tensor scale, Tensor? bias, int n, int config=-1) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int8_weight_mm", TORCH_BOX(&aoq::int8_weight_mm)); }
