#include "ops/fp8_weight_mm/fp8_weight_mm_cuda.h"

#include <torch/csrc/stable/library.h>

#include "mm/cuda/weight_mm_entry.h"
#include "rows/quantize_rows_entry.h"

namespace aoq {
namespace {

constexpr const char* kOp = "fp8_weight_mm";

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<WeightMmSkinnyKernel> kSkinny[] = {
#include "ops/fp8_weight_mm/kernels_cuda.inc"
};
constexpr CudaKernel<WeightMmWideKernel> kWide[] = {
#include "ops/fp8_weight_mm/kernels_wide_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op(kOp, kSkinny, kWide);

Tensor fp8_weight_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias,
                          int64_t n, std::optional<ScalarType> w_dtype, int64_t config) {
  const Codes codes = codes_of(w_dtype.value_or(ScalarType::Float8_e4m3fn), false, kOp, "w_dtype");
  return weight_mm(kOp, kSkinny, kWide, {x, packed, scale, {}, {}, bias}, n, codes, config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("fp8_weight_mm", TORCH_BOX(&aoq::fp8_weight_mm_cuda)); }
