#include "ops/int4_unpack/int4_unpack_entry.h"

#include <torch/csrc/stable/library.h>

#include "base/kernel.h"
#include "formats/int4.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Int4UnpackKernel> kKernels[] = {
#include "ops/int4_unpack/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int4_unpack", kKernels);

Tensor int4_unpack(const Tensor& packed, int64_t n, int64_t k) {
  return int4_unpack_entry(packed, n, k, int4::kUnitK, kUnitBytes,
                           [](const Int4Unpack& args) { select(kKernels)(args); });
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) { m.def("int4_unpack(Tensor packed, int n, int k) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int4_unpack", TORCH_BOX(&aoq::int4_unpack)); }
