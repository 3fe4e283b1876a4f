// packed = qdata in the tiled layout of formats/int4.h, or of formats/nibbles_cuda.h; codes beyond n and k are 0.
#pragma once
#include <cstdint>

#include "cuda/cuda.h"

namespace aoq {

struct Int4Pack {
  int64_t n, k;
  const uint8_t* qdata;  // [n][ceil(k/2)], low nibble = even k
  uint8_t* packed;       // [ceil(n/16)][ceil(k/8)][64]; CUDA: [ceil(n/16)][ceil(k/64)][512]
};

using Int4PackKernel = void (*)(const Int4Pack&);

#define AOQ_KERNEL(isa, function) void function(const Int4Pack&);
#include "ops/int4_pack/kernels.inc"
#undef AOQ_KERNEL

using Int4PackCudaKernel = void (*)(const Int4Pack&, CudaStream);

#define AOQ_KERNEL(sm, function) void function(const Int4Pack&, CudaStream);
#include "ops/int4_pack/kernels_cuda.inc"
#undef AOQ_KERNEL

}  // namespace aoq
