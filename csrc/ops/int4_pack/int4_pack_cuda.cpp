#include <torch/csrc/stable/library.h>

#include "cuda/cuda_entry.h"
#include "formats/int4.h"
#include "formats/nibbles_cuda.h"
#include "ops/int4_pack/int4_pack_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<Int4PackCudaKernel> kKernels[] = {
#include "ops/int4_pack/kernels_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op("int4_pack", kKernels);

Tensor int4_pack_cuda(const Tensor& qdata, int64_t k) {
  const OnDevice device(qdata, "int4_pack");
  return int4_pack_entry(qdata, k, nibbles::kTileK, nibbles::tile_bytes(Int4::kBits), [&](const Int4Pack& args) {
    select(kKernels, device.capability)(args, device.stream);
    device.check_launch();
  });
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int4_pack", TORCH_BOX(&aoq::int4_pack_cuda)); }
