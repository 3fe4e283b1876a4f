#include "ops/int8_unpack/int8_unpack.h"

#include <torch/csrc/stable/library.h>

#include "base/kernel.h"
#include "base/tensors.h"
#include "formats/int8.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Int8UnpackKernel> kKernels[] = {
#include "ops/int8_unpack/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int8_unpack", kKernels);

Tensor int8_unpack(const Tensor& packed, int64_t n, int64_t k) {
  constexpr const char* op = "int8_unpack";
  check_uint8(packed, op, "packed");
  check_value(n > 0, op, "n", "expected at least 1, got ", n);
  check_value(k > 0, op, "k", "expected at least 1, got ", k);
  check_shape(packed, {ceil_div(n, kUnitN), ceil_div(k, int8::kUnitK), kUnitBytes}, op, "packed");
  check_size(packed, op, "packed");
  const Tensor packed_ = as_contiguous(packed);
  Tensor qdata = new_tensor(packed, {n, k}, ScalarType::Char);
  select(kKernels)(Int8Unpack{n, k, static_cast<const uint8_t*>(packed_.const_data_ptr()),
                              static_cast<int8_t*>(qdata.mutable_data_ptr())});
  return qdata;
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) { m.def("int8_unpack(Tensor packed, int n, int k) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int8_unpack", TORCH_BOX(&aoq::int8_unpack)); }
