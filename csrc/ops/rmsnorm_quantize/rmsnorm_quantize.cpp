#include "ops/rmsnorm_quantize/rmsnorm_quantize.h"

#include <torch/csrc/stable/library.h>

#include "base/kernel.h"
#include "ops/rmsnorm_quantize/rmsnorm_quantize_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<QuantizeRowsKernel> kKernels[] = {
#include "ops/rmsnorm_quantize/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("rmsnorm_quantize", kKernels);

void run(const QuantizeRows& args, const Tensor&) { select(kKernels)(args); }

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "rmsnorm_quantize(Tensor x, Tensor weight, Tensor? residual, float eps, ScalarType dtype, "
      "str mapping=\"symmetric\", int sum_group=0, bool permute=False) -> "
      "(Tensor qdata, Tensor scale, Tensor zero_point, Tensor group_sum, Tensor residual_out)");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("rmsnorm_quantize", TORCH_BOX(&aoq::rmsnorm_quantize<&aoq::run>)); }
