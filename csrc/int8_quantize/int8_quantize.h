// Each row of x to int8 codes, its scale and its zero point: core/quantize_row.h says how.
#pragma once
#include "core/quantize_rows.h"

namespace aoq {

#define AOQ_KERNEL(isa, function) void function(const QuantizeRows&);
#include "int8_quantize/kernels.inc"
#undef AOQ_KERNEL

}  // namespace aoq
