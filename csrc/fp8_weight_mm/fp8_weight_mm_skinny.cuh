// Rows of x (tokens) times fp8 weights, on mma.sync: weights are A, so that 8 tokens are a fragment's columns. The plan
// of int4_mm's few rows (int4_mm/int4_mm_plan.h), on rows of bytes.
//
//   A lane's share of sixteen rows and 64 columns is sixteen bytes of row g = lane / 4 and of row g + 8, from column
//   16 (lane % 4): four of them in turn are its share of A, and the same four columns of x its share of B. The order of
//   columns within a sum is free, so weights go from memory to registers and x is two loads from shared memory.
//   Codes become 16-bit floats exactly: sign and magnitude shifted into place, then times a power of two, which also
//   gives subnormal codes their values. A row's sum is scaled once. Codes are finite.
//   Warps, and blocks, that share rows along k add up through shared memory and memory, in one order.
#pragma once
#include "core/packed_mm.cuh"
#include "int4_mm/int4_mm_plan.h"

namespace aoq::fp8_skinny {
namespace {

using int4_skinny::kThreads;
using int4_skinny::kWarps;
using int4_skinny::Plan;
using int4_skinny::row_tiles;

// Where a code, in the upper byte of each half, has its exponent and mantissa in X, and what is left to multiply with.
template <class X, bool kE5m2>
struct Decode;
template <>
struct Decode<ptx::Bf16, false> {
  static constexpr int kShift = 4;
  static constexpr uint32_t kMask = 0x07f007f0, kFactor = 0x7b807b80;  // 2^120
};
template <>
struct Decode<ptx::Bf16, true> {
  static constexpr int kShift = 3;
  static constexpr uint32_t kMask = 0x0fe00fe0, kFactor = 0x77807780;  // 2^112
};
template <>
struct Decode<ptx::F16, false> {
  static constexpr int kShift = 1;
  static constexpr uint32_t kMask = 0x3f803f80, kFactor = 0x5c005c00;  // 2^8
};
template <>
struct Decode<ptx::F16, true> {
  static constexpr int kShift = 0;
  static constexpr uint32_t kMask = 0x7f007f00, kFactor = 0x3c003c00;  // 1
};

// Codes 2 `pair`, + 1 of a word.
template <class X, bool kE5m2>
__device__ inline uint32_t decode(uint32_t word, int pair) {
  using D = Decode<X, kE5m2>;
  const uint32_t codes = ptx::bytes_of(word, 0, pair ? 0x3424 : 0x1404);
  const uint32_t magnitude = codes >> D::kShift & D::kMask;
  return ptx::fma_pair(X{}, ptx::and_or(codes, 0x80008000, magnitude), D::kFactor, 0x80008000);
}

struct Args {
  PackedMm p;
  Plan plan;
  float* partial;  // [split][m][n], added up by `add_slabs`, or null: straight to out
};

template <class X, bool kE5m2, int kTokens>
__global__ void __launch_bounds__(kThreads) multiply(const Args args) {
  constexpr int kTiles = row_tiles(kTokens), kAhead = 2, kEights = kTokens / 8;
  const PackedMm& p = args.p;
  const Plan& plan = args.plan;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int log_warps_n = 3 - plan.log_warps_k;
  const int warp_n = warp & ((1 << log_warps_n) - 1), warp_k = warp >> log_warps_n;
  const uint32_t rank = blockIdx.x & (plan.split() - 1);
  const int64_t first_tile = (static_cast<int64_t>(blockIdx.x >> plan.log_split) << log_warps_n) + warp_n;
  const int64_t tiles_n = ceil_div(p.n, 16), row_tile = first_tile * kTiles, pitch = ceil_div(p.k, 16) * 16;
  const int64_t first_token = (static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * kTokens;
  if (first_token >= p.m) return;
  const int tokens = static_cast<int>(p.m - first_token < kTokens ? p.m - first_token : kTokens);

  // ---- weights: [a row, that 8 below]
  const uint64_t policy = ptx::evict_first();
  const uint8_t* rows[kTiles];
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
    const int64_t tile = row_tile + r < tiles_n ? row_tile + r : tiles_n - 1;  // beyond n: read, never stored
    rows[r] = p.packed + (16 * tile + lane / 4) * pitch + 16 * (lane % 4);
  }
  ptx::U32x4 weights[kAhead][kTiles][2];
  auto load = [&](int stage, int64_t step) {
    const bool real = 64 * step + 16 * (lane % 4) < pitch;
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        weights[stage][r][half] =
            real ? ptx::load_stream(rows[r] + 8 * half * pitch + 64 * step, policy) : ptx::U32x4{};
  };

  // ---- x in shared memory
  char* const shared = ptx::shared_memory();
  const int64_t x_pitch = int4_skinny::x_pitch(plan.chunk, 2);
  const char* const x = static_cast<const char*>(p.x) + first_token * p.x_stride * 2;
  const bool aligned = p.x_stride % 8 == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
  auto copy_x = [&](int64_t first, int64_t last) {  // columns, zeros from k on
    for (int token = warp; token < tokens; token += kWarps)
      for (int64_t k = first + 8 * lane; k < last; k += 8 * 32) {
        char* const to = shared + token * x_pitch + 2 * (k - first);
        const char* const from = x + 2 * (token * p.x_stride + k);
        const int64_t left = p.k - k < 0 ? 0 : p.k - k < 8 ? p.k - k : 8;
        if (aligned)
          ptx::copy_async(to, left ? from : x, static_cast<int>(2 * left));
        else
          for (int i = 0; i < 8; ++i)
            reinterpret_cast<uint16_t*>(to)[i] = i < left ? reinterpret_cast<const uint16_t*>(from)[i] : uint16_t{0};
      }
  };
  const char* fragments[kEights];
#pragma unroll
  for (int j = 0; j < kEights; ++j) {
    const int token = 8 * j + lane / 4;  // beyond m: some row, whose column is never stored
    fragments[j] = shared + (token < tokens ? token : tokens - 1) * x_pitch + 32 * (lane % 4);
  }

  // ---- 64 columns
  float sum[kTiles][kEights][4] = {};
  auto multiply_step = [&](const ptx::U32x4(&codes)[kTiles][2], int64_t offset) {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      ptx::U32x4 b[kEights];
#pragma unroll
      for (int j = 0; j < kEights; ++j) b[j] = ptx::load_shared(fragments[j] + offset + 16 * upper);
#pragma unroll
      for (int quad = 0; quad < 2; ++quad)
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
          uint32_t a[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) a[i] = decode<X, kE5m2>(codes[r][i % 2].word[2 * upper + quad], i / 2);
#pragma unroll
          for (int j = 0; j < kEights; ++j)
            ptx::multiply_k16(X{}, sum[r][j], a, b[j].word[2 * quad], b[j].word[2 * quad + 1]);
        }
    }
  };

