#include "ops/int4_quantize/int4_quantize_entry.h"

#include <torch/csrc/stable/library.h>

#include "base/kernel.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Int4QuantizeKernel> kKernels[] = {
#include "ops/int4_quantize/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int4_quantize", kKernels);

std::tuple<Tensor, Tensor, Tensor> quantize(const char* op, const Tensor& w, int64_t bits, int64_t group_size,
                                            const std::string& mapping, std::optional<ScalarType> scale_dtype) {
  return int4_quantize_entry(op, w, bits, group_size, mapping, scale_dtype, [op](Int4Quantize& args) {
    int64_t bad_row = -1;
    args.bad_row = &bad_row;
    select(kKernels)(args);
    check_value(bad_row < 0, op, "w", "expected finite values, got NaN or infinity in row ", bad_row);
  });
}

std::tuple<Tensor, Tensor, Tensor> int4_quantize(const Tensor& w, int64_t group_size, const std::string& mapping,
                                                 std::optional<ScalarType> scale_dtype) {
  return quantize("int4_quantize", w, 4, group_size, mapping, scale_dtype);
}
std::tuple<Tensor, Tensor, Tensor> intx_quantize(const Tensor& w, int64_t bits, int64_t group_size,
                                                 const std::string& mapping, std::optional<ScalarType> scale_dtype) {
  return quantize("intx_quantize", w, bits, group_size, mapping, scale_dtype);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "int4_quantize(Tensor w, int group_size, str mapping=\"asymmetric\", ScalarType? scale_dtype=None) -> "
      "(Tensor qdata, Tensor scale, Tensor zero_point)");
  m.def(
      "intx_quantize(Tensor w, int bits, int group_size, str mapping=\"asymmetric\", ScalarType? scale_dtype=None) -> "
      "(Tensor qdata, Tensor scale, Tensor zero_point)");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) {
  m.impl("int4_quantize", TORCH_BOX(&aoq::int4_quantize));
  m.impl("intx_quantize", TORCH_BOX(&aoq::intx_quantize));
}
