#include "ops/fp8_weight_mm/fp8_weight_mm.h"

#include <torch/csrc/stable/library.h>

#include "base/kernel.h"
#include "formats/int8.h"
#include "mm/packed_mm_entry.h"
#include "rows/quantize_rows_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Fp8WeightMmKernel> kKernels[] = {
#include "ops/fp8_weight_mm/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("fp8_weight_mm", kKernels);

Tensor fp8_weight_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias,
                     int64_t n, std::optional<ScalarType> w_dtype, int64_t config) {
  constexpr const char* op = "fp8_weight_mm";
  check_value(config == -1, op, "config", "expected -1, as the CPU's kernels have none, got ", config);
  const bool e5m2 = codes_of(w_dtype.value_or(ScalarType::Float8_e4m3fn), false, op, "w_dtype") == Codes::e5m2;
  return packed_mm(op, {x, packed, scale, {}, {}, bias}, n, {}, int8::kUnitK, [e5m2] {
    return [e5m2](PackedMm args) {
      args.w_e5m2 = e5m2;
      select(kKernels)(args);
    };
  });
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "fp8_weight_mm(Tensor x, Tensor packed, Tensor scale, Tensor? bias, int n, ScalarType? w_dtype=None, "
      "int config=-1) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("fp8_weight_mm", TORCH_BOX(&aoq::fp8_weight_mm)); }
