// Many rows of x (tokens) times rows of 8-bit codes: the plan of mm/cuda/wide_plan.h.
//
//   A block multiplies 128 rows of w with 64 or 128 tokens, a stage of 64 columns after the other: 128 bytes of each
//   token and 64 of each row come to shared memory by cp.async, two or three stages ahead. Four warps share the rows,
//   two the tokens: 32 x 64 sums each of 128 tokens, of which a lane holds 64.
//   A lane's share of a row is sixteen bytes in a line, of a token 32: eight lanes, which read at a time, take two
//   rows, and the sixteens of every other token are swapped in pairs, so that no two share banks.
//
//        token 0   0 1 2 3 4 5 6 7      sixteens of a row as they lie in memory; lane c of those that
//        token 1   1 0 3 2 5 4 7 6      read the token takes 2c, then 2c + 1
//
//   Blocks that share rows along k add up through memory, in order.
//
// Bound by the tensor cores: a warp's 64 multiplications of a stage of 128 tokens (512 cycles of an sm_80's) take 20
// loads from shared memory and about 130 other instructions, decoding.
#pragma once
#include "mm/cuda/weight_mm.cuh"
#include "mm/cuda/weight_mm.h"
#include "mm/cuda/wide.cuh"

namespace aoq::weight_wide {
namespace {

struct Args {
  PackedMm p;  // x: rows of whole, aligned sixteen bytes
  int split;
  uint32_t row_blocks, token_blocks;
  float* partial;  // [split][m][n], added up by `add_slabs`, or null: straight to out
};

template <class X, class Format, int kTokens>
__global__ void __launch_bounds__(kThreads, kTokens == 64 ? 2 : 1) multiply(const Args args) {
  constexpr int kColumns = 64, kStages = stages(kTokens), kStageBytes = stage_bytes(kTokens);
  constexpr int kTiles = kRows / kWarpsN / 16, kEights = kTokens * kWarpsN / kWarps / 8;  // of a warp
  constexpr int kWeights = kTokens * kXBytes;                                             // where they begin
  const PackedMm& p = args.p;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int warp_n = warp % kWarpsN, warp_m = warp / kWarpsN;
  const Place place = place_of(blockIdx.x, args.row_blocks, args.token_blocks);
  const Tokens tokens = tokens_of<true>(p, place.tokens, kTokens);
  if (!tokens.count) return;
  const int64_t first_row = place.rows * kRows, expert = tokens.expert < 0 ? 0 : tokens.expert;
  const int64_t rows = ceil_div(p.n, 16) * 16, pitch = weight::pitch_of(p);
  const int columns = static_cast<int>(p.k);
  // None of tokens that are no expert's.
  const Share units = share(tokens.expert < 0 ? 0 : ceil_div(p.k, kColumns), blockIdx.y, args.split);
  const int begin = static_cast<int>(kColumns * units.begin), end = static_cast<int>(kColumns * units.end);
  char* const shared = ptx::shared_memory();

  // ---- copies of a stage, `k` its first column: what lies beyond m and k is 0, rows beyond n are some row's
  const int sixteen = static_cast<int>(threadIdx.x % 8), x_row = static_cast<int>(threadIdx.x / 8);
  const int x_left = 2 * columns - 16 * sixteen, x_to = x_row * kXBytes + 16 * (sixteen ^ x_row % 2);
  const char* const x = static_cast<const char*>(p.x.data) + 2 * (tokens.first + x_row) * p.x.stride + 16 * sixteen;
  const int quarter = static_cast<int>(threadIdx.x % 4), w_row = static_cast<int>(threadIdx.x / 4);
  const int w_left = static_cast<int>(pitch) - 16 * quarter, w_to = kWeights + w_row * kWeightBytes + 16 * quarter;
  const uint8_t* w[2];  // of two rows
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t row = first_row + w_row + 64 * i;
    w[i] = p.w.stream + (expert * rows + (row < rows ? row : rows - 1)) * pitch + 16 * quarter;
  }
  auto copy = [&](char* stage, int k) {
    const int left = x_left - 2 * k, bytes = left <= 0 ? 0 : left < 16 ? left : 16;
#pragma unroll
    for (int i = 0; i < kTokens / 32; ++i) {
      const bool real = x_row + 32 * i < tokens.count && bytes;
      ptx::copy_async(stage + x_to + 32 * i * kXBytes, real ? x + 2 * (32 * i * p.x.stride + k) : p.x.data,
                      real ? bytes : 0);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      ptx::copy_async(stage + w_to + 64 * i * kWeightBytes, k < w_left ? w[i] + k : w[i], k < w_left ? 16 : 0);
  };

  // ---- a stage
  float sum[kTiles][kEights][4] = {};
  const int w_from = kWeights + (warp_n * kTiles * 16 + lane / 4) * kWeightBytes + 16 * (lane % 4);
  const int x_from = (warp_m * 8 * kEights + lane / 4) * kXBytes + 16 * (2 * (lane % 4) ^ lane / 4 % 2);
  auto multiply_stage = [&](const char* stage) {
    ptx::U32x4 codes[kTiles][2];
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        codes[r][half] = ptx::load_shared<4>(stage + w_from + (16 * r + 8 * half) * kWeightBytes);
    weight::multiply_64<X, Format>(sum, codes,
                                   [&](int j, int upper) { return stage + 8 * j * kXBytes + (x_from ^ 16 * upper); });
  };

  // ---- this block's columns
  char* stage = shared;  // the next to be copied, and then the next to be multiplied: the oldest
  auto copy_next = [&](int k) {
    if (k < end) copy(stage, k);
    ptx::group_copies();  // maybe none: then later groups count alike
    stage += kStageBytes;
    if (stage == shared + kStages * kStageBytes) stage = shared;
  };
#pragma unroll
  for (int ahead = 0; ahead < kStages - 1; ++ahead) copy_next(begin + ahead * kColumns);
  for (int k = begin; k < end; k += kColumns) {
    ptx::wait_for_groups<kStages - 2>();
    __syncthreads();  // all see this stage, and have used the one before, whose place the next copies take
    copy_next(k + (kStages - 1) * kColumns);
    multiply_stage(stage);
  }

  // ---- scaled, to out
#pragma unroll
  for (int r = 0; r < kTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + (warp_n * kTiles + r) * 16 + lane / 4 + 8 * half;
      const float scale = row < rows ? load_float(p.w.scales.scale, p.w.scales.dtype, expert * rows + row) : 0;
#pragma unroll
      for (int j = 0; j < kEights; ++j)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) sum[r][j][i] *= scale;
    }
  ptx::wait_for_groups<0>();
  __syncthreads();
  store_sums(p, args.partial, sum, shared, first_row, tokens);
}

template <bool kFp8>
void run(const WeightMmWide& call, CudaStream stream) {
  const PackedMm& p = call.mm;
  const Plan& plan = call.plan;
  const int planes = p.x.dtype == Dtype::f32 ? kPlanes : 1, slabs = plan.split * planes;
  const bool copies = needs_copy(p);
  const Workspace at = workspace_of(plan, {p.m, p.n, p.k, p.k, 8}, planes, copies, false);
  const PackedMm mm = copies ? copied(p, call.workspace + at.copy, copy_pitch(p.k), stream) : p;
  const Args args{.p = mm,
                  .split = plan.split,
                  .row_blocks = static_cast<uint32_t>(row_blocks(p.n)),
                  .token_blocks = static_cast<uint32_t>(token_blocks_of(mm, plan.tokens)),
                  .partial = slabs > 1 ? call.workspace : nullptr};
  const dim3 grid(args.row_blocks * args.token_blocks, static_cast<unsigned>(plan.split));
  const Launch how{grid, kThreads, shared_bytes(plan.tokens), stream, 0};
  weight::with_types<kFp8>(mm, [&](auto x, auto format) {
    using X = decltype(x);
    using Format = decltype(format);
    launch(plan.tokens == 64 ? multiply<X, Format, 64> : multiply<X, Format, 128>, how, args);
  });
  if (args.partial) add(p, args.partial, slabs, stream);
}

}  // namespace
}  // namespace aoq::weight_wide
