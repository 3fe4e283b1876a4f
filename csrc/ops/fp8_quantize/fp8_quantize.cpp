#include "ops/fp8_quantize/fp8_quantize.h"

#include <torch/csrc/stable/library.h>

#include "base/kernel.h"
#include "ops/fp8_quantize/fp8_quantize_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<QuantizeRowsKernel> kKernels[] = {
#include "ops/fp8_quantize/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("fp8_quantize", kKernels);

void run(const QuantizeRows& args, const Tensor&) { select(kKernels)(args); }

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "fp8_quantize(Tensor x, str granularity=\"row\", ScalarType? dtype=None, float? lb=None, float? ub=None) -> "
      "(Tensor qdata, Tensor scale)");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("fp8_quantize", TORCH_BOX(&aoq::fp8_quantize<&aoq::run>)); }
