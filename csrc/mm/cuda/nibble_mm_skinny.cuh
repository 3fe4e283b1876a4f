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

// What all of a warp's steps know: which rows of w and of x are its.
template <int kTokens, bool kCluster>
struct Work {
  static constexpr int kTiles = row_tiles(kTokens);

  const PackedMm& p;
  const Plan& plan;
  int lane, warp_k;
  uint32_t rank;
  // In tiles and units that 32 bits count: of what outlives the multiplications there are few registers.
  uint32_t first_tile, row_tile, tiles_n;
  int tiles_k;
  Tokens tokens;
  uint32_t expert_tiles;  // experts' tiles of rows, of the packed weight and of scales, follow each other: those before

  __device__ explicit Work(const Args& args)
      : p(args.p),
        plan(args.plan),
        lane(static_cast<int>(threadIdx.x % 32)),
        rank(blockIdx.x & (plan.split() - 1)),
        tiles_n(static_cast<uint32_t>(ceil_div(p.n, 16))),
        tiles_k(static_cast<int>(ceil_div(p.k, 64))) {
    const int warp = static_cast<int>(threadIdx.x / 32), log_warps_n = 3 - plan.log_warps_k;
    const int warp_n = warp & ((1 << log_warps_n) - 1);
    warp_k = warp >> log_warps_n;
    first_tile = ((blockIdx.x >> plan.log_split) << log_warps_n) + warp_n;
    row_tile = first_tile * kTiles;
    tokens = tokens_of<!kCluster>(p, token_block(), kTokens);
    expert_tiles = tokens.expert < 0 ? 0 : static_cast<uint32_t>(tokens.expert) * tiles_n;
  }

  // A warp's tile of rows; beyond n some other, which is read and never stored.
  __device__ uint32_t tile(int r) const { return row_tile + r < tiles_n ? row_tile + r : tiles_n - 1; }
};

// A warp's weights on their way to registers: kAhead tiles along k of each of its tiles of rows.
template <class Format, int kTokens, int kSpan, bool kCluster>
struct Weights {
  using Tile = nibbles::Tile<Format::kBits>;
  static constexpr int kTiles = row_tiles(kTokens), kAhead = tiles_ahead(kTokens, kSpan);

  int lane;
  uint64_t policy = ptx::evict_first();
  const uint8_t* rows[kTiles];  // from the next tile on
  Words<Format::kBits> codes[kAhead][kTiles] = {};

  __device__ explicit Weights(const Work<kTokens, kCluster>& work) : lane(work.lane) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
      rows[r] = work.p.w.stream + (int64_t{work.expert_tiles} + work.tile(r)) * work.tiles_k * Tile::kBytes +
                lane * Tile::plane(0).lane_bytes();
  }
  __device__ void load(int stage, int tiles_on) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
      codes[stage][r] = load_lane<Format::kBits>(lane, [&](auto words, int from) {
        return ptx::load_stream<words, kCluster>(rows[r] + tiles_on * Tile::kBytes + from, policy);
      });
  }
  __device__ void load_first(int loads) {
#pragma unroll
    for (int stage = 0; stage < kAhead; ++stage)
      if (stage < loads) load(stage, stage);
  }
  // The same to L2 only: a lane fetches one tile of rows'. By recursion, as of a loop the compiler would make an index
  // that is not known when it is compiled, which no register has.
  template <int kRow = 0>
  __device__ void fetch_first(int loads) {
    const int bytes = (loads < kAhead ? loads : kAhead) * Tile::kBytes;
    if (lane == kRow && loads > 0) ptx::fetch(rows[kRow] - kRow * Tile::plane(0).lane_bytes(), bytes, policy);
    if constexpr (kRow + 1 < kTiles) fetch_first<kRow + 1>(loads);
  }
  __device__ void advance(int64_t tiles) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r) rows[r] += tiles * Tile::kBytes;
  }
};

// Scales and zero points of a warp's rows, those of the span to come.
template <int kTokens, int kSpan, bool kZero, bool kCluster>
struct SpanScales {
  static constexpr int kTiles = row_tiles(kTokens);

