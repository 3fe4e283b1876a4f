#include "ops/int8_mm/int8_mm.h"

#include <torch/csrc/stable/library.h>

#include "base/kernel.h"
#include "formats/int8.h"
#include "mm/packed_mm_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Int8MmKernel> kKernels[] = {
#include "ops/int8_mm/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int8_mm", kKernels);

Tensor int8_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& w_sum,
               const std::optional<Tensor>& bias, int64_t n, int64_t config) {
  check_value(config == -1, "int8_mm", "config", "expected -1, as the CPU's kernels have none, got ", config);
  return packed_mm("int8_mm", {x, packed, scale, {}, w_sum, bias}, n, {}, int8::kUnitK,
                   [] { return select(kKernels); });
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def("int8_mm(Tensor x, Tensor packed, Tensor scale, Tensor? w_sum, Tensor? bias, int n, int config=-1) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int8_mm", TORCH_BOX(&aoq::int8_mm)); }
