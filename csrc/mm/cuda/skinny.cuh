// What kernels for few rows of x (mm/cuda/skinny_plan.h) share: x comes to shared memory, and sums become out.
#pragma once
#include "mm/cuda/packed_mm.cuh"
#include "mm/cuda/skinny_plan.h"

namespace aoq::skinny {
namespace {

// Which of the blocks along x this one is; no grid has more than 65535 in one direction.
__device__ inline int64_t token_block() { return static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y; }
inline dim3 grid_of(const PackedMm& p, const Plan& plan) {
  const int64_t blocks = token_blocks_of(p, plan.tokens), y = blocks < 65535 ? blocks : 65535;
  return dim3(static_cast<unsigned>(row_blocks(plan, p.n) * plan.split()), static_cast<unsigned>(y),
              static_cast<unsigned>(ceil_div(blocks, y)));
}

// Columns first .. last of a block's tokens to rows `pitch` bytes apart, zeros from k on; maybe by cp.async.
template <int kBytes>
__device__ void copy_x(const PackedMm& p, int64_t first_token, int tokens, int64_t first, int64_t last, char* shared,
                       int64_t pitch) {
  constexpr int kStep = 16 / kBytes;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const char* const x = static_cast<const char*>(p.x.data) + first_token * p.x.stride * kBytes;
  const bool aligned = p.x.stride * kBytes % 16 == 0 && reinterpret_cast<uintptr_t>(p.x.data) % 16 == 0;
  const bool by_warp = tokens >= kWarps;
  for (int token = by_warp ? warp : 0; token < tokens; token += by_warp ? kWarps : 1)
    for (int64_t k = first + kStep * (by_warp ? lane : static_cast<int>(threadIdx.x)); k < last;
         k += kStep * (by_warp ? 32 : kThreads)) {
      char* const to = shared + token * pitch + kBytes * (k - first);
      const char* const from = x + kBytes * (token * p.x.stride + k);
      const int64_t left = p.k - k < 0 ? 0 : p.k - k < kStep ? p.k - k : kStep;
      if (kBytes == 1 || aligned)  // bytes beyond k, among sixteen that are out of order, are 0
        ptx::copy_async(to, left ? from : x, static_cast<int>(kBytes == 1 && left ? 16 : kBytes * left));
      else
        for (int i = 0; i < 8; ++i)
          reinterpret_cast<uint16_t*>(to)[i] = i < left ? reinterpret_cast<const uint16_t*>(from)[i] : uint16_t{0};
    }
}

// Where the scale of a row is that has one alone.
__device__ inline int64_t scale_of_row(const PackedMm& p, const Tokens& tokens, int64_t row) {
  return (tokens.expert < 0 ? 0 : tokens.expert) * (ceil_div(p.n, 16) * 16) + row;
}

// The sum of what the blocks of a cluster, at most eight, have at a place of shared memory: all loads are on their way
// before the first is added, in order.
__device__ inline float sum_of_blocks(const float* from, int blocks) {
  constexpr int kMost = 8;
  float part[kMost];
#pragma unroll
  for (int block = 0; block < kMost; ++block) part[block] = block < blocks ? ptx::load_cluster(from, block) : 0;
  float sum = part[0];
#pragma unroll
  for (int block = 1; block < kMost; ++block) sum += part[block];
  return sum;
}

// The sums of all warps that share rows, and with kCluster of all its blocks, added up in one order; to out, or to a
// slab of `partial`. first_tile: the warp's, of row_tiles tiles of sixteen rows; kScaled: times the scale of a row. All
// threads have left shared memory.
template <int kTokens, bool kCluster, bool kScaled>
__device__ void add_up(const PackedMm& p, const Plan& plan, float* partial,
                       const float (&total)[row_tiles(kTokens)][kTokens / 8][4], char* shared, int64_t first_tile,
                       const Tokens& tokens) {
  constexpr int kPitch = sum_pitch(kTokens), kWarpSums = kTokens * kPitch, kRows = 16 * row_tiles(kTokens);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int log_warps_n = 3 - plan.log_warps_k, warp_n = warp & ((1 << log_warps_n) - 1);
  const uint32_t rank = blockIdx.x & (plan.split() - 1);
  float* const sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int r = 0; r < row_tiles(kTokens); ++r)
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * j + 2 * (lane % 4) + i % 2, row = 16 * r + lane / 4 + 8 * (i / 2);
        sums[warp * kWarpSums + token * kPitch + row] = total[r][j][i];
      }
  const int block_n = kRows << log_warps_n;
  const int blocks = kCluster ? plan.split() : 1;  // whose sums are added here
  const bool alone = blocks == 1;  // then barriers of a cluster, a microsecond of a call, are for nothing
  if (alone)
    __syncthreads();
  else
    ptx::cluster_barrier();
  const Share outputs = share({0, tokens.count * block_n}, kCluster ? rank : 0, kCluster ? plan.log_split : 0);
  const int64_t first_row = (first_tile - warp_n) * kRows;
  for (int index = static_cast<int>(outputs.begin + threadIdx.x); index < outputs.end; index += kThreads) {
    const int token = index / block_n, in_block = index % block_n;
    const int64_t row = first_row + in_block, m = tokens.first + token;
    if (row >= p.n) continue;
    const float* at = sums + in_block / kRows * kWarpSums + token * kPitch + in_block % kRows;
    float value = 0;
    for (int k = 0; k < plan.warps_k(); ++k) {
      const float* const from = at + (k << log_warps_n) * kWarpSums;
      value += alone ? *from : sum_of_blocks(from, blocks);
    }
    if constexpr (kScaled) value *= load_float(p.w.scales.scale, p.w.scales.dtype, scale_of_row(p, tokens, row));
    if (partial) {
      const int64_t slab = kCluster ? 0 : rank;
      partial[(slab * p.m + m) * p.n + row] = value;
    } else {
      store_float(p.out.data, p.out.dtype, m * p.n + row, finished(p, m, row, value, tokens.expert));
    }
  }
  if (!alone) ptx::end_of_cluster();  // no block ends while another reads its sums
}

}  // namespace
}  // namespace aoq::skinny
