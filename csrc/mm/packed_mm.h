// The operands of a matmul with a packed weight, as kernels see them; the ops' headers say what each computes from
// them.
#pragma once
#include "base/dtype.h"
#include "formats/packed.h"

namespace aoq {

// x that becomes fp8 on the way: rows/quantize_rows.h says how.
struct Fp8Rows {
  const void* x;  // [m][k], rows `stride` elements apart
  Dtype dtype;
  int64_t stride;
  bool e5m2;                  // else e4m3
  float lb, ub;               // of the absmax that makes a scale
  const float* tensor_scale;  // or null: rows have their own
  float* scale;               // [m], written where they do
};

struct ExpertTile;

struct PackedMm {
  int64_t m, n, k, group;
  const void* x;  // [m][k], rows x_stride elements apart
  Dtype x_dtype;
  int64_t x_stride;
  const Fp8Rows* x_fp8;    // on the CPU: x is what the fp8 codes of these rows stand for, in bf16; or null
  const uint8_t* packed;   // [ceil(n/16)][units of k][64]
  const void* scale;       // [ceil(n/16)][ceil(k/group)][16]
  const void* zero_point;  // like scale, or null: the middle code
  Dtype scale_dtype;
  const void* bias;  // [n] or null
  Dtype bias_dtype;
  void* out;  // [m][n], contiguous
  Dtype out_dtype;

  // Where x is quantized to int8:
  bool x_asymmetric;
  const float* w_sum;  // [n], the sum of each row of w; read when x is asymmetric
  // On CUDA x holds the codes, and x_scale below and x_zero what they are to be multiplied with and less by.
  const float* x_zero;  // [m]; read when x is asymmetric

  // Where weights are fp8:
  bool w_e5m2;           // e5m2, else e4m3
  const float* x_scale;  // what rows of out are multiplied with, row r with x_scale[r * x_scale_stride]; or null
  int64_t x_scale_stride;

  // On CUDA, where rows of x belong to experts (mm/cuda/experts.h): packed, scale, zero_point, w_sum and bias have one
  // more dimension, of experts, in front.
  const ExpertTile* expert_tiles;  // [expert_tile_count]: the rows that each block takes; or null: there is one weight
  int64_t expert_tile_count;
  const int32_t* expert_ends;  // [experts]: where the rows of each end
  int64_t experts;
};

}  // namespace aoq
