#include "ops/int8_quantize/int8_quantize.h"

#include <torch/csrc/stable/library.h>

#include "base/kernel.h"
#include "ops/int8_quantize/int8_quantize_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<QuantizeRowsKernel> kKernels[] = {
#include "ops/int8_quantize/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int8_quantize", kKernels);

void run(const QuantizeRows& args, const Tensor&) { select(kKernels)(args); }

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "int8_quantize(Tensor x, str mapping=\"symmetric\", ScalarType? scale_dtype=None) -> "
      "(Tensor qdata, Tensor scale, Tensor zero_point)");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int8_quantize", TORCH_BOX(&aoq::int8_quantize<&aoq::run>)); }
