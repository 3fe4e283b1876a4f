// Many rows of x (tokens) times weights of one to four bits a code, on mma.sync: weights are A, so that 8 tokens are a
// fragment's columns.
//
//   A block multiplies 128 rows of w with 64 or 128 tokens, a stage of 128 bytes of each token after the other: x, its
//   weights and, for zero points, the sums of x come to shared memory by cp.async, three stages ahead. Four warps share
//   the rows, two the tokens: 32 x 64 sums each, of which a lane holds 64.
//   A warp reads its tile's words as the lanes own them (formats/nibbles_cuda.h) and decodes each once for its 64
//   tokens; x comes back as B with ldmatrix, rows of 128 bytes whose sixteens are permuted by row: no two of eight rows
//   share banks.
//   Codes minus the middle one are exact; after each span of k, which lies in one group, a row's sums are multiplied
//   with its scale and the zero point's share, (kMid - zero) * scale * (sum of x over the span), is added, in fp32.
//   Blocks that share rows along k add up through memory, in order.
//
// Bound by the tensor cores from about 64 tokens (sm_80) on: a warp's 16 multiplications of 8 cycles take one ldmatrix
// for each four and 22 other instructions for decoding.
#pragma once
#include "mm/cuda/nibble_math.cuh"
#include "mm/cuda/nibble_mm.h"
#include "mm/cuda/packed_mm.cuh"
#include "mm/cuda/wide.cuh"

namespace aoq::nibble_wide {
namespace {

struct Args {
  PackedMm p;  // x: rows of whole, aligned sixteen bytes
  int split;
  uint32_t row_blocks, token_blocks;
  int span;  // columns
  uint32_t spans_of_group;
  const float* x_sum;  // [m][spans], or null: no zero points
  float* partial;      // [split][m][n], added up by `add_slabs`, or null: straight to out
};

// What all of a block's steps know: which rows of w and of x are its.
struct Work {
  const Args& args;
  const PackedMm& p;
  int lane, warp, warp_n, warp_m;
  Tokens tokens;
  int64_t first_row, expert, tiles_n;
  int columns, tiles_k, spans;
  int begin, end;  // of this block's columns

  __device__ Work(const Args& args, int kTokens)
      : args(args),
        p(args.p),
        lane(static_cast<int>(threadIdx.x % 32)),
        warp(static_cast<int>(threadIdx.x / 32)),
        warp_n(warp % kWarpsN),
        warp_m(warp / kWarpsN) {
    const Place place = place_of(blockIdx.x, args.row_blocks, args.token_blocks);
    tokens = tokens_of<true>(p, place.tokens, kTokens);
    first_row = place.rows * kRows;
    expert = tokens.expert < 0 ? 0 : tokens.expert;
    tiles_n = ceil_div(p.n, 16);
    columns = static_cast<int>(p.k);
    tiles_k = (columns + 63) / 64;
    spans = (columns + args.span - 1) / args.span;
    // Of 128 columns; none of tokens that are no expert's.
    const Share units = share(tokens.expert < 0 ? 0 : ceil_div(p.k, 128), blockIdx.y, args.split);
    begin = static_cast<int>(128 * units.begin);
    end = static_cast<int>(128 * units.end);
  }
};

// Copies a stage of x, weights and sums of x: what lies beyond m and k is 0 (of bytes, whose sixteens are out of order,
// in memory too), rows beyond n are some row's.
template <class X, class Format, int kTokens>
struct Copier {
  using Tile = nibbles::Tile<Format::kBits>;
  static constexpr int kBytes = x_bytes(X{}), kTilesK = kXBytes / kBytes / 64;
  static constexpr int kWeights = kTokens * kXBytes, kXSums = kWeights + weight_bytes(kBytes, Format::kBits);

  const Work& work;
  int x_row, x_left, x_to;
  const char* x;
  const uint8_t* codes;