  // ---- this block's columns, as much of them at a time as x fits
  const Share all = int4_skinny::share({0, ceil_div(p.k, 128)}, rank, plan.log_split);
  for (int64_t begin = all.begin; begin < all.end; begin += plan.chunk / 128) {
    const Share pass = {begin, begin + plan.chunk / 128 < all.end ? begin + plan.chunk / 128 : all.end};
    const Share mine = int4_skinny::share(pass, warp_k, plan.log_warps_k);
    const int64_t first = 2 * mine.begin, last = row_tile < tiles_n ? 2 * mine.end : first;
#pragma unroll
    for (int stage = 0; stage < kAhead; ++stage)
      if (first + stage < last) load(stage, first + stage);
    if (begin != all.begin) __syncthreads();  // all have used the columns before these
    copy_x(128 * pass.begin, 128 * pass.end);
    ptx::wait_for_copies();
    __syncthreads();
    for (int64_t step = first; step < last; step += kAhead) {
#pragma unroll
      for (int stage = 0; stage < kAhead; ++stage) {
        multiply_step(weights[stage], 2 * (64 * (step + stage) - 128 * pass.begin));
        if (step + stage + kAhead < last) load(stage, step + stage + kAhead);
      }
    }
  }

  // ---- add up, in one order, and store
  __syncthreads();  // x's memory is free
  constexpr int kPitch = int4_skinny::sum_pitch(kTokens), kWarpSums = kTokens * kPitch;
  float* const sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int r = 0; r < kTiles; ++r)
