#include "ops/fp8_quantize/fp8_quantize.h"

#include <torch/csrc/stable/library.h>

#include "cuda/cuda_entry.h"
#include "ops/fp8_quantize/fp8_quantize_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<QuantizeRowsCudaKernel> kKernels[] = {
#include "ops/fp8_quantize/kernels_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op("fp8_quantize", kKernels);

void run(const QuantizeRows& args, const Tensor& x) {
  const OnDevice device(x, "fp8_quantize");
  select(kKernels, device.capability)(args, device.stream);
  device.check_launch();
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("fp8_quantize", TORCH_BOX(&aoq::fp8_quantize<&aoq::run>)); }