  const Work<kTokens, kCluster>& work;
  ScaleReader reader;
  uint32_t groups, spans_of_group;
  const char* scales = nullptr;  // a group's, of the first tile of rows, whose neighbours' are so many words on
  uint32_t to_tile[kTiles] = {};
  int64_t to_zero_point;
  uint32_t spans_left = 0, groups_left = 0;  // in that group; that and those after it
  uint32_t scale_words[kTiles][2], zero_words[kTiles][2];

  __device__ explicit SpanScales(const Work<kTokens, kCluster>& work)
      : work(work),
        reader(work.p.w.scales.dtype, work.lane / 4),
        groups(static_cast<uint32_t>(ceil_div(work.p.k, work.p.group))),
        spans_of_group(work.p.group >= work.p.k ? 0x7fffffffu : static_cast<uint32_t>(work.p.group / kSpan)),
        to_zero_point(static_cast<const char*>(work.p.w.scales.zero_point) -
                      static_cast<const char*>(work.p.w.scales.scale)) {}

  // tile: along k.
  __device__ void start_at(int tile) {
    const uint32_t span = static_cast<uint32_t>(64 * int64_t{tile} / kSpan), group = span / spans_of_group;
    const uint32_t first = work.tile(0);
    scales = static_cast<const char*>(work.p.w.scales.scale) +
             (int64_t{work.expert_tiles + first} * groups + group) * reader.group() + reader.offset();
#pragma unroll
    for (int r = 0; r < kTiles; ++r) to_tile[r] = (work.tile(r) - first) * groups * (reader.group() / 4);
    groups_left = groups - group;
    spans_left = spans_of_group - span % spans_of_group;
  }
  __device__ void fetch() {  // to L2
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
      const char* at = scales + int64_t{4} * to_tile[r];
      ptx::fetch_line(at);
      if constexpr (kZero) ptx::fetch_line(at + to_zero_point);
    }
  }
  __device__ void load() {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const char* at = scales + int64_t{4} * to_tile[r] + half * reader.half();
        scale_words[r][half] = ptx::load_ahead<kCluster>(at);
        if constexpr (kZero) zero_words[r][half] = ptx::load_ahead<kCluster>(at + to_zero_point);
      }
  }
  __device__ void advance() {
    uint32_t bytes = 0;
    if (--spans_left == 0) {
      spans_left = spans_of_group;
      if (groups_left > 1) {  // beyond k sums are 0
        --groups_left;
        bytes = reader.group();
      }
    }
    scales += bytes;
    load();
  }
};

// What a warp sums up: of a span, and of all.
template <class X, class Format, int kTokens, int kSpan, bool kZero, bool kCluster>
struct Sums {
  using M = Math<X, Format>;
  using Sum = typename M::Sum;
  static constexpr int kTiles = row_tiles(kTokens), kEights = kTokens / 8, kBytes = M::kBytes;
  // A load brings fragments of two multiplications, or of two times eight tokens: half as many registers.
  static constexpr int kLoadEights = kEights == 1 ? 1 : 2;
  using B = ptx::U32x4[kEights / kLoadEights];

  SpanScales<kTokens, kSpan, kZero, kCluster> scales;
  float total[kTiles][kEights][4] = {};
  Sum sum[kTiles][kEights][4], x_sum[kEights][4];
  const char* fragments[kEights / kLoadEights];  // x in shared memory, rows `pitch` apart, as the lane reads it

  __device__ Sums(const Work<kTokens, kCluster>& work, const char* shared, int64_t pitch) : scales(work) {
    const int matrix = work.lane / 8, column = matrix % (4 / kLoadEights);
#pragma unroll
    for (int j = 0; j < kEights / kLoadEights; ++j) {
      const int token = 8 * (kLoadEights * j + matrix / (4 / kLoadEights)) + work.lane % 8;
      // Beyond m: some row, whose column is never stored.
      fragments[j] = shared + (token < work.tokens.count ? token : work.tokens.count - 1) * pitch + 16 * column;
    }
  }

