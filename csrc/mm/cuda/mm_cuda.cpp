// Which kernels multiply with a weight of each format on CUDA: those of formats of one to four bits a code
// (nibble_mm.h), and of 8-bit codes those for x as given (weight_mm.h) and for x quantized to 8 bits too (dense_mm.h).
#include "mm/cuda/mm_cuda.h"

#include "mm/cuda/dense_mm_entry.h"
#include "mm/cuda/nibble_mm_entry.h"
#include "mm/cuda/weight_mm_entry.h"
#include "ops/fp8_mm/fp8_mm_cuda.h"
#include "ops/fp8_quantize/fp8_quantize.h"
#include "ops/fp8_weight_mm/fp8_weight_mm_cuda.h"
#include "ops/int8_mm/int8_mm_cuda.h"
#include "ops/int8_weight_mm/int8_weight_mm_cuda.h"

namespace aoq {

// ---- the tables: kernels of each op, best first

#define AOQ_NIBBLE_FORMAT(name, bits, op, op_of_int8) AOQ_NIBBLE_KERNELS(op) AOQ_NIBBLE_KERNELS(op_of_int8)
#include "nibble_formats.inc"
#undef AOQ_NIBBLE_FORMAT

namespace {

struct NibbleFormat {
  FormatId format;
  NibbleMm as[2];  // x as given, as int8
};
constexpr NibbleFormat kNibbleFormats[] = {
#define AOQ_NIBBLE_FORMAT(name, bits, op, op_of_int8) \
  {FormatId::name, {{#op, op##_kernels, bits, false}, {#op_of_int8, op_of_int8##_kernels, bits, true}}},
#include "nibble_formats.inc"
#undef AOQ_NIBBLE_FORMAT
};

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
#define AOQ_CUTLASS_KERNEL(sm, function) {Sm::sm, #function, AOQ_CUTLASS_FUNCTION(function)},
constexpr CudaKernel<WeightMmSkinnyKernel> kInt8Skinny[] = {
#include "ops/int8_weight_mm/kernels_cuda.inc"
};
constexpr CudaKernel<WeightMmWideKernel> kInt8Wide[] = {
#include "ops/int8_weight_mm/kernels_wide_cuda.inc"
};
constexpr CudaKernel<WeightMmSkinnyKernel> kFp8Skinny[] = {
#include "ops/fp8_weight_mm/kernels_cuda.inc"
};
constexpr CudaKernel<WeightMmWideKernel> kFp8Wide[] = {
#include "ops/fp8_weight_mm/kernels_wide_cuda.inc"
};
constexpr CudaKernel<DenseMmKernel> kInt8Dense[] = {
#include "ops/int8_mm/kernels_cuda.inc"
};
constexpr CudaKernel<DenseMmKernel> kFp8Dense[] = {
#include "ops/fp8_mm/kernels_cuda.inc"
};
constexpr CudaKernel<QuantizeRowsCudaKernel> kInt8Quantizers[] = {
#include "ops/int8_quantize/kernels_cuda.inc"
};
constexpr CudaKernel<QuantizeRowsCudaKernel> kFp8Quantizers[] = {
#include "ops/fp8_quantize/kernels_cuda.inc"
};
#undef AOQ_CUTLASS_KERNEL
#undef AOQ_KERNEL

const bool kRegistered = [] {
  for (const NibbleFormat& format : kNibbleFormats)
    for (const NibbleMm& mm : format.as) register_cuda_op(mm.op, mm.kernels.skinny, mm.kernels.wide, mm.kernels.wgmma);
  register_cuda_op("int8_weight_mm", kInt8Skinny, kInt8Wide);
  register_cuda_op("fp8_weight_mm", kFp8Skinny, kFp8Wide);
  register_cuda_op("int8_mm", kInt8Dense);
  register_cuda_op("fp8_mm", kFp8Dense);
  return true;
}();

constexpr WeightMm kInt8Weights{"int8_weight_mm", kInt8Skinny[0], kInt8Wide[0], Codes::int8};
constexpr WeightMm kFp8Weights{"fp8_weight_mm", kFp8Skinny[0], kFp8Wide[0], Codes::e4m3};

const NibbleFormat* nibble_format(FormatId format) {
  for (const NibbleFormat& one : kNibbleFormats)
    if (one.format == format) return &one;
  return nullptr;
}

std::string formats_here() {
  std::string names = "int8, fp8_e4m3, fp8_e5m2";
  for (const NibbleFormat& one : kNibbleFormats) names = std::string(info_of(one.format).name) + ", " + names;
  return names;
}

Codes codes_of(FormatId format) {
  return format == FormatId::int8 ? Codes::int8 : format == FormatId::fp8_e5m2 ? Codes::e5m2 : Codes::e4m3;
}

}  // namespace

Tensor mm_on_cuda(const char* op, FormatId format, const std::optional<XCodes>& x_as, const PackedOperands& t,
                  int64_t n, std::optional<int64_t> group, int64_t config, const Experts* experts) {
  check_tensor(t.x, op, "x");
  check_value(t.x.is_cuda(), op, "x", "expected the device of packed, ", device_name(t.packed), ", got ",
              device_name(t.x));
  const OnDevice device(t.x, op);
  const MmCall call{op, t, n, config, experts, device};
  if (const NibbleFormat* const nibbles = nibble_format(format))
    return nibble_mm(call, nibbles->as[x_as.has_value()], *group);
  const bool bytes = format == FormatId::int8 || format == FormatId::fp8_e4m3 || format == FormatId::fp8_e5m2;
  check_value(bytes, op, "format", "expected one that has CUDA kernels, ", formats_here(), ", got ",
              info_of(format).name);
  if (!x_as || experts) {
    WeightMm weights = format == FormatId::int8 ? kInt8Weights : kFp8Weights;
    weights.codes = codes_of(format);
    return weight_mm(call, weights, x_as);
  }
  const MmCodes codes{*x_as, codes_of(format)};
  return format == FormatId::int8 ? dense_mm(call, "int8_mm", kInt8Dense, kInt8Quantizers, codes)
                                  : dense_mm(call, "fp8_mm", kFp8Dense, kFp8Quantizers, codes);
}

}  // namespace aoq
