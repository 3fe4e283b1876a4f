// The operands of a matmul with a packed weight, as kernels see them: what is multiplied, X, with what, W, and what
// becomes of the sums of products, Out. A field means the same on the CPU and on CUDA; the ops' files say what each op
// computes from them.
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
  struct X {
    const void* data;  // [m][k], rows `stride` elements apart: floats, or the int8 codes that a kernel before made
    Dtype dtype;       // of the floats
    int64_t stride;
    const Fp8Rows* fp8;  // or null; if not, read in place of data: rows are what the fp8 codes stand for, in bf16
    bool asymmetric;     // where floats become int8: around a zero point for each row, else around 0
  };

  // (code - zero_point) * scale is a weight.
  struct Scales {
    const void* scale;       // [ceil(n/16)][ceil(k/group)][16]
    const void* zero_point;  // like scale, or null: the middle code
    Dtype dtype;
  };

  struct W {
    const uint8_t* stream;  // the codes in units: [ceil(n/16)][units of k][bytes of a unit]
    Scales scales;
    const float* sum;  // [n], of each row of w; read where x has zero points
    bool e5m2;         // of fp8 codes: e5m2, else e4m3. Read by kernels that are for both
  };

  // out[m, n] = (sum of products - row_zero[m] * w.sum[n]) * row_scale[m] + bias[n], of an x that came to the kernel
  // quantized. Where the kernel quantizes x itself, it knows rows' scales and zero points, and these are null.
  struct Out {
    void* data;  // [m][n], contiguous
    Dtype dtype;
    const void* bias;  // [n] or null
    Dtype bias_dtype;
    const float* row_scale;    // of row m: row_scale[m * row_scale_stride]; or null: 1
    int64_t row_scale_stride;  // 0: all rows have one scale
    const float* row_zero;     // [m] or null: 0
  };

  int64_t m, n, k, group;
  X x;
  W w;
  Out out;

  // On CUDA, where rows of x belong to experts (mm/cuda/experts.h): w's parts and out.bias have one more dimension, of
  // experts, in front.
  const ExpertTile* expert_tiles;  // [expert_tile_count]: the rows that each block takes; or null: there is one weight
  int64_t expert_tile_count;
  const int32_t* expert_ends;  // [experts]: where the rows of each end
  int64_t experts;
};

}  // namespace aoq
