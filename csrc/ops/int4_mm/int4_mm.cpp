#include "ops/int4_mm/int4_mm.h"

#include <torch/csrc/stable/library.h>

#include "base/kernel.h"
#include "formats/int4.h"
#include "mm/packed_mm_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Int4MmKernel> kKernels[] = {
#include "ops/int4_mm/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int4_mm", kKernels);

Tensor int4_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero_point,
               const std::optional<Tensor>& bias, int64_t n, int64_t group_size, int64_t config) {
  check_value(config == -1, "int4_mm", "config", "expected -1, as the CPU's kernels have none, got ", config);
  return packed_mm("int4_mm", {x, packed, scale, zero_point, {}, bias}, n, group_size, int4::kUnitK,
                   [] { return select(kKernels); });
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "int4_mm(Tensor x, Tensor packed, Tensor scale, Tensor? zero_point, Tensor? bias, int n, int group_size, "
      "int config=-1) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int4_mm", TORCH_BOX(&aoq::int4_mm)); }
