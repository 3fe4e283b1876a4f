// out[m, n] = (sum over k of x_code[m, k] * w_code[n, k]) * x_scale[m] * scale[n] + bias[n]
//
// x is quantized to e4m3fn or e5m2 first, with a scale per row or one of all (rows/quantize_rows.h says how). Its codes
// are exact in bf16, so what multiplies them is fp8_weight_mm.
#pragma once
#include "ops/fp8_weight_mm/fp8_weight_mm.h"
#include "rows/quantize_rows.h"

namespace aoq {

#define AOQ_KERNEL(isa, function) void function(const QuantizeRows&);
#include "ops/fp8_quantize/kernels.inc"
#undef AOQ_KERNEL

}  // namespace aoq
