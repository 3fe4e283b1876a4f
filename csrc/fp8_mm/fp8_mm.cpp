#include "fp8_mm/fp8_mm.h"

#include <limits>

#include <torch/csrc/stable/library.h>

#include "core/vec_ref.h"

#include "core/fp8_weight.h"
#include "core/kernel.h"
#include "core/packed_mm_entry.h"
#include "core/parallel.h"
#include "core/quantize_rows_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Fp8WeightMmKernel> kKernels[] = {
#include "fp8_mm/kernels.inc"
};
constexpr Kernel<QuantizeRowsKernel> kQuantizers[] = {
#include "fp8_quantize/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("fp8_mm", kKernels);

// Codes as the bf16 values that they stand for.
template <class Format>
void widen(const uint8_t* codes, int64_t count, uint16_t* out) {
  auto values = [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      out[i] = static_cast<uint16_t>(kFp8Table<Format>.bf16[codes[i] & 0x7f] | (codes[i] & 0x80) << 8);
  };
  parallel(count, 16384, values);
}

// What differs from fp8_weight_mm: x becomes its codes, rows of out get its scales.
struct QuantizedX {
  Codes codes;
  bool per_tensor;
  float lb, ub;

  void multiply(PackedMm args) const {
    const Scratch<uint8_t> qdata(args.m * args.k);
    const Scratch<uint16_t> values(args.m * args.k);
    const Scratch<float> scale(per_tensor ? 1 : args.m);
    QuantizeRows rows{};
    rows.m = args.m;
    rows.k = args.k;
    rows.source = RowSource::given;
    rows.x = args.x;
    rows.x_dtype = args.x_dtype;
    rows.x_stride = args.x_stride;
    rows.codes = codes;
    rows.per_tensor = per_tensor;
    rows.lb = lb;
    rows.ub = ub;
    rows.qdata = qdata.get();
    rows.scale = scale.get();
    rows.scale_dtype = Dtype::f32;
    select(kQuantizers)(rows);
    codes == Codes::e5m2 ? widen<E5m2>(qdata.get(), args.m * args.k, values.get())
                         : widen<E4m3>(qdata.get(), args.m * args.k, values.get());
    args.x = values.get();
    args.x_dtype = Dtype::bf16;
    args.x_stride = args.k;
    args.x_scale = scale.get();
    args.x_scale_stride = per_tensor ? 0 : 1;
    select(kKernels)(args);
  }
};

Tensor fp8_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias, int64_t n,
              std::optional<ScalarType> w_dtype, std::optional<ScalarType> x_dtype, const std::string& granularity,
              std::optional<double> lb, std::optional<double> ub) {
  constexpr const char* op = "fp8_mm";
  constexpr auto by_default = ScalarType::Float8_e4m3fn;
  const bool e5m2 = codes_of(w_dtype.value_or(by_default), false, op, "w_dtype") == Codes::e5m2;
  check_value(granularity == "row" || granularity == "tensor", op, "granularity", "expected row or tensor, got ",
              granularity);
  const QuantizedX quantized{codes_of(x_dtype.value_or(by_default), false, op, "x_dtype"), granularity == "tensor",
                             static_cast<float>(lb.value_or(0)),
                             static_cast<float>(ub.value_or(std::numeric_limits<double>::infinity()))};
  check_value(quantized.lb >= 0 && quantized.ub >= quantized.lb, op, "lb", "expected 0 <= lb <= ub, got lb ",
              quantized.lb, " and ub ", quantized.ub);
  return packed_mm(op, {x, packed, scale, {}, {}, bias}, n, 0, int8::kUnitK, [&] {
    return [&](PackedMm args) {
      args.w_e5m2 = e5m2;
      quantized.multiply(args);
    };
  });
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "fp8_mm(Tensor x, Tensor packed, Tensor scale, Tensor? bias, int n, ScalarType? w_dtype=None, "
      "ScalarType? x_dtype=None, str granularity=\"row\", float? lb=None, float? ub=None) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("fp8_mm", TORCH_BOX(&aoq::fp8_mm)); }
