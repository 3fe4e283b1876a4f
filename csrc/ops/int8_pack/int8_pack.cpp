#include <torch/csrc/stable/library.h>

#include "base/huge_pages.h"
#include "base/kernel.h"
#include "base/tensors.h"
#include "formats/int8.h"
#include "ops/int8_pack/int8_pack_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Int8PackKernel> kKernels[] = {
#include "ops/int8_pack/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int8_pack", kKernels);

Tensor int8_pack(const Tensor& qdata) {
  check_int8_codes(qdata);
  const int64_t n = qdata.size(0), k = qdata.size(1);
  const Tensor qdata_ = as_contiguous(qdata);
  Tensor packed = new_tensor(qdata, {ceil_div(n, kUnitN), ceil_div(k, int8::kUnitK), kUnitBytes}, ScalarType::Byte);
  prefer_huge_pages(packed.mutable_data_ptr(), packed.numel());
  select(kKernels)(Int8Pack{n, k, static_cast<const int8_t*>(qdata_.const_data_ptr()),
                            static_cast<uint8_t*>(packed.mutable_data_ptr())});
  return packed;
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) { m.def("int8_pack(Tensor qdata) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int8_pack", TORCH_BOX(&aoq::int8_pack)); }
