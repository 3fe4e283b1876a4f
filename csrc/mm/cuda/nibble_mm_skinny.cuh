// Few rows of x (tokens) times weights of one to four bits a code, on mma.sync: weights are A, so that 8 tokens are a
// fragment's columns.
//
//   A warp streams its tiles of the packed weight from memory to registers, up to sixteen bytes a lane, kAhead tiles
//   ahead of use and past L1; what a lane loads is its share of A once decoded (formats/nibbles_cuda.h), so no weight
//   goes through shared memory. x does, by cp.async, and comes back as B with ldmatrix.
//   Codes minus the middle one are exact in 16 bits, their products with x exact in fp32; of an int8 x sums are whole
//   numbers. After each span of k, which lies in one group, a row's sums are multiplied with its scale. The zero
//   point's share, (kMid - zero) * scale * (sum of x), takes one multiplication more with a matrix of ones.
//   Warps, and blocks, that share rows along k add up through shared memory, that of the cluster, or memory: always in
//   the same order.
//
// Bound by reading weights up to about 32 tokens; arithmetic is 1.4 operations a weight and less than 0.4 around it.
#pragma once
#include <type_traits>

#include "mm/cuda/nibble_math.cuh"
#include "mm/cuda/nibble_mm.h"
#include "mm/cuda/packed_mm.cuh"
#include "mm/cuda/skinny.cuh"