  __device__ void start_span() {
#pragma unroll
    for (int j = 0; j < kEights; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x_sum[j][i] = M::kZero;
#pragma unroll
        for (int r = 0; r < kTiles; ++r) sum[r][j][i] = M::kZero;
      }
  }
  __device__ void end_span() {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale = scales.reader.value(scales.scale_words[r][half]) / M::kUnit;
        const float shift =
            kZero ? (Format::kMid - scales.reader.value(scales.zero_words[r][half])) * scale * kShort<M> : 0;
#pragma unroll
        for (int j = 0; j < kEights; ++j)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            total[r][j][i] = __fmaf_rn(M::value(sum[r][j][i]), scale, total[r][j][i]);
            if constexpr (kZero) total[r][j][i] = __fmaf_rn(M::value(x_sum[j][i]), shift, total[r][j][i]);
          }
      }
    start_span();
    scales.advance();
  }

  // Multiplication `index` of a tile, with operand(j, i): b_i of the tokens 8j ..
  template <class Operand>
  __device__ void multiply(const Words<Format::kBits> (&codes)[kTiles], int index, Operand operand) {
    const uint32_t one = ones<M>(X{}), all_ones[4] = {one, one, one, one};
#pragma unroll
    for (int j = 0; j < kEights; ++j)
      if constexpr (kZero) M::multiply(x_sum[j], all_ones, operand(j, 0), operand(j, 1));
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
      uint32_t a[4];
      decode<M>(codes[r], index, a);
#pragma unroll
      for (int j = 0; j < kEights; ++j) M::multiply(sum[r][j], a, operand(j, 0), operand(j, 1));
    }
  }

  // The same in eights of columns, each a span: the others as zeros.
  template <class Operand>
  __device__ void multiply_eights(const Words<Format::kBits> (&codes)[kTiles], int index, Operand operand) {
#pragma unroll
    for (int eight = 0; eight < 32 / kBytes / 8; ++eight) {
      multiply(codes, index,
               [&](int j, int i) { return i == eight * kBytes / 2 ? operand(j, i) & eight_mask(X{}, eight) : 0; });
      end_span();
      // Keeps the compiler from moving the next eight's instructions here, which takes more registers than there are.
      if constexpr (kBytes == 1 && kZero) __syncwarp();
    }
  }

  // A tile of k, in multiplications of 32 bytes of x; offset: of its columns in shared memory.
  __device__ void multiply_tile(const Words<Format::kBits> (&codes)[kTiles], int offset, bool ends_span) {
#pragma unroll
    for (int pair = 0; pair < nibbles::kTileK * kBytes / 64; ++pair) {
      B b;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half % (2 / kLoadEights) == 0)
#pragma unroll
          for (int j = 0; j < kEights / kLoadEights; ++j)
            b[j] = ptx::load_matrices(fragments[j] + offset + 64 * pair + 32 * half);
        auto operand = [&](int j, int i) {
          return b[j / kLoadEights].word[kLoadEights == 1 ? 2 * half + i : 2 * (j % 2) + i];
        };
        if constexpr (kSpan == 8)
          multiply_eights(codes, 2 * pair + half, operand);
        else
          multiply(codes, 2 * pair + half, operand);
        if constexpr (kSpan == 32 && kBytes == 1) end_span();
      }
      if constexpr (kSpan == 32 && kBytes == 2) end_span();
    }
    if constexpr (kSpan == 64) end_span();
    if constexpr (kSpan == 128)
      if (ends_span) end_span();
  }
};

