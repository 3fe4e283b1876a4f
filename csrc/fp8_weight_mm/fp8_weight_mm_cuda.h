// fp8_weight_mm.h's formula on CUDA: packed holds rows of codes, as int8_pack makes them there.
#pragma once
#include "int4_mm/int4_mm_cuda.h"

namespace aoq {

#define AOQ_KERNEL(sm, function) void function(const Int4MmCuda&, CudaStream);
#include "fp8_weight_mm/kernels_cuda.inc"
#undef AOQ_KERNEL

}  // namespace aoq
