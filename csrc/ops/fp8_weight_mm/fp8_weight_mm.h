// out[m, n] = (sum over k of x[m, k] * w[n, k]) * x_scale[m] + bias[n],   w[n, k] = code[n, k] * scale[n]
//
// codes are e4m3fn or e5m2, tiled like int8. x is used as given (bf16, fp16 or fp32): every product of bf16 and fp8 is
// exact in fp32, sums are fp32 and are scaled once. fp8_mm runs the same kernels, on codes of x in bf16 and x's scales.
#pragma once
#include "mm/packed_mm.h"

namespace aoq {

using Fp8WeightMmKernel = void (*)(const PackedMm&);

#define AOQ_KERNEL(isa, function) void function(const PackedMm&);
#include "ops/fp8_weight_mm/kernels.inc"
#undef AOQ_KERNEL

}  // namespace aoq