template <class X, class Format, int kTokens, int kSpan, bool kZero, bool kCluster>
__global__ void __launch_bounds__(kThreads, kTokens == 16 && kSpan > 8 ? 1 : 0) multiply(const Args args) {
  constexpr int kAhead = tiles_ahead(kTokens, kSpan), kBytes = x_bytes(X{});
  constexpr int kTileX = nibbles::kTileK * kBytes;  // of a row of x
  // Where sums and scales fill the registers, a branch after each tile: without, the compiler moves more of a tile's
  // instructions among those of the one before than there is room for.
  constexpr bool kBranches = kTokens > 8 || (kZero && kSpan == 32);
  static_assert(kAhead % 2 == 0, "a tile's place in a span of 128 is known when it is compiled");
  const PackedMm& p = args.p;
  const Plan& plan = args.plan;
  const Work<kTokens, kCluster> work(args);
  if (!work.tokens.count) return;
  char* const shared = ptx::shared_memory();
  const int64_t pitch = x_pitch(plan.chunk, kBytes);
  Weights<Format, kTokens, kSpan, kCluster> weights(work);
  Sums<X, Format, kTokens, kSpan, kZero, kCluster> sums(work, shared, pitch);

  // This block's columns, as much of them at a time as x fits; none of tokens that are no expert's.
  const Share all = share({0, work.tokens.expert < 0 ? 0 : ceil_div(p.k, 128)}, work.rank, plan.log_split);
  const int last = static_cast<int>(all.end), step = static_cast<int>(plan.chunk / 128);
  int begin = static_cast<int>(all.begin), next_tile = 0;  // where `weights` is
  bool again = false;
  sums.start_span();
  do {
    const Share pass = {begin, begin + step < last ? begin + step : last};
    const Share mine = share(pass, work.warp_k, plan.log_warps_k);
    const int first = static_cast<int>(2 * mine.begin);
    const int count = work.row_tile < work.tiles_n ? static_cast<int>(2 * (mine.end - mine.begin)) : 0;  // even
    // The last tile may lie beyond k, where x is 0: then any codes do.
    const int loads = first + count <= work.tiles_k ? count : count - 1;
    const bool before = kCluster && !again;  // the kernel before this one may still run
    weights.advance(first - next_tile);
    if constexpr (!kCluster)
      weights.load_first(loads);
    else if (before)
      weights.fetch_first(loads);
    if (count) sums.scales.start_at(first);
    if constexpr (kCluster) {
      if (before) {
        if (count) sums.scales.fetch();
        ptx::wait_for_kernel_before();
      }
      weights.load_first(loads);
    }
    if (count) sums.scales.load();
    if (again) __syncthreads();  // all have used the columns before these
    copy_x<kBytes>(p, work.tokens.first, work.tokens.count, 128 * pass.begin, 128 * pass.end, shared, pitch);
    ptx::wait_for_copies();
    __syncthreads();
    int offset = kBytes * (64 * first - 128 * begin);
    for (int tile = 0; tile < count; tile += kAhead, offset += kTileX * kAhead) {
#pragma unroll
      for (int stage = 0; stage < kAhead; ++stage) {
        if ((kBranches || stage % 2 == 0) && tile + stage >= count) break;
        sums.multiply_tile(weights.codes[stage], offset + kTileX * stage, stage % 2 == 1);
        if (tile + stage + kAhead < loads) weights.load(stage, stage + kAhead);
      }
      weights.advance(kAhead);
    }
    next_tile = first + (count + kAhead - 1) / kAhead * kAhead;
    again = true;
  } while ((begin += step) < last);
  if constexpr (kCluster) ptx::start_kernel_after();

  __syncthreads();  // x's memory is free
  add_up<kTokens, kCluster, false>(p, plan, args.partial, sums.total, shared, work.first_tile, work.tokens);
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
  args.p.w.scales.zero_point ? run_span<X, Format, true, kCluster>(args, stream)
                             : run_span<X, Format, false, kCluster>(args, stream);
}

// x as given; blocks that share rows along k are a cluster, or not.
template <class Format, bool kCluster>
void run(const NibbleSkinny& call, CudaStream stream) {
  const PackedMm& p = call.mm;
  const bool f32 = p.x.dtype == Dtype::f32;
  const int slabs = slabs_of(call.plan, kCluster, f32);
  Args args{p, call.plan, slabs > 1 ? call.workspace : nullptr};
  if (f32) args.p = copied(p, call.workspace + ceil_div(slabs * p.m * p.n, 4) * 4, p.k, stream);
  p.x.dtype == Dtype::f16 ? run_as<ptx::F16, Format, kCluster>(args, stream)
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
