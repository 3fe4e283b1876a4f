// Rows of floats to 8-bit codes, as the kernels of every *_quantize op with 8-bit codes see them. A row v of k floats
// comes from one of three places, is never rounded before it is quantized, and gets codes of one of three kinds.
//
//   given     v = x
//   rmsnorm   h = x + residual, rounded to x's dtype and written to residual_out (or h = x);
//             v = h / sqrt(mean of h^2 + eps) * weight
//   silu_mul  v = x / (1 + exp(-x)) * up
//
//   int8         formats/int8_code.h says how
//   e4m3, e5m2   scale = max(clamp(absmax, lb, ub), 1e-12) / the largest code;  code = clamp(v / scale), half to even
#pragma once
#include <cstdint>

#include "base/dtype.h"
#include "cuda/cuda.h"

namespace aoq {

enum class Codes : int8_t { int8, e4m3, e5m2 };
enum class RowSource : int8_t { given, rmsnorm, silu_mul };

struct QuantizeRows {
  int64_t m, k;

  RowSource source;
  const void* x;  // [m][k], rows x_stride elements apart
  Dtype x_dtype;
  int64_t x_stride;
  const void* other;  // residual or up, like x, rows other_stride apart; residual may be null
  int64_t other_stride;
  const void* weight;  // [k], of rmsnorm
  Dtype weight_dtype;
  float eps;
  void* residual_out;  // [m][k], x_dtype; written when there is a residual

  Codes codes;
  bool asymmetric;  // int8 only
  bool per_tensor;  // one scale for all rows; fp8 only
  float lb, ub;     // of absmax; fp8 only
  uint8_t*
      qdata;    // [m][k], or [m][k rounded up to 16] when permuted or padded; null: only the tensor's scale, on the CPU
  void* scale;  // [m], or [1] per tensor
  void* zero_point;   // [m]; written when asymmetric
  Dtype scale_dtype;  // of both
  bool permute;       // each 16 codes of a row in the order of quantized_k below, padded with zeros
  bool padded;        // rows are a multiple of 16 long, with zeros at the end; on CUDA
  float* group_sum;   // [m][ceil(k / sum_group)], the exact sums of codes, rounded once; or null
  int64_t sum_group;

  float* workspace;  // CUDA, per tensor: kPartialRanges floats
};

using QuantizeRowsKernel = void (*)(const QuantizeRows&);
using QuantizeRowsCudaKernel = void (*)(const QuantizeRows&, CudaStream);

namespace {  // a copy in each file: ISA files are sealed

// Position p of each sixteen permuted codes holds k = quantized_k(p): the order in which a lane of mma.m16n8k32 meets
// the int4 codes of CUDA's packed layout.
constexpr int quantized_k(int p) { return 2 * (p / 4) + p % 4 / 2 + 8 * (p % 2); }

// Sums of squares have one order on every device. Square i is added to partial sum i % kPartialSums, in order; then the
// eight partial sums of each thread of a CUDA block are folded, then its 32 threads', then its warps.
constexpr int kSumsOfThread = 8, kSumThreads = 256, kPartialSums = kSumsOfThread * kSumThreads;

constexpr int kPartialRanges = 1024;

}  // namespace
}  // namespace aoq
