#include "ops/int8_weight_mm/int8_weight_mm_cuda.h"

#include <torch/csrc/stable/library.h>

#include "mm/cuda/weight_mm_entry.h"

namespace aoq {
namespace {

constexpr const char* kOp = "int8_weight_mm";

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<WeightMmSkinnyKernel> kSkinny[] = {
#include "ops/int8_weight_mm/kernels_cuda.inc"
};
constexpr CudaKernel<WeightMmWideKernel> kWide[] = {
#include "ops/int8_weight_mm/kernels_wide_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op(kOp, kSkinny, kWide);

Tensor int8_weight_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale,
                           const std::optional<Tensor>& bias, int64_t n, int64_t config) {
  return weight_mm(kOp, kSkinny, kWide, {x, packed, scale, {}, {}, bias}, n, Codes::int8, config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int8_weight_mm", TORCH_BOX(&aoq::int8_weight_mm_cuda)); }
