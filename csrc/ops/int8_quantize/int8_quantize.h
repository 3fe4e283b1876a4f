// Each row of x to int8 codes, its scale and its zero point: formats/int8_code.h says how.
#pragma once
#include "rows/quantize_rows.h"

namespace aoq {

#define AOQ_KERNEL(isa, function) void function(const QuantizeRows&);
#include "ops/int8_quantize/kernels.inc"
#undef AOQ_KERNEL

#define AOQ_KERNEL(sm, function) void function(const QuantizeRows&, CudaStream);
#include "ops/int8_quantize/kernels_cuda.inc"
#undef AOQ_KERNEL

}  // namespace aoq
