#include "ops/silu_mul_quantize/silu_mul_quantize.h"

#include <torch/csrc/stable/library.h>

#include "base/kernel.h"
#include "ops/silu_mul_quantize/silu_mul_quantize_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<QuantizeRowsKernel> kKernels[] = {
#include "ops/silu_mul_quantize/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("silu_mul_quantize", kKernels);

void run(const QuantizeRows& args, const Tensor&) { select(kKernels)(args); }

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "silu_mul_quantize(Tensor gate, Tensor up, ScalarType dtype, str mapping=\"symmetric\", int sum_group=0, "
      "bool permute=False) -> (Tensor qdata, Tensor scale, Tensor zero_point, Tensor group_sum)");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("silu_mul_quantize", TORCH_BOX(&aoq::silu_mul_quantize<&aoq::run>)); }
