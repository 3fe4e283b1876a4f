// out[m, n] = sum over k of x[m, k] * w[n, k] + bias[n],   w[n, k] = (code[n, k] - zero_point[n, k / group]) * scale[n,
// k / group]
//
// x is used as given (bf16, fp16 or fp32), products are exact or fp32, sums are fp32, out has x's dtype.
// The zero point stays out of the inner loop: with codes taken as (code - 8) its share is a rank-(k / group) update,
//   out[m, n] += sum over groups g of (sum of x[m, k] over g) * (8 - zero_point[n, g]) * scale[n, g].
// For many rows of x, the kernel for AVX512_BF16 scales weights as it decodes them and rounds each once, to bf16; the
// fp32 kernels do the same in fp32.
#include <torch/csrc/stable/library.h>

#include "mm/mm.h"

namespace aoq {
namespace {

const bool kRegistered = register_mm_op("int4_mm", FormatId::int4, XAs::given);

Tensor int4_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero_point,
               const std::optional<Tensor>& bias, int64_t n, int64_t group_size, int64_t config) {
  return mm("int4_mm", FormatId::int4, XAs::given, {x, packed, scale, zero_point, {}, bias}, n, group_size, config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "int4_mm(Tensor x, Tensor packed, Tensor scale, Tensor? zero_point, Tensor? bias, int n, int group_size, "
      "int config=-1) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int4_mm", TORCH_BOX(&aoq::int4_mm)); }