#pragma unroll
    for (int j = 0; j < kEights; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * j + 2 * (lane % 4) + i % 2, row = 16 * r + lane / 4 + 8 * (i / 2);
        sums[warp * kWarpSums + token * kPitch + row] = sum[r][j][i];
      }
  __syncthreads();
  constexpr int kRows = 16 * kTiles;  // of a warp
  const int block_n = kRows << log_warps_n;
  const int64_t first_row = (first_tile - warp_n) * kRows;
  for (int index = static_cast<int>(threadIdx.x); index < tokens * block_n; index += kThreads) {
    const int token = index / block_n, in_block = index % block_n;
    const int64_t row = first_row + in_block, m = first_token + token;
    if (row >= p.n) continue;
    const float* const at = sums + in_block / kRows * kWarpSums + token * kPitch + in_block % kRows;
    float value = 0;
    for (int k = 0; k < plan.warps_k(); ++k) value += at[(k << log_warps_n) * kWarpSums];
    value *= load_float(p.scale, p.scale_dtype, row);
    if (args.partial)
      args.partial[(rank * p.m + m) * p.n + row] = value;
    else
      store_float(p.out, p.out_dtype, m * p.n + row, finished(p, m, row, value));
  }
}

template <class X, bool kE5m2>
void run(const Args& args, CudaStream stream) {
  const int tokens = args.plan.tokens;
  const int64_t token_blocks = ceil_div(args.p.m, tokens), y = token_blocks < 65535 ? token_blocks : 65535;
  const dim3 grid(static_cast<unsigned>(int4_skinny::row_blocks(args.plan, args.p.n) * args.plan.split()),
                  static_cast<unsigned>(y), static_cast<unsigned>(ceil_div(token_blocks, y)));
  const Launch how{grid, kThreads, int4_skinny::shared_bytes(args.plan, args.p.m, 2), stream, 0};
  switch (tokens) {
    case 8: return launch(multiply<X, kE5m2, 8>, how, args);
    case 16: return launch(multiply<X, kE5m2, 16>, how, args);
    default: return launch(multiply<X, kE5m2, 32>, how, args);
  }
}

// workspace: int4_skinny::workspace_floats of them.
template <class = void>
void run(const PackedMm& p, const Plan& plan, float* workspace, CudaStream stream) {
  const bool f32 = p.x_dtype == Dtype::f32;
  const int slabs = int4_skinny::slabs_of(plan, false, f32);
  Args args{p, plan, slabs > 1 ? workspace : nullptr};
  if (f32) {
    auto* const planes = reinterpret_cast<uint16_t*>(workspace + ceil_div(slabs * p.m * p.n, 4) * 4);
    launch(copy_rows, {dim3(grid_for(p.m * p.k, kAddThreads)), kAddThreads, 0, stream, 0}, p, planes, p.k);
    args.p.x = planes;
    args.p.x_dtype = Dtype::bf16;
    args.p.x_stride = p.k;
    args.p.m = kPlanes * p.m;
  }
  if (args.p.x_dtype == Dtype::f16)
    p.w_e5m2 ? run<ptx::F16, true>(args, stream) : run<ptx::F16, false>(args, stream);
  else
    p.w_e5m2 ? run<ptx::Bf16, true>(args, stream) : run<ptx::Bf16, false>(args, stream);
  if (args.partial) add(p, workspace, slabs, stream);
}

}  // namespace
}  // namespace aoq::fp8_skinny
