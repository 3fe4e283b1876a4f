// out[m, n] = (sum over k of x_code[m, k] * w_code[n, k]) * x_scale[m] * scale[n] + bias[n]
//
// x is quantized to e4m3fn or e5m2 first, with a scale per row or one of all (rows/quantize_rows.h says how). Its codes
// are exact in bf16, so what multiplies them is fp8_weight_mm.
#include <torch/csrc/stable/library.h>

#include "base/parallel.h"
#include "mm/mm.h"
#include "ops/fp8_mm/fp8_mm_entry.h"
#include "ops/fp8_quantize/fp8_quantize.h"
#include "rows/quantize_x.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<QuantizeRowsKernel> kQuantizers[] = {
#include "ops/fp8_quantize/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_mm_op("fp8_mm", FormatId::fp8_e4m3, XAs::given, true);

// What differs from fp8_weight_mm: x becomes what its codes stand for, which bf16 holds; rows of out get its scales.
Tensor fp8_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias, int64_t n,
              std::optional<ScalarType> w_dtype, std::optional<ScalarType> x_dtype, const std::string& granularity,
              std::optional<double> lb, std::optional<double> ub, int64_t config) {
  const MmCodes codes = fp8_codes(w_dtype, x_dtype, granularity, lb, ub);
  const auto quantize = [&](PackedMm& args, const auto& run) {
    const XCodes& to = codes.x;
    const Scratch<float> x_scale(to.per_tensor ? 1 : args.m);
    if (to.per_tensor) select(kQuantizers)(quantize_x(args, to, nullptr, x_scale.get(), nullptr));
    const Fp8Rows rows{args.x.data,
                       args.x.dtype,
                       args.x.stride,
                       to.codes == Codes::e5m2,
                       to.lb,
                       to.ub,
                       to.per_tensor ? x_scale.get() : nullptr,
                       x_scale.get()};
    args.x.fp8 = &rows;
    args.x.dtype = Dtype::bf16;
    args.out.row_scale = x_scale.get();
    args.out.row_scale_stride = to.per_tensor ? 0 : 1;
    run();
  };
  return mm("fp8_mm", codes.w == Codes::e5m2 ? FormatId::fp8_e5m2 : FormatId::fp8_e4m3, XAs::given,
            {x, packed, scale, {}, {}, bias}, n, {}, config, quantize);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "fp8_mm(Tensor x, Tensor packed, Tensor scale, Tensor? bias, int n, ScalarType? w_dtype=None, "
      "ScalarType? x_dtype=None, str granularity=\"row\", float? lb=None, float? ub=None, int config=-1) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("fp8_mm", TORCH_BOX(&aoq::fp8_mm)); }
