#include "ops/rmsnorm_quantize/rmsnorm_quantize.h"

#include <torch/csrc/stable/library.h>

#include "cuda/cuda_entry.h"
#include "ops/rmsnorm_quantize/rmsnorm_quantize_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<QuantizeRowsCudaKernel> kKernels[] = {
#include "ops/rmsnorm_quantize/kernels_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op("rmsnorm_quantize", kKernels);

void run(const QuantizeRows& args, const Tensor& x) {
  const OnDevice device(x, "rmsnorm_quantize");
  select(kKernels, device.capability)(args, device.stream);
  device.check_launch();
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("rmsnorm_quantize", TORCH_BOX(&aoq::rmsnorm_quantize<&aoq::run>)); }