  __device__ explicit Copier(const Work& work) : work(work), x_row(static_cast<int>(threadIdx.x / 8)) {
    const PackedMm& p = work.p;
    const int sixteen = static_cast<int>(threadIdx.x % 8);
    x_left = work.columns * kBytes - 16 * sixteen;
    x_to = x_row * kXBytes + 16 * (sixteen ^ x_row % 8);
    x = static_cast<const char*>(p.x.data) + (work.tokens.first + x_row) * p.x.stride * kBytes + 16 * sixteen;
    const int64_t wanted = work.first_row / 16 + work.warp,
                  row_tile = wanted < work.tiles_n ? wanted : work.tiles_n - 1;
    codes = p.w.stream + (work.expert * work.tiles_n + row_tile) * work.tiles_k * Tile::kBytes + work.lane * 16;
  }

  // k: the stage's first column.
  __device__ void copy(char* stage, int k) const {
    copy_x(stage, k);
    copy_weights(stage, k);
    if (work.args.x_sum && threadIdx.x < kTokens) copy_x_sums(stage, k);
  }

  __device__ void copy_x(char* stage, int k) const {
    const PackedMm& p = work.p;
    const int left = x_left - k * kBytes, bytes = left <= 0 ? 0 : left < 16 && kBytes == 2 ? left : 16;
#pragma unroll
    for (int i = 0; i < kTokens / 32; ++i) {
      const bool real = x_row + 32 * i < work.tokens.count && bytes;
      ptx::copy_async(stage + x_to + 32 * i * kXBytes, real ? x + (32 * i * p.x.stride + k) * kBytes : p.x.data,
                      real ? bytes : 0);
    }
  }
  __device__ void copy_weights(char* stage, int k) const {
#pragma unroll
    for (int i = 0; i < kTilesK; ++i) {
      const bool real = k / 64 + i < work.tiles_k;
      if (Tile::kBytes == 32 * 16 || work.lane < Tile::kBytes / 16)
        ptx::copy_async(stage + kWeights + ((i * kWarps + work.warp) * (Tile::kBytes / 16) + work.lane) * 16,
                        real ? codes + static_cast<int64_t>(k / 64 + i) * Tile::kBytes : codes, real ? 16 : 0);
    }
  }
  __device__ void copy_x_sums(char* stage, int k) const {
    const float* const of_token = work.args.x_sum + (work.tokens.first + threadIdx.x) * work.spans;
    const int first = k / work.args.span;
#pragma unroll
    for (int i = 0; i < most_spans(kBytes); ++i) {
      const bool real = static_cast<int>(threadIdx.x) < work.tokens.count && first + i < work.spans;
      ptx::copy_async_word(stage + kXSums + 4 * (i * kTokens + static_cast<int>(threadIdx.x)),
                           real ? of_token + first + i : work.args.x_sum, real);
    }
  }
};

constexpr int kTiles = kRows / kWarpsN / 16;  // of rows, of a warp

// Scales and zero points of a warp's rows, those of the span to come.
struct SpanScales {
  const Args& args;
  ScaleReader reader;
  uint32_t groups_left, spans_left;
  const char* scales;  // of the warp's first tile of rows
  uint32_t to_tile = 0;
  int64_t to_zero_point;
  uint32_t scale_words[kTiles][2], zero_words[kTiles][2] = {};

  __device__ explicit SpanScales(const Work& work) : args(work.args), reader(work.p.w.scales.dtype, work.lane / 4) {
    const PackedMm& p = work.p;
    const uint32_t groups = static_cast<uint32_t>(ceil_div(p.k, p.group));
    const uint32_t first_span = static_cast<uint32_t>(work.begin / args.span);
    const uint32_t first_group = first_span / args.spans_of_group;
    groups_left = groups - first_group;
    spans_left = args.spans_of_group - first_span % args.spans_of_group;
    to_zero_point = static_cast<const char*>(p.w.scales.zero_point) - static_cast<const char*>(p.w.scales.scale);
    static_assert(kTiles == 2, "one more");
    const int64_t wanted = work.first_row / 16 + work.warp_n * kTiles;
    const int64_t tile = wanted < work.tiles_n ? wanted : work.tiles_n - 1;
    scales = static_cast<const char*>(p.w.scales.scale) +
             ((work.expert * work.tiles_n + tile) * groups + first_group) * static_cast<int64_t>(reader.group()) +
             reader.offset();
    if (wanted + 1 < work.tiles_n) to_tile = groups * reader.group();
  }

