// int8_int4_mm.h's formula on CUDA, of x that is quantized: the plans of int4_mm, on bytes. In PackedMm, x holds the
// codes in the order of quantized_k (rows/quantize_rows.h), rows of whole sixteens padded with zeros; x_scale and
// x_zero are theirs.
#pragma once
#include "ops/int4_mm/int4_mm_cuda.h"

namespace aoq {

#define AOQ_KERNEL(sm, function) void function(const Int4MmCuda&, CudaStream);
#include "ops/int8_int4_mm/kernels_cuda.inc"
#undef AOQ_KERNEL

#define AOQ_KERNEL(sm, function) void function(const Int4MmWide&, CudaStream);
#include "ops/int8_int4_mm/kernels_wide_cuda.inc"
#undef AOQ_KERNEL

#define AOQ_KERNEL(sm, function) void function(const Int4MmWgmma&, CudaStream);
#include "ops/int8_int4_mm/kernels_wgmma_cuda.inc"
#undef AOQ_KERNEL

}  // namespace aoq
