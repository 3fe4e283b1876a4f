// Each row of w in groups: code[n, k] = clamp(round(w / scale + zero_point), 0, most), so that w ~ (code - zero_point)
// * scale; most is 15 of four bits, 2^bits - 1 of others (intx_quantize).
//
//   symmetric   scale = absmax / (most / 2), zero_point (most + 1) / 2: 7.5 and 8
//   asymmetric  over a range that includes 0: scale = (max - min) / most, zero_point = -min / scale, a float
//   hqq         asymmetric, then the zero point is optimised by half-quadratic splitting, Lp norm with p = 0.7 (Badri &
//   Shaji
//               2023), over the full range and narrower ones
//
// scale and zero_point are rounded to their stored dtype before codes are chosen, so storing them costs nothing. A
// group of zeros gives exact zeros. Every kernel gives the same bits: same operations, same order, no fused
// multiply-add.
#pragma once
#include <cstdint>

#include "base/dtype.h"
#include "cuda/cuda.h"

namespace aoq {

enum class Int4Mapping : int8_t { symmetric, asymmetric, hqq };

struct Int4Quantize {
  int64_t n, k, group;
  int bits;  // of a code
  Int4Mapping mapping;
  const void* w;  // [n][k], rows w_stride elements apart
  Dtype w_dtype;
  int64_t w_stride;
  uint8_t* qdata;    // [n][ceil(k*bits/8)], as formats/format.h says
  void* scale;       // [n][ceil(k/group)]
  void* zero_point;  // like scale; not written when symmetric
  Dtype scale_dtype;
  int64_t* bad_row;  // CPU: -1, or a row that has a NaN or an infinity; CUDA gives the group NaN for a scale
};

using Int4QuantizeKernel = void (*)(const Int4Quantize&);

#define AOQ_KERNEL(isa, function) void function(const Int4Quantize&);
#include "ops/int4_quantize/kernels.inc"
#undef AOQ_KERNEL

using Int4QuantizeCudaKernel = void (*)(const Int4Quantize&, CudaStream);

#define AOQ_KERNEL(sm, function) void function(const Int4Quantize&, CudaStream);
#include "ops/int4_quantize/kernels_cuda.inc"
#undef AOQ_KERNEL

}  // namespace aoq
