// Few rows of x (tokens) times rows of 8-bit codes: the plan of mm/cuda/skinny_plan.h.
//
//   Weights go from memory to registers, kAhead steps of 64 columns ahead of use and past L1; x, by cp.async, to shared
//   memory, as many columns at a time as fit. Warps, and blocks, that share rows along k add up through shared memory
//   and memory, in one order.
//
// Bound by reading weights up to about 16 tokens: 1.5 integer operations a weight and half a multiply-add decode it.
#pragma once
#include "mm/cuda/skinny.cuh"
#include "mm/cuda/weight_mm.cuh"
#include "mm/cuda/weight_mm.h"

namespace aoq::weight_skinny {
namespace {

struct Args {
  PackedMm p;
  Plan plan;
  float* partial;  // [split][m][n], added up by `add_slabs`, or null: straight to out
};

template <class X, class Format, int kTokens>
__global__ void __launch_bounds__(kThreads, 2) multiply(const Args args) {
  constexpr int kTiles = row_tiles(kTokens), kEights = kTokens / 8;
  static_assert(kAhead == 2, "what a warp has of a pass is whole pairs of steps");
  const PackedMm& p = args.p;
  const Plan& plan = args.plan;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int log_warps_n = 3 - plan.log_warps_k;
  const int warp_n = warp & ((1 << log_warps_n) - 1), warp_k = warp >> log_warps_n;
  const uint32_t rank = blockIdx.x & (plan.split() - 1);
  const int64_t first_tile = (static_cast<int64_t>(blockIdx.x >> plan.log_split) << log_warps_n) + warp_n;
  const int64_t tiles_n = ceil_div(p.n, 16), row_tile = first_tile * kTiles, pitch = weight::pitch_of(p);
  const Tokens tokens = tokens_of<true>(p, token_block(), kTokens);
  if (!tokens.count) return;
  const int64_t expert_tiles = tokens.expert < 0 ? 0 : tokens.expert * tiles_n;  // those of the experts before

  // ---- weights: [a row, that 8 below]
  const uint64_t policy = ptx::evict_first();
  const uint8_t* rows[kTiles];
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
    const int64_t tile = row_tile + r < tiles_n ? row_tile + r : tiles_n - 1;  // beyond n: read, never stored
    rows[r] = p.w.stream + (16 * (expert_tiles + tile) + lane / 4) * pitch + 16 * (lane % 4);
  }
  ptx::U32x4 weights[kAhead][kTiles][2];
  auto load = [&](int stage, int step) {
    // Beyond k x is 0: any codes do.
    const int column = 64 * step + 16 * (lane % 4) < static_cast<int>(pitch) ? 64 * step : -16 * (lane % 4);
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        weights[stage][r][half] = ptx::load_stream<4>(rows[r] + 8 * half * pitch + column, policy);
  };

  // ---- x in shared memory
  char* const shared = ptx::shared_memory();
  const int row_bytes = static_cast<int>(x_pitch(plan.chunk, 2));
  const char* fragments[kEights];
#pragma unroll
  for (int j = 0; j < kEights; ++j) {
    const int token = 8 * j + lane / 4;  // beyond m: some row, whose column is never stored
    fragments[j] = shared + (token < tokens.count ? token : tokens.count - 1) * row_bytes + 32 * (lane % 4);
  }

  // ---- this block's columns, as much of them at a time as x fits; a pass loads the first weights of the next
  struct Pass {
    int first, last;  // in units of 128 columns, of the block
    int begin, end;   // in steps of 64, of the warp
  };
  constexpr int kNone = 1 << 24;                                     // a step beyond every k
  const int64_t units = tokens.expert < 0 ? 0 : ceil_div(p.k, 128);  // none of tokens that are no expert's
  const Share all = share({0, units}, rank, plan.log_split);
  auto pass_from = [&](int64_t first) {
    const int64_t wanted = first + plan.chunk / 128, last = wanted < all.end ? wanted : all.end;
    const Share mine = share({first, last}, warp_k, plan.log_warps_k);
    const bool works = mine.begin < mine.end && row_tile < tiles_n;
    return Pass{static_cast<int>(first), static_cast<int>(last), works ? static_cast<int>(2 * mine.begin) : kNone,
                works ? static_cast<int>(2 * mine.end) : kNone};
  };
  float sum[kTiles][kEights][4] = {};
  Pass pass = pass_from(all.begin);
#pragma unroll
  for (int stage = 0; stage < kAhead; ++stage) load(stage, pass.begin + stage);
  while (pass.first < pass.last) {
    copy_x<2>(p, tokens.first, tokens.count, int64_t{128} * pass.first, int64_t{128} * pass.last, shared, row_bytes);
    ptx::wait_for_copies();
    __syncthreads();
    const Pass next = pass_from(pass.last);
    // Unsigned: of kNone it is 2^31 and more, which no step uses.
    uint32_t offset = 2u * 64 * static_cast<uint32_t>(pass.begin - 2 * pass.first);
    for (int step = pass.begin; step < pass.end; step += kAhead) {
      const int ahead = step + kAhead < pass.end ? step + kAhead : next.begin;
#pragma unroll
      for (int stage = 0; stage < kAhead; ++stage, offset += 2 * 64) {
        weight::multiply_64<X, Format>(sum, weights[stage],
                                       [&](int j, int upper) { return fragments[j] + offset + 16 * upper; });
        if (ahead < kNone) load(stage, ahead + stage);
      }
    }
    pass = next;
    __syncthreads();  // all have used these columns of x
  }
  add_up<kTokens, false, true>(p, plan, args.partial, sum, shared, first_tile, tokens);
}

template <class X, class Format>
void run(const Args& args, CudaStream stream) {
  const int tokens = args.plan.tokens;
  const Launch how{grid_of(args.p, args.plan), kThreads, shared_bytes(args.plan, args.p.m, 2), stream, 0};
  switch (tokens) {
    case 8: return launch(multiply<X, Format, 8>, how, args);
    case 16: return launch(multiply<X, Format, 16>, how, args);
    default: return launch(multiply<X, Format, 32>, how, args);
  }
}

template <bool kFp8>
void run(const WeightMmSkinny& call, CudaStream stream) {
  const PackedMm& p = call.mm;
  const bool f32 = p.x.dtype == Dtype::f32;
  const int slabs = slabs_of(call.plan, false, f32);
  Args args{p, call.plan, slabs > 1 ? call.workspace : nullptr};
  if (f32) args.p = copied(p, call.workspace + ceil_div(slabs * p.m * p.n, 4) * 4, p.k, stream);
  weight::with_types<kFp8>(args.p, [&](auto x, auto format) { run<decltype(x), decltype(format)>(args, stream); });
  if (args.partial) add(p, args.partial, slabs, stream);
}

}  // namespace
}  // namespace aoq::weight_skinny
