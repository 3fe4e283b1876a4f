#include <torch/csrc/stable/library.h>

#include "cuda/cuda_entry.h"
#include "formats/int4.h"
#include "formats/nibbles_cuda.h"
#include "ops/int4_unpack/int4_unpack_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<Int4UnpackCudaKernel> kKernels[] = {
#include "ops/int4_unpack/kernels_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op("int4_unpack", kKernels);

Tensor int4_unpack_cuda(const Tensor& packed, int64_t n, int64_t k) {
  const OnDevice device(packed, "int4_unpack");
  return int4_unpack_entry(packed, n, k, nibbles::kTileK, nibbles::tile_bytes(Int4::kBits),
                           [&](const Int4Unpack& args) {
                             check_aligned(args.packed, 16, "int4_unpack", "packed");
                             select(kKernels, device.capability)(args, device.stream);
                             device.check_launch();
                           });
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int4_unpack", TORCH_BOX(&aoq::int4_unpack_cuda)); }