namespace aoq::nibble_skinny {
namespace {

// Of the register of B that holds them, the columns of the eight `eight` of a multiplication.
__device__ inline uint32_t eight_mask(ptx::Bf16, int) { return ~0u; }
__device__ inline uint32_t eight_mask(ptx::F16, int) { return ~0u; }
__device__ inline uint32_t eight_mask(ptx::S8, int eight) { return eight % 2 ? 0xff00ff00 : 0x00ff00ff; }

// Of a matrix of ones, times kUnit as codes are, as far as a signed byte holds it: kShort times that is kUnit.
template <class M>
constexpr int kOne = M::kUnit > 64 ? 64 : static_cast<int>(M::kUnit);
template <class M>
constexpr float kShort = M::kUnit / kOne<M>;
template <class M>
__device__ uint32_t ones(ptx::Bf16) {
  return 0x3f803f80;
}
template <class M>
__device__ uint32_t ones(ptx::F16) {
  return 0x3c003c00;
}
template <class M>
__device__ uint32_t ones(ptx::S8) {
  return kOne<M> * 0x01010101u;
}

struct Args {
  PackedMm p;
  Plan plan;
  float* partial;  // [slab][m][n], added up by `add_slabs`, or null: straight to out
};

template <class X, class Format, int kTokens, int kSpan, bool kZero, bool kCluster>
__global__ void __launch_bounds__(kThreads, kTokens == 16 && kSpan > 8 ? 1 : 0) multiply(const Args args) {
  using M = Math<X, Format>;
  using Sum = typename M::Sum;
  using Tile = nibbles::Tile<Format::kBits>;
  constexpr int kTiles = row_tiles(kTokens), kAhead = tiles_ahead(kTokens, kSpan), kEights = kTokens / 8;
  constexpr int kBytes = M::kBytes, kTileX = nibbles::kTileK * kBytes;  // of a row of x
  // Where sums and scales fill the registers, a branch after each tile: without, the compiler moves more of a tile's
  // instructions among those of the one before than there is room for.
  constexpr bool kBranches = kTokens > 8 || (kZero && kSpan == 32);
  static_assert(kAhead % 2 == 0, "a tile's place in a span of 128 is known when it is compiled");
  const PackedMm& p = args.p;
  const Plan& plan = args.plan;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int log_warps_n = 3 - plan.log_warps_k;
  const int warp_n = warp & ((1 << log_warps_n) - 1), warp_k = warp >> log_warps_n;
  const uint32_t rank = blockIdx.x & (plan.split() - 1);
  // In tiles and units that 32 bits count: of what outlives the multiplications there are few registers.
  const uint32_t first_tile = ((blockIdx.x >> plan.log_split) << log_warps_n) + warp_n, row_tile = first_tile * kTiles;
  const uint32_t tiles_n = static_cast<uint32_t>(ceil_div(p.n, 16));
  const int tiles_k = static_cast<int>(ceil_div(p.k, 64));
  const Tokens tokens = tokens_of<!kCluster>(p, token_block(), kTokens);
  if (!tokens.count) return;
  // Experts' tiles of rows, of the packed weight and of scales, follow each other.
  const uint32_t expert_tiles = tokens.expert < 0 ? 0 : static_cast<uint32_t>(tokens.expert) * tiles_n;

  // ---- weights
  const uint64_t policy = ptx::evict_first();
  const uint8_t* rows[kTiles];
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
    const int64_t tile = row_tile + r < tiles_n ? row_tile + r : tiles_n - 1;  // beyond n: read, never stored
    rows[r] = p.packed + (expert_tiles + tile) * tiles_k * Tile::kBytes + lane * Tile::plane(0).lane_bytes();
  }
  Words<Format::kBits> weights[kAhead][kTiles] = {};
  auto load = [&](int stage, int tiles_on) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
      weights[stage][r] = load_lane<Format::kBits>(lane, [&](auto words, int from) {
        return ptx::load_stream<words, kCluster>(rows[r] + tiles_on * Tile::kBytes + from, policy);
      });
  };
  auto load_first = [&](int loads) {
#pragma unroll
    for (int stage = 0; stage < kAhead; ++stage)
      if (stage < loads) load(stage, stage);
  };
  auto fetch_first = [&](int loads) {  // the same to L2 only
    const int bytes = (loads < kAhead ? loads : kAhead) * Tile::kBytes;
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
      if (lane == r && loads > 0) ptx::fetch(rows[r] - r * Tile::plane(0).lane_bytes(), bytes, policy);
  };
  auto advance = [&](int64_t tiles) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r) rows[r] += tiles * Tile::kBytes;
  };

  // ---- scales and zero points of the span to come
  const ScaleReader reader(p.scale_dtype, lane / 4);
  const uint32_t groups = static_cast<uint32_t>(ceil_div(p.k, p.group));
  const char* scales = nullptr;  // a group's, of the first tile of rows, whose neighbours' are so many words on
  uint32_t to_tile[kTiles] = {};
  const int64_t to_zero_point = static_cast<const char*>(p.zero_point) - static_cast<const char*>(p.scale);
  uint32_t spans_left = 0, groups_left = 0;  // in that group; that and those after it
  auto start_scales_at = [&](uint32_t group) {
    const uint32_t first = row_tile < tiles_n ? row_tile : tiles_n - 1;
    scales = static_cast<const char*>(p.scale) + (int64_t{expert_tiles + first} * groups + group) * reader.group() +
             reader.offset();
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
      to_tile[r] = ((row_tile + r < tiles_n ? row_tile + r : tiles_n - 1) - first) * groups * (reader.group() / 4);
    groups_left = groups - group;
  };
  const uint32_t spans_of_group = p.group >= p.k ? 0x7fffffffu : static_cast<uint32_t>(p.group / kSpan);
  uint32_t scale_words[kTiles][2], zero_words[kTiles][2];
  auto load_scales = [&] {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const char* at = scales + int64_t{4} * to_tile[r] + half * reader.half();
        scale_words[r][half] = ptx::load_ahead<kCluster>(at);
        if constexpr (kZero) zero_words[r][half] = ptx::load_ahead<kCluster>(at + to_zero_point);
      }
  };

  auto fetch_scales = [&] {
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
      const char* at = scales + int64_t{4} * to_tile[r];
      ptx::fetch_line(at);
      if constexpr (kZero) ptx::fetch_line(at + to_zero_point);
    }
  };

  // ---- sums: of a span, and of all
  float total[kTiles][kEights][4] = {};
  Sum sum[kTiles][kEights][4], x_sum[kEights][4];
  auto start_span = [&] {
#pragma unroll
    for (int j = 0; j < kEights; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x_sum[j][i] = M::kZero;
#pragma unroll
        for (int r = 0; r < kTiles; ++r) sum[r][j][i] = M::kZero;
      }
  };
  auto end_span = [&] {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale = reader.value(scale_words[r][half]) / M::kUnit;
        const float shift = kZero ? (Format::kMid - reader.value(zero_words[r][half])) * scale * kShort<M> : 0;
#pragma unroll
        for (int j = 0; j < kEights; ++j)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            total[r][j][i] = __fmaf_rn(M::value(sum[r][j][i]), scale, total[r][j][i]);
            if constexpr (kZero) total[r][j][i] = __fmaf_rn(M::value(x_sum[j][i]), shift, total[r][j][i]);
          }
      }
    start_span();
    uint32_t bytes = 0;
    if (--spans_left == 0) {
      spans_left = spans_of_group;
      if (groups_left > 1) {  // beyond k sums are 0
        --groups_left;
        bytes = reader.group();
      }
    }
    scales += bytes;
    load_scales();
  };

  // ---- x in shared memory
  char* const shared = ptx::shared_memory();
  const int64_t pitch = x_pitch(plan.chunk, kBytes);
  // A load brings fragments of two multiplications, or of two times eight tokens: half as many registers.
  constexpr int kLoadEights = kEights == 1 ? 1 : 2;
  const char* fragments[kEights / kLoadEights];
