#include "ops/fp8_mm/fp8_mm.h"

#include <torch/csrc/stable/library.h>

#include "base/kernel.h"
#include "base/parallel.h"
#include "formats/int8.h"
#include "mm/packed_mm_entry.h"
#include "ops/fp8_mm/fp8_mm_entry.h"
#include "rows/quantize_x.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Fp8WeightMmKernel> kKernels[] = {
#include "ops/fp8_mm/kernels.inc"
};
constexpr Kernel<QuantizeRowsKernel> kQuantizers[] = {
#include "ops/fp8_quantize/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("fp8_mm", kKernels);

// What differs from fp8_weight_mm: x becomes what its codes stand for, which bf16 holds; rows of out get its scales.
void multiply(PackedMm args, const XCodes& x_to) {
  const Scratch<float> scale(x_to.per_tensor ? 1 : args.m);
  if (x_to.per_tensor) select(kQuantizers)(quantize_x(args, x_to, nullptr, scale.get(), nullptr));
  const Fp8Rows rows{args.x,
                     args.x_dtype,
                     args.x_stride,
                     x_to.codes == Codes::e5m2,
                     x_to.lb,
                     x_to.ub,
                     x_to.per_tensor ? scale.get() : nullptr,
                     scale.get()};
  args.x_fp8 = &rows;
  args.x_dtype = Dtype::bf16;
  args.x_scale = scale.get();
  args.x_scale_stride = x_to.per_tensor ? 0 : 1;
  select(kKernels)(args);
}

Tensor fp8_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias, int64_t n,
              std::optional<ScalarType> w_dtype, std::optional<ScalarType> x_dtype, const std::string& granularity,
              std::optional<double> lb, std::optional<double> ub, int64_t config) {
  constexpr const char* op = "fp8_mm";
  check_value(config == -1, op, "config", "expected -1, as the CPU's kernels have none, got ", config);
  const MmCodes codes = fp8_codes(w_dtype, x_dtype, granularity, lb, ub);
  return packed_mm(op, {x, packed, scale, {}, {}, bias}, n, {}, int8::kUnitK, [&] {
    return [&](PackedMm args) {
      args.w_e5m2 = codes.w == Codes::e5m2;
      multiply(args, codes.x);
    };
  });
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "fp8_mm(Tensor x, Tensor packed, Tensor scale, Tensor? bias, int n, ScalarType? w_dtype=None, "
      "ScalarType? x_dtype=None, str granularity=\"row\", float? lb=None, float? ub=None, int config=-1) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("fp8_mm", TORCH_BOX(&aoq::fp8_mm)); }
