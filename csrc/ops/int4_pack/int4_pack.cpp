#include "ops/int4_pack/int4_pack_entry.h"

#include <torch/csrc/stable/library.h>

#include "base/huge_pages.h"
#include "base/kernel.h"
#include "formats/int4.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Int4PackKernel> kKernels[] = {
#include "ops/int4_pack/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int4_pack", kKernels);

Tensor int4_pack(const Tensor& qdata, int64_t k) {
  return int4_pack_entry(qdata, k, int4::kUnitK, kUnitBytes, [](const Int4Pack& args) {
    prefer_huge_pages(args.packed, ceil_div(args.n, kUnitN) * ceil_div(args.k, int4::kUnitK) * kUnitBytes);
    select(kKernels)(args);
  });
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) { m.def("int4_pack(Tensor qdata, int k) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int4_pack", TORCH_BOX(&aoq::int4_pack)); }
