// The product of two matrices of 8-bit codes on CUDA, scaled: what the kernels of int8_mm and fp8_mm see, and where an
// output's value comes from.
//
//   out[m, n] = x_scale[m] * (scale[n] * (sum over k of x[m, k] * w[n, k]) - x_zero[m] * w_sum[n]) + bias[n]
#pragma once
#include "base/dtype.h"
#include "cuda/cuda.h"

namespace aoq {

struct DenseMm {
  int64_t m, n, k;   // k: a multiple of 16, codes beyond x's are 0
  const uint8_t* x;  // [m][k]
  const uint8_t* w;  // [n][k]

  const float* x_scale;  // of row m: x_scale[m * x_scale_stride]
  int64_t x_scale_stride;
  const float* x_zero;  // [m], or null: 0
  const void* scale;    // [n]
  Dtype scale_dtype;
  const float* w_sum;  // [n]; read where there is x_zero
  const void* bias;    // [n], or null: 0
  Dtype bias_dtype;

  void* out;  // [m][n]
  Dtype out_dtype;

  void* workspace;  // dense::workspace_bytes of the kernel's tile

  int multiprocessors;  // of the device
};

using DenseMmKernel = void (*)(const DenseMm&, CudaStream);

namespace {

struct RowTerms {
  float scale, zero;
};
struct alignas(16) ColumnTerms {
  float scale, sum, bias;
};

AOQ_DEVICE inline RowTerms row_terms(const DenseMm& p, int64_t m) {
  if (m >= p.m) return {0, 0};
  return {p.x_scale[m * p.x_scale_stride], p.x_zero ? p.x_zero[m] : 0};
}

AOQ_DEVICE inline ColumnTerms column_terms(const DenseMm& p, int64_t n) {
  if (n >= p.n) return {0, 0, 0};
  return {load_float(p.scale, p.scale_dtype, n), p.x_zero ? p.w_sum[n] : 0,
          p.bias ? load_float(p.bias, p.bias_dtype, n) : 0};
}

AOQ_DEVICE inline float finish(float product, RowTerms row, ColumnTerms column) {
  return row.scale * (column.scale * product - row.zero * column.sum) + column.bias;
}

}  // namespace
}  // namespace aoq
