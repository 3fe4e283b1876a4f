#include "fp8_mm/fp8_mm.h"

#include <torch/csrc/stable/library.h>

#include "core/vec_ref.h"

#include "core/fp8_weight.h"
#include "core/kernel.h"
#include "core/packed_mm_entry.h"
#include "core/parallel.h"
#include "core/quantize_x.h"
#include "fp8_mm/fp8_mm_entry.h"

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
void multiply(PackedMm args, const XCodes& x_to) {
  const Scratch<uint8_t> qdata(args.m * args.k);
  const Scratch<uint16_t> values(args.m * args.k);
  const Scratch<float> scale(x_to.per_tensor ? 1 : args.m);
  select(kQuantizers)(quantize_x(args, x_to, qdata.get(), scale.get(), nullptr));
  x_to.codes == Codes::e5m2 ? widen<E5m2>(qdata.get(), args.m * args.k, values.get())
                            : widen<E4m3>(qdata.get(), args.m * args.k, values.get());
  args.x = values.get();
  args.x_dtype = Dtype::bf16;
  args.x_stride = args.k;
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
  return packed_mm(op, {x, packed, scale, {}, {}, bias}, n, 0, int8::kUnitK, [&] {
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