  __device__ void load() {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const char* at = scales + r * to_tile + half * reader.half();
        scale_words[r][half] = ptx::load_ahead(at);
        if (args.x_sum) zero_words[r][half] = ptx::load_ahead(at + to_zero_point);
      }
  }
  __device__ void advance() {
    if (--spans_left == 0) {
      spans_left = args.spans_of_group;
      if (groups_left > 1) {  // beyond k sums are 0
        --groups_left;
        scales += reader.group();
      }
    }
    load();
  }
};

// What a warp sums up: of a span, and of all.
template <class X, class Format, int kTokens>
struct Sums {
  using M = Math<X, Format>;
  static constexpr int kEights = kTokens * kWarpsN / kWarps / 8;  // of tokens, of a warp

  const Work& work;
  SpanScales scales;
  float total[kTiles][kEights][4] = {};
  typename M::Sum sum[kTiles][kEights][4];
  int columns_left;  // of the span

  __device__ explicit Sums(const Work& work) : work(work), scales(work), columns_left(work.args.span) {
    start_span();
    scales.load();
  }

  __device__ void start_span() {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int j = 0; j < kEights; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[r][j][i] = M::kZero;
  }

  // x_sums: of the span, [kTokens].
  __device__ void end_span(const char* x_sums) {
    float scale[kTiles][2], shift[kTiles][2];
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        scale[r][half] = scales.reader.value(scales.scale_words[r][half]);
        shift[r][half] = (Format::kMid - scales.reader.value(scales.zero_words[r][half])) * scale[r][half];
        scale[r][half] /= M::kUnit;
      }
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int j = 0; j < kEights; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) total[r][j][i] = __fmaf_rn(M::value(sum[r][j][i]), scale[r][i / 2], total[r][j][i]);
    if (work.args.x_sum) {
      const float* of_x = reinterpret_cast<const float*>(x_sums) + work.warp_m * 8 * kEights + 2 * (work.lane % 4);
#pragma unroll
      for (int j = 0; j < kEights; ++j)
#pragma unroll
        for (int r = 0; r < kTiles; ++r)
#pragma unroll
          for (int i = 0; i < 4; ++i) total[r][j][i] = __fmaf_rn(of_x[8 * j + i % 2], shift[r][i / 2], total[r][j][i]);
    }
    start_span();
    scales.advance();
  }

  // So many columns have been multiplied.
  __device__ void advance(int columns, const char*& x_sums) {
    if ((columns_left -= columns) == 0) {
      end_span(x_sums);
      columns_left = work.args.span;
      x_sums += 4 * kTokens;
    }
  }

  // 32 bytes of each token: multiplication `index` of a tile. b_from: where in a stage the lane reads x's.
  __device__ void multiply(const Words<Format::kBits> (&codes)[kTiles], int index, const char* stage, int b_from) {
    ptx::U32x4 b[kEights / 2];
#pragma unroll
    for (int j = 0; j < kEights / 2; ++j) b[j] = ptx::load_matrices(stage + 16 * j * kXBytes + b_from);
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
      uint32_t a[4];
      decode<M>(codes[r], index, a);
#pragma unroll
      for (int j = 0; j < kEights; ++j)
        M::multiply(sum[r][j], a, b[j / 2].word[j % 2 * 2], b[j / 2].word[j % 2 * 2 + 1]);
    }
  }

  __device__ void multiply_stage(const char* stage) {
    using Copies = Copier<X, Format, kTokens>;
    using Tile = nibbles::Tile<Format::kBits>;
    constexpr int kPairs = 2 / Copies::kTilesK;  // of two multiplications, of a tile
    // A load brings the fragments of twice eight tokens for one multiplication: the fewest registers.
    const int lane = work.lane;
    const int b_from =
        (work.warp_m * 8 * kEights + lane / 16 * 8 + lane % 8) * kXBytes + 16 * (lane / 8 % 2 ^ lane % 8);
    const char* x_sums = stage + Copies::kXSums;
    Words<Format::kBits> codes[kTiles];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
#pragma unroll
      for (int r = 0; r < kTiles; ++r)
        if (pair % kPairs == 0) {
          const char* const first =
              stage + Copies::kWeights + Tile::to_lane(pair / kPairs * kWarps + work.warp_n * kTiles + r, lane);
          codes[r] = load_lane<Format::kBits>(
              lane, [&](auto words, int from) { return ptx::load_shared<words>(first + from); });
        }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        multiply(codes, pair % kPairs * 2 + half, stage, b_from ^ (64 * pair + 32 * half));
        if constexpr (M::kBytes == 1) advance(32, x_sums);
      }
      if constexpr (M::kBytes == 2) advance(32, x_sums);
    }
  }
};

