#include "ops/int8_mm/int8_mm_cuda.h"

#include <torch/csrc/stable/library.h>

#include "mm/cuda/dense_mm_entry.h"
#include "ops/int8_quantize/int8_quantize.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
#define AOQ_CUTLASS_KERNEL(sm, function) {Sm::sm, #function, AOQ_CUTLASS_FUNCTION(function)},
constexpr CudaKernel<DenseMmKernel> kKernels[] = {
#include "ops/int8_mm/kernels_cuda.inc"
};
constexpr CudaKernel<QuantizeRowsCudaKernel> kQuantizers[] = {
#include "ops/int8_quantize/kernels_cuda.inc"
};
#undef AOQ_CUTLASS_KERNEL
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op("int8_mm", kKernels);

Tensor int8_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& w_sum,
                    const std::optional<Tensor>& bias, int64_t n, int64_t config) {
  return dense_mm("int8_mm", kKernels, kQuantizers, {x, packed, scale, {}, w_sum, bias}, n,
                  {{Codes::int8}, Codes::int8}, config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int8_mm", TORCH_BOX(&aoq::int8_mm_cuda)); }
