// Each row of x, or all of x, to fp8 codes and a scale: rows/quantize_rows.h says how.
#pragma once
#include "rows/quantize_rows.h"

namespace aoq {

#define AOQ_KERNEL(isa, function) void function(const QuantizeRows&);
#include "ops/fp8_quantize/kernels.inc"
#undef AOQ_KERNEL

#define AOQ_KERNEL(sm, function) void function(const QuantizeRows&, CudaStream);
#include "ops/fp8_quantize/kernels_cuda.inc"
#undef AOQ_KERNEL

}  // namespace aoq