template <class X, class Format, int kTokens>
__global__ void __launch_bounds__(kThreads, kTokens == 64 ? 2 : 1) multiply(const Args args) {
  constexpr int kBytes = x_bytes(X{}), kColumns = kXBytes / kBytes, kStages = stages(kBytes);
  constexpr int kStageBytes = stage_bytes(kTokens, kBytes, Format::kBits);
  const Work work(args, kTokens);
  if (!work.tokens.count) return;
  char* const shared = ptx::shared_memory();
  const Copier<X, Format, kTokens> copier(work);
  Sums<X, Format, kTokens> sums(work);
  char* stage = shared;  // the next to be copied, and then the next to be multiplied: the oldest
  auto copy_next = [&](int k) {
    if (k < work.end) copier.copy(stage, k);
    ptx::group_copies();  // maybe none: then later groups count alike
    stage += kStageBytes;
    if (stage == shared + kStages * kStageBytes) stage = shared;
  };
#pragma unroll
  for (int ahead = 0; ahead < kStages - 1; ++ahead) copy_next(work.begin + ahead * kColumns);
  for (int k = work.begin; k < work.end; k += kColumns) {
    ptx::wait_for_groups<kStages - 2>();
    __syncthreads();  // all see this stage, and have used the one before, whose place the next copies take
    copy_next(k + (kStages - 1) * kColumns);
    sums.multiply_stage(stage);
  }
  ptx::wait_for_groups<0>();
  __syncthreads();
  store_sums(work.p, args.partial, sums.total, shared, work.first_row, work.tokens);
}

__device__ inline float sum_sixteen(ptx::Bf16, ptx::U32x4 pairs, int count) {
  float sum = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e)
    if (e < count) sum += bits_to_float(e % 2 ? pairs.word[e / 2] & 0xffff0000 : pairs.word[e / 2] << 16);
  return sum;
}
__device__ inline float sum_sixteen(ptx::F16, ptx::U32x4 pairs, int count) {
  float sum = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e)
    if (e < count) sum += ptx::f16_to_f32(pairs.word[e / 2] >> 16 * (e % 2));
  return sum;
}
__device__ inline float sum_sixteen(ptx::S8, ptx::U32x4 codes, int) {  // zeros from k on
  int sum = 0;
#pragma unroll
  for (int word = 0; word < 4; ++word) sum = ptx::add_bytes(codes.word[word], sum);
  return static_cast<float>(sum);
}

