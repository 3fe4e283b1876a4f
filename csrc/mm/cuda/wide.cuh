// How blocks of kernels for many rows of x (mm/cuda/wide_plan.h) end.
#pragma once
#include "mm/cuda/packed_mm.cuh"
#include "mm/cuda/wide_plan.h"

namespace aoq::wide {
namespace {

// The sums of a block's fragments to out, or to slab blockIdx.y of `partial`: through its shared memory, which all
// threads have left, so that rows are stored whole.
template <int kTiles, int kEights>
__device__ void store_sums(const PackedMm& p, float* partial, const float (&total)[kTiles][kEights][4], char* shared,
                           int64_t first_row, const Tokens& tokens) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int warp_n = warp % kWarpsN, warp_m = warp / kWarpsN;
  float* const sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int r = 0; r < kTiles; ++r)
#pragma unroll
    for (int j = 0; j < kEights; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = (warp_m * kEights + j) * 8 + 2 * (lane % 4) + i % 2;
        const int row = (warp_n * kTiles + r) * 16 + lane / 4 + 8 * (i / 2);
        sums[token * kSumPitch + row] = total[r][j][i];
      }
  __syncthreads();
  const int64_t n = first_row + 4 * lane;
  const bool whole =
      p.n % 4 == 0 && reinterpret_cast<uintptr_t>(p.out.data) % 8 == 0 && (partial || p.out.dtype != Dtype::f32);
  for (int token = warp; token < tokens.count; token += kWarps) {
    const int64_t m = tokens.first + token;
    float value[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = sums[token * kSumPitch + 4 * lane + i];
    if (partial) {
      float* const slab = partial + (blockIdx.y * p.m + m) * p.n;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (!whole && n + i < p.n) slab[n + i] = value[i];
      if (whole && n < p.n)
        ptx::store_words(slab + n, ptx::U32x4{{float_to_bits(value[0]), float_to_bits(value[1]),
                                               float_to_bits(value[2]), float_to_bits(value[3])}});
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (n + i < p.n) value[i] = finished(p, m, n + i, value[i], tokens.expert);
    if (whole && n < p.n) {
      ptx::store_words(static_cast<uint16_t*>(p.out.data) + m * p.n + n, halves(value, p.out.dtype));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (n + i < p.n) store_float(p.out.data, p.out.dtype, m * p.n + n + i, value[i]);
    }
  }
}

}  // namespace
}  // namespace aoq::wide
