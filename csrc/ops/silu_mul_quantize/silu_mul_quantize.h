// Each row of silu(gate) * up to 8-bit codes: rows/quantize_rows.h.
#pragma once
#include "rows/quantize_rows.h"

namespace aoq {

#define AOQ_KERNEL(isa, function) void function(const QuantizeRows&);
#include "ops/silu_mul_quantize/kernels.inc"
#undef AOQ_KERNEL

#define AOQ_KERNEL(sm, function) void function(const QuantizeRows&, CudaStream);
#include "ops/silu_mul_quantize/kernels_cuda.inc"
#undef AOQ_KERNEL

}  // namespace aoq
