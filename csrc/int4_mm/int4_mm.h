// out[m, n] = sum over k of x[m, k] * w[n, k] + bias[n],   w[n, k] = (code[n, k] - zero_point[n, k / group]) * scale[n,
// k / group]
//
// x is used as given (bf16, fp16 or fp32), products are exact or fp32, sums are fp32, out has x's dtype.
// The zero point stays out of the inner loop: with codes taken as (code - 8) its share is a rank-(k / group) update,
//   out[m, n] += sum over groups g of (sum of x[m, k] over g) * (8 - zero_point[n, g]) * scale[n, g].
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace aoq {

struct Int4Mm {
  int64_t m, n, k, group;
  const void* x;  // [m][k], rows x_stride elements apart
  Dtype x_dtype;
  int64_t x_stride;
  const uint8_t* packed;   // [ceil(n/16)][ceil(k/8)][64], core/int4.h
  const void* scale;       // [ceil(n/16)][ceil(k/group)][16]
  const void* zero_point;  // like scale, or null: 8
  Dtype scale_dtype;
  const void* bias;  // [n] or null
  Dtype bias_dtype;
  void* out;  // [m][n], contiguous, x_dtype
};

using Int4MmKernel = void (*)(const Int4Mm&);

#define AOQ_KERNEL(isa, function) void function(const Int4Mm&);
#include "int4_mm/kernels.inc"
#undef AOQ_KERNEL

}  // namespace aoq
