// Each row of x to int8 codes, its scale and its zero point: core/quantize_row.h says how.
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace aoq {

struct Int8Quantize {
  int64_t m, k;
  bool asymmetric;
  const void* x;  // [m][k], rows x_stride elements apart
  Dtype x_dtype;
  int64_t x_stride;
  int8_t* qdata;      // [m][k]
  void* scale;        // [m]
  void* zero_point;   // [m]; not written when symmetric
  Dtype scale_dtype;  // of both
};

using Int8QuantizeKernel = void (*)(const Int8Quantize&);

#define AOQ_KERNEL(isa, function) void function(const Int8Quantize&);
#include "int8_quantize/kernels.inc"
#undef AOQ_KERNEL

}  // namespace aoq