// The sums of x over each span: eight lanes take one, sixteen bytes at a time.
template <class X>
__global__ void __launch_bounds__(kAddThreads) sum_spans(const PackedMm p, int span, float* x_sum) {
  constexpr int kBytes = x_bytes(X{}), kStep = 16 / kBytes;
  const int columns = static_cast<int>(p.k), spans = (columns + span - 1) / span;
  const int lane = static_cast<int>(threadIdx.x % 8);
  for (int64_t row = blockIdx.x; row < p.m; row += gridDim.x) {
    const char* const x = static_cast<const char*>(p.x.data) + row * p.x.stride * kBytes;
    for (int i = static_cast<int>(threadIdx.x) / 8; i < (spans + 3) / 4 * 4; i += kAddThreads / 8) {  // whole warps
      const int first = (i < spans ? i : spans - 1) * span, last = span < columns - first ? first + span : columns;
      float sum = 0;
      for (int k = first + kStep * lane; k < last; k += kStep * 8)
        sum += sum_sixteen(X{}, ptx::load_sixteen(x + int64_t{k} * kBytes), last - k);
      for (int width = 4; width > 0; width /= 2) sum += __shfl_down_sync(~0u, sum, width, 8);
      if (lane == 0 && i < spans) x_sum[row * spans + i] = sum;
    }
  }
}

// ---- launching

template <class X, class Format>
void run_as(const PackedMm& p, const Plan& plan, float* partial, float* x_sum, CudaStream stream) {
  const int span = static_cast<int>(span_of(p.group, p.k));
  const Args args{.p = p,
                  .split = plan.split,
                  .row_blocks = static_cast<uint32_t>(row_blocks(p.n)),
                  .token_blocks = static_cast<uint32_t>(token_blocks_of(p, plan.tokens)),
                  .span = span,
                  .spans_of_group = p.group >= p.k ? ~0u : static_cast<uint32_t>(p.group / span),
                  .x_sum = p.w.scales.zero_point ? x_sum : nullptr,
                  .partial = partial};
  if (p.w.scales.zero_point) launch(sum_spans<X>, {dim3(grid_for(p.m, 1)), kAddThreads, 0, stream, 0}, p, span, x_sum);
  const dim3 grid(args.row_blocks * args.token_blocks, static_cast<unsigned>(plan.split));
  const int64_t shared = shared_bytes(plan.tokens, x_bytes(X{}), Format::kBits);
  launch(plan.tokens == 64 ? multiply<X, Format, 64> : multiply<X, Format, 128>, {grid, kThreads, shared, stream, 0},
         args);
}

// x as given.
template <class Format>
void run_sm80(const NibbleWide& call, CudaStream stream) {
  const PackedMm& p = call.mm;
  const int planes = p.x.dtype == Dtype::f32 ? kPlanes : 1, slabs = call.plan.split * planes;
  const bool copies = needs_copy(p);
  const Workspace at =
      workspace_of(call.plan, {p.m, p.n, p.k, p.group, Format::kBits}, planes, copies, p.w.scales.zero_point);
  const PackedMm mm = copies ? copied(p, call.workspace + at.copy, copy_pitch(p.k), stream) : p;
  float* const partial = slabs > 1 ? call.workspace : nullptr;
  if (mm.x.dtype == Dtype::f16)
    run_as<ptx::F16, Format>(mm, call.plan, partial, call.workspace + at.x_sum, stream);
  else
    run_as<ptx::Bf16, Format>(mm, call.plan, partial, call.workspace + at.x_sum, stream);
  if (partial) add(p, partial, slabs, stream);
}

// x as int8 codes.
template <class Format>
void run_int8_sm80(const NibbleWide& call, CudaStream stream) {
  const PackedMm& p = call.mm;
  const Workspace at =
      workspace_of(call.plan, {p.m, p.n, p.k, p.group, Format::kBits, 1}, 1, false, p.w.scales.zero_point);
  float* const partial = call.plan.split > 1 ? call.workspace : nullptr;
  run_as<ptx::S8, Format>(p, call.plan, partial, call.workspace + at.x_sum, stream);
  if (partial) add(p, partial, call.plan.split, stream);
}

}  // namespace
}  // namespace aoq::nibble_wide