#pragma unroll
  for (int j = 0; j < kEights / kLoadEights; ++j) {
    const int matrix = lane / 8, column = matrix % (4 / kLoadEights);
    const int token = 8 * (kLoadEights * j + matrix / (4 / kLoadEights)) + lane % 8;
    // Beyond m: some row, whose column is never stored.
    fragments[j] = shared + (token < tokens.count ? token : tokens.count - 1) * pitch + 16 * column;
  }

  // ---- a tile of k, in multiplications of 32 bytes of x
  auto multiply_tile = [&](const Words<Format::kBits>(&codes)[kTiles], int offset, bool ends_span) {
#pragma unroll
    for (int pair = 0; pair < kTileX / 64; ++pair) {
      ptx::U32x4 b[kEights / kLoadEights];
      const uint32_t one = ones<M>(X{}), all_ones[4] = {one, one, one, one};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half % (2 / kLoadEights) == 0)
#pragma unroll
          for (int j = 0; j < kEights / kLoadEights; ++j)
            b[j] = ptx::load_matrices(fragments[j] + offset + 64 * pair + 32 * half);
        auto b_of = [&](int j, int i) {
          return b[j / kLoadEights].word[kLoadEights == 1 ? 2 * half + i : 2 * (j % 2) + i];
        };
        auto with = [&](auto operand) {  // operand(j, i): b_i of the tokens 8j ..
#pragma unroll
          for (int j = 0; j < kEights; ++j)
            if constexpr (kZero) M::multiply(x_sum[j], all_ones, operand(j, 0), operand(j, 1));
#pragma unroll
          for (int r = 0; r < kTiles; ++r) {
            uint32_t a[4];
            decode<M>(codes[r], 2 * pair + half, a);
#pragma unroll
            for (int j = 0; j < kEights; ++j) M::multiply(sum[r][j], a, operand(j, 0), operand(j, 1));
          }
        };
        if constexpr (kSpan == 8) {
#pragma unroll
          for (int eight = 0; eight < 32 / kBytes / 8; ++eight) {  // of the columns, the others as zeros
            with([&](int j, int i) { return i == eight * kBytes / 2 ? b_of(j, i) & eight_mask(X{}, eight) : 0; });
            end_span();
            // Keeps the compiler from moving the next eight's instructions here, which takes more registers than there
            // are.
            if constexpr (kBytes == 1 && kZero) __syncwarp();
          }
        } else {
          with(b_of);
          if constexpr (kSpan == 32 && kBytes == 1) end_span();
        }
      }
      if constexpr (kSpan == 32 && kBytes == 2) end_span();
    }
    if constexpr (kSpan == 64) end_span();
    if constexpr (kSpan == 128)
      if (ends_span) end_span();
  };

  // ---- this block's columns, as much of them at a time as x fits
  const int64_t units = tokens.expert < 0 ? 0 : ceil_div(p.k, 128);  // none of tokens that are no expert's
  const Share all = share({0, units}, rank, plan.log_split);
  const int last = static_cast<int>(all.end), step = static_cast<int>(plan.chunk / 128);
  int begin = static_cast<int>(all.begin), next_tile = 0;  // where rows points
  bool again = false;
  start_span();
  do {
    const Share pass = {begin, begin + step < last ? begin + step : last};
    const Share mine = share(pass, warp_k, plan.log_warps_k);
    const int first = static_cast<int>(2 * mine.begin);
    const int count = row_tile < tiles_n ? static_cast<int>(2 * (mine.end - mine.begin)) : 0;  // even
    // The last tile may lie beyond k, where x is 0: then any codes do.
    const int loads = first + count <= tiles_k ? count : count - 1;
    const bool before = kCluster && !again;  // the kernel before this one may still run
    advance(first - next_tile);
    if constexpr (!kCluster)
      load_first(loads);
    else if (before)
      fetch_first(loads);
    if (count) {
      const uint32_t span = static_cast<uint32_t>(64 * int64_t{first} / kSpan), first_group = span / spans_of_group;
      start_scales_at(first_group);
      spans_left = spans_of_group - span % spans_of_group;
    }
    if constexpr (kCluster) {
      if (before) {
        if (count) fetch_scales();
        ptx::wait_for_kernel_before();
      }
      load_first(loads);
    }
    if (count) load_scales();
    if (again) __syncthreads();  // all have used the columns before these
    copy_x<kBytes>(p, tokens.first, tokens.count, 128 * pass.begin, 128 * pass.end, shared, pitch);
    ptx::wait_for_copies();
    __syncthreads();
    int offset = kBytes * (64 * first - 128 * begin);
    for (int tile = 0; tile < count; tile += kAhead, offset += kTileX * kAhead) {
#pragma unroll
      for (int stage = 0; stage < kAhead; ++stage) {
        if ((kBranches || stage % 2 == 0) && tile + stage >= count) break;
        multiply_tile(weights[stage], offset + kTileX * stage, stage % 2 == 1);
        if (tile + stage + kAhead < loads) load(stage, stage + kAhead);
      }
      advance(kAhead);
    }
    next_tile = first + (count + kAhead - 1) / kAhead * kAhead;
    again = true;
  } while ((begin += step) < last);
  if constexpr (kCluster) ptx::start_kernel_after();

  __syncthreads();  // x's memory is free
  add_up<kTokens, kCluster, false>(p, plan, args.partial, total, shared, first_tile, tokens);
}

