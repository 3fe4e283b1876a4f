#include "int4_pack/int4_pack.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "core/check.h"
#include "core/int4.h"
#include "core/kernel.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Int4PackKernel> kKernels[] = {
#include "int4_pack/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int4_pack", kKernels);

Tensor int4_pack(const Tensor& qdata, int64_t k) {
  constexpr const char* op = "int4_pack";
  check_uint8(qdata, op, "qdata");
  check_value(qdata.dim() == 2, op, "qdata", "expected shape [n, ceil(k/2)], got ", shape(qdata));
  check_value(k > 0, op, "k", "expected at least 1, got ", k);
  const int64_t n = qdata.size(0);
  check_shape(qdata, {n, ceil_div(k, 2)}, op, "qdata");
  check_value(n > 0, op, "qdata", "expected at least one row, got ", shape(qdata));
  const Tensor qdata_ = qdata.is_contiguous() ? qdata : torch::stable::contiguous(qdata);
  Tensor packed = torch::stable::new_empty(qdata, {ceil_div(n, kUnitN), ceil_div(k, int4::kUnitK), kUnitBytes});
  select(kKernels)(Int4Pack{n, k, static_cast<const uint8_t*>(qdata_.const_data_ptr()),
                            static_cast<uint8_t*>(packed.mutable_data_ptr())});
  return packed;
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) { m.def("int4_pack(Tensor qdata, int k) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int4_pack", TORCH_BOX(&aoq::int4_pack)); }
