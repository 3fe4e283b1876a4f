#include "ops/fp8_mm/fp8_mm_cuda.h"

#include <torch/csrc/stable/library.h>

#include "mm/cuda/dense_mm_entry.h"
#include "ops/fp8_mm/fp8_mm_entry.h"
#include "ops/fp8_quantize/fp8_quantize.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
#define AOQ_CUTLASS_KERNEL(sm, function) {Sm::sm, #function, AOQ_CUTLASS_FUNCTION(function)},
constexpr CudaKernel<DenseMmKernel> kKernels[] = {
#include "ops/fp8_mm/kernels_cuda.inc"
};
constexpr CudaKernel<QuantizeRowsCudaKernel> kQuantizers[] = {
#include "ops/fp8_quantize/kernels_cuda.inc"
};
#undef AOQ_CUTLASS_KERNEL
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op("fp8_mm", kKernels);

Tensor fp8_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias,
                   int64_t n, std::optional<ScalarType> w_dtype, std::optional<ScalarType> x_dtype,
                   const std::string& granularity, std::optional<double> lb, std::optional<double> ub, int64_t config) {
  return dense_mm("fp8_mm", kKernels, kQuantizers, {x, packed, scale, {}, {}, bias}, n,
                  fp8_codes(w_dtype, x_dtype, granularity, lb, ub), config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("fp8_mm", TORCH_BOX(&aoq::fp8_mm_cuda)); }
