#include <torch/csrc/stable/library.h>

#include "cuda/cuda_entry.h"
#include "ops/int4_quantize/int4_quantize_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<Int4QuantizeCudaKernel> kKernels[] = {
#include "ops/int4_quantize/kernels_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op("int4_quantize", kKernels);

std::tuple<Tensor, Tensor, Tensor> quantize(const char* op, const Tensor& w, int64_t bits, int64_t group_size,
                                            const std::string& mapping, std::optional<ScalarType> scale_dtype) {
  const OnDevice device(w, op);
  return int4_quantize_entry(op, w, bits, group_size, mapping, scale_dtype, [&](const Int4Quantize& args) {
    select(kKernels, device.capability)(args, device.stream);
    device.check_launch();
  });
}

std::tuple<Tensor, Tensor, Tensor> int4_quantize_cuda(const Tensor& w, int64_t group_size, const std::string& mapping,
                                                      std::optional<ScalarType> scale_dtype) {
  return quantize("int4_quantize", w, 4, group_size, mapping, scale_dtype);
}
std::tuple<Tensor, Tensor, Tensor> intx_quantize_cuda(const Tensor& w, int64_t bits, int64_t group_size,
                                                      const std::string& mapping,
                                                      std::optional<ScalarType> scale_dtype) {
  return quantize("intx_quantize", w, bits, group_size, mapping, scale_dtype);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) {
  m.impl("int4_quantize", TORCH_BOX(&aoq::int4_quantize_cuda));
  m.impl("intx_quantize", TORCH_BOX(&aoq::intx_quantize_cuda));
}
