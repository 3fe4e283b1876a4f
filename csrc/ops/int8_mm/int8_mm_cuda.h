// int8_mm.h's formula on CUDA; packed holds rows, as int8_pack makes them there.
#pragma once
#include "mm/cuda/dense_mm.h"

namespace aoq {

#define AOQ_CUTLASS_KERNEL(sm, function) void function(const DenseMm&, CudaStream);
#include "ops/int8_mm/kernels_cuda.inc"
#undef AOQ_CUTLASS_KERNEL

}  // namespace aoq