// ---- launching

template <class X, class Format, int kTokens, int kSpan, bool kZero, bool kCluster>
void run_plan(const Args& args, CudaStream stream) {
  const auto kernel = multiply<X, Format, kTokens, kSpan, kZero, kCluster>;
  const int64_t shared = shared_bytes(args.plan, args.p.m, Math<X, Format>::kBytes);
  const unsigned cluster = kCluster ? static_cast<unsigned>(args.plan.split()) : 0;
  launch(kernel, {grid_of(args.p, args.plan), kThreads, shared, stream, cluster, kMostShared}, args);
}

template <class X, class Format, bool kZero, bool kCluster>
void run_span(const Args& args, CudaStream stream) {
  const int span = span_of(args.p.group, args.p.k);
  auto tokens = [&](auto constant) {
    constexpr int kSpan = decltype(constant)::value;
    switch (args.plan.tokens) {
      case 8: return run_plan<X, Format, 8, kSpan, kZero, kCluster>(args, stream);
      case 16: return run_plan<X, Format, 16, kSpan, kZero, kCluster>(args, stream);
      default: return run_plan<X, Format, 32, kSpan, kZero, kCluster>(args, stream);
    }
  };
  switch (span) {
    case 128: return tokens(std::integral_constant<int, 128>{});
    case 64: return tokens(std::integral_constant<int, 64>{});
    case 32: return tokens(std::integral_constant<int, 32>{});
    default: return run_plan<X, Format, 16, 8, kZero, kCluster>(args, stream);
  }
}

template <class X, class Format, bool kCluster>
void run_as(const Args& args, CudaStream stream) {
  args.p.zero_point ? run_span<X, Format, true, kCluster>(args, stream)
                    : run_span<X, Format, false, kCluster>(args, stream);
}

// x as given; blocks that share rows along k are a cluster, or not.
template <class Format, bool kCluster>
void run(const NibbleSkinny& call, CudaStream stream) {
  const PackedMm& p = call.mm;
  const bool f32 = p.x_dtype == Dtype::f32;
  const int slabs = slabs_of(call.plan, kCluster, f32);
  Args args{p, call.plan, slabs > 1 ? call.workspace : nullptr};
  if (f32) args.p = copied(p, call.workspace + ceil_div(slabs * p.m * p.n, 4) * 4, p.k, stream);
  p.x_dtype == Dtype::f16 ? run_as<ptx::F16, Format, kCluster>(args, stream)
                          : run_as<ptx::Bf16, Format, kCluster>(args, stream);
  if (args.partial) add(p, args.partial, slabs, stream);
}

// x as int8 codes.
template <class Format, bool kCluster>
void run_int8(const NibbleSkinny& call, CudaStream stream) {
  const int slabs = slabs_of(call.plan, kCluster, false);
  const Args args{call.mm, call.plan, slabs > 1 ? call.workspace : nullptr};
  run_as<ptx::S8, Format, kCluster>(args, stream);
  if (args.partial) add(call.mm, args.partial, slabs, stream);
}

// Blocks that share rows along k add up through memory: a second kernel adds their sums in order.
template <class Format>
void run_sm80(const NibbleSkinny& call, CudaStream stream) {
  run<Format, false>(call, stream);
}
template <class Format>
void run_int8_sm80(const NibbleSkinny& call, CudaStream stream) {
  run_int8<Format, false>(call, stream);
}

// They are a cluster and add up through its shared memory; the first weights are on their way to L2 before the kernel
// that computes x, or quantizes it, has ended.
template <class Format>
void run_sm90a(const NibbleSkinny& call, CudaStream stream) {
  run<Format, true>(call, stream);
}
template <class Format>
void run_int8_sm90a(const NibbleSkinny& call, CudaStream stream) {
  run_int8<Format, true>(call, stream);
}

}  // namespace
}  // namespace aoq::nibble_skinny
