// The exact inverse of int4_pack.
#pragma once
#include <cstdint>

#include "cuda/cuda.h"

namespace aoq {

struct Int4Unpack {
  int64_t n, k;
  const uint8_t* packed;  // [ceil(n/16)][ceil(k/8)][64]; CUDA: [ceil(n/16)][ceil(k/64)][512]
  uint8_t* qdata;         // [n][ceil(k/2)], low nibble = even k
};

using Int4UnpackKernel = void (*)(const Int4Unpack&);

#define AOQ_KERNEL(isa, function) void function(const Int4Unpack&);
#include "ops/int4_unpack/kernels.inc"
#undef AOQ_KERNEL

using Int4UnpackCudaKernel = void (*)(const Int4Unpack&, CudaStream);

#define AOQ_KERNEL(sm, function) void function(const Int4Unpack&, CudaStream);
#include "ops/int4_unpack/kernels_cuda.inc"
#undef AOQ_KERNEL

}  // namespace aoq
