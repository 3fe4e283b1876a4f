// int8_weight_mm.h's formula on CUDA: packed holds rows of codes, as int8_pack makes them there.
#pragma once
#include "mm/cuda/weight_mm.h"

namespace aoq {

#define AOQ_KERNEL(sm, function) void function(const WeightMmSkinny&, CudaStream);
#include "ops/int8_weight_mm/kernels_cuda.inc"
#undef AOQ_KERNEL

#define AOQ_KERNEL(sm, function) void function(const WeightMmWide&, CudaStream);
#include "ops/int8_weight_mm/kernels_wide_cuda.inc"
#undef AOQ_KERNEL

}  // namespace aoq
