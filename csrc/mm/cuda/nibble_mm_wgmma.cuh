// Many rows of x (tokens) times weights of one to four bits a code on Hopper: wgmma with w as A, decoded in registers.
//
//   One warp copies: boxes of x, of packed w, of scales and zero points to a ring of stages in shared memory, each of
//   128 columns (TMA; what lies beyond n, k and m arrives as zeros). A row tile of packed w is a row of its tensor, and
//   a lane's words of a tile are its share of A of four wgmmas, as they are of four mma.m16n8k16
//   (formats/nibbles_cuda.h): neighbours' words are neighbours, read without bank conflicts.
//   Two warpgroups multiply. Codes minus the middle one are exact in 16 bits, their products with x exact in fp32;
//   after each span of k, which lies in one group, a row's sums are multiplied with its scale. So weights are never
//   rounded. The zero point's share, (kMid - zero) * scale * (sum of x), takes the sums of x that a kernel before this
//   one wrote. A warpgroup decodes the next tile while its last ones are multiplied.
//   Blocks of a cluster that share a tile along k add up through its shared memory, always in the same order.
#pragma once
#include <type_traits>

#include "cuda/hopper.cuh"
#include "mm/cuda/nibble_math.cuh"
#include "mm/cuda/nibble_mm.h"
#include "mm/cuda/packed_mm.cuh"

namespace aoq::nibble_wgmma {
namespace {

struct Args {
  PackedMm p;
  Plan plan;
  const float* x_sums;  // [spans of k][m_pitch]: of each row of x, over each span
  int64_t m_pitch;
  int64_t row_tiles, token_tiles;
};

// Of x in memory: whole sixteen bytes, the last ones filled up with zeros.
template <class X>
constexpr int64_t x_columns(int64_t k) {
  constexpr int kSixteen = 16 / x_bytes(X{});
  return ceil_div(k, kSixteen) * kSixteen;
}

struct Maps {
  hopper::TensorMap x, codes, scale, zero_point;
};

// Which tile a block has, and its rank in the cluster: in shared memory, as the main loop needs every register.
struct Place {
  int row, token;
  uint32_t rank;
};
static_assert(sizeof(Place) <= kPlaceBytes);

// 32-bit words of w in a row tile of a stage, as the copy engine counts columns.
template <class Format>
constexpr int kStepWords = kStepK / nibbles::kTileK * nibbles::Tile<Format::kBits>::kBytes / 4;

// What a warpgroup multiplies at a time: sums of fewer tokens leave registers for more totals.
constexpr int part_of(int tokens, int halves) { return halves == 2 && tokens > 64 ? 64 : tokens; }

// A block, in the order in which it works: `start`, then `copy` in the warpgroup that copies and `multiply` and `store`
// in those that multiply.
template <class X, class Format, int kTokens, int kHalves, int kSpan, bool kZero>
struct Block {
  using M = Math<X, Format>;
  using Codes = nibbles::Tile<Format::kBits>;
  static constexpr int kPart = part_of(kTokens, kHalves), kParts = kTokens / kPart, kSpans = kStepK / kSpan;
  static constexpr int kSums = kPart / 2, kAtomK = 16 * M::kWords, kAtoms = 64 / kAtomK, kRows = 128 * kHalves;
  using Totals = float[kHalves][kParts][kSums];

  const Maps& maps;
  const Args& args;
  const PackedMm& p;
  int warp, lane;
  uint32_t split, stages, rank, count;  // blocks of a cluster; stages in shared memory; steps along k of this block
  int row_block, token_block;
  Steps steps;
  int scale_bytes;
  Stage stage;
  char* shared;
  hopper::Barrier *full, *empty;  // of each stage
  Place* place;

  __device__ Block(const Maps& maps, const Args& args)
      : maps(maps),
        args(args),
        p(args.p),
        warp(static_cast<int>(threadIdx.x / 32)),
        lane(static_cast<int>(threadIdx.x % 32)),
        split(static_cast<uint32_t>(args.plan.split)),
        stages(static_cast<uint32_t>(args.plan.stages)),
        rank(blockIdx.x % split) {
    const Tile tile = tile_of(blockIdx.x / split, args.row_tiles, args.token_tiles);
    row_block = static_cast<int>(tile.row);
    token_block = static_cast<int>(tile.token);
    steps = steps_of(p.k, static_cast<int>(split), static_cast<int>(rank));
    count = static_cast<uint32_t>(steps.end - steps.begin);
    scale_bytes = p.w.scales.dtype == Dtype::f32 ? 4 : 2;
    stage = stage_of(kTokens, kHalves, kSpan, kZero, M::kBytes, Format::kBits, scale_bytes);
    shared = hopper::shared_memory();
    const int64_t in_stages = stages * stage.bytes, in_sums = sum_bytes(kTokens, kRows);
    full = reinterpret_cast<hopper::Barrier*>(shared + (in_stages > in_sums ? in_stages : in_sums));
    empty = full + stages;
    place = reinterpret_cast<Place*>(empty + stages);
  }

  __device__ bool copies() const { return warp >= kConsumers / 32; }

  // Sets up what the warpgroups tell each other by.
  __device__ void start() {
    if (threadIdx.x == 0) {
      *place = {row_block, token_block, rank};
      for (uint32_t i = 0; i < stages; ++i) {
        hopper::init(full + i, 1);
        hopper::init(empty + i, kConsumers / 32);
      }
      hopper::fence_init();
    }
    __syncthreads();
  }

  // ---- the warpgroup of which one thread copies

  // visit(map, column, place in a stage) of each box of a step that is not x's.
  template <class Visit>
  __device__ void each_box_of_w(uint32_t step, Visit visit) {
    const int unit = static_cast<int>(steps.begin + step);
    const int group = p.group >= p.k ? 0 : unit * kStepK / static_cast<int>(p.group);
    visit(maps.codes, unit * kStepWords<Format>, stage.codes);
    visit(maps.scale, group * 16, stage.scale);
    if constexpr (kZero) visit(maps.zero_point, group * 16, stage.zero_point);
  }

  __device__ void copy_w(uint32_t step, char* at, hopper::Barrier* barrier) {
    const uint32_t bytes = static_cast<uint32_t>(kTokens * kStepK * M::kBytes + kHalves * 8 * 2 * Codes::kBytes +
                                                 (kZero ? 2 : 1) * kHalves * 8 * kSpans * 16 * scale_bytes +
                                                 (kZero ? kSpans * kTokens * 4 : 0));
    hopper::arrive_expecting(barrier, bytes);
    each_box_of_w(step, [&](const hopper::TensorMap& map, int column, int to) {
      hopper::copy_box(at + to, map, column, row_block * 8 * kHalves, barrier);
    });
  }

  __device__ void copy_x(uint32_t step, char* at, hopper::Barrier* barrier) {
    const int unit = static_cast<int>(steps.begin + step), token = token_block * kTokens;
#pragma unroll
    for (int box = 0; box < M::kBytes; ++box)
      hopper::copy_box(at + box * kTokens * wgmma::kRowBytes, maps.x,
                       unit * kStepK + box * wgmma::kRowBytes / M::kBytes, token, barrier);
    if constexpr (kZero)
#pragma unroll
      for (int span = 0; span < kSpans; ++span)
        hopper::copy_bytes(at + stage.x_sum + span * kTokens * 4,
                           args.x_sums + (unit * int64_t{kSpans} + span) * args.m_pitch + token, kTokens * 4, barrier);
  }

  // Weights that this kernel will copy first are fetched before the kernel before it has ended.
  __device__ void fetch_first() {
#pragma unroll 1
    for (uint32_t step = 0; step < count && step < stages; ++step)
      each_box_of_w(step, [&](const hopper::TensorMap& map, int column, int) {
        hopper::fetch_box(map, column, row_block * 8 * kHalves);
      });
  }

  __device__ void copy_steps() {
    for (uint32_t step = 0; step < count && step < stages; ++step)
      copy_w(step, shared + step * stage.bytes, full + step);
    uint32_t slot = 0, parity = 1;
    for (uint32_t step = 0; step < count; ++step) {
      char* const at = shared + slot * stage.bytes;
      if (step >= stages) {
        hopper::wait(empty + slot, parity);
        copy_w(step, at, full + slot);
      }
      copy_x(step, at, full + slot);
      if (++slot == stages) {
        slot = 0;
        parity ^= 1;
      }
    }
  }

  __device__ void copy() {
    hopper::shrink_registers<40>();
    if (threadIdx.x == kConsumers) {
      fetch_first();
      ptx::wait_for_kernel_before();
      copy_steps();
      ptx::start_kernel_after();
    }
    if (split > 1) {  // as the others do in `store`
      ptx::cluster_barrier();
      ptx::end_of_cluster();
    }
  }

  // ---- the warpgroups that multiply

  uint32_t a[2][kAtoms][4];  // of two tiles along k: one is multiplied while the other is decoded

  // The row tile of the block that this warp has of the first half.
  __device__ int first_tile() const { return warp / 4 * 4 * kHalves + warp % 4; }

  __device__ void decode(const char* at, int half, int tile_k) {
    const char* const tile = at + stage.codes + (first_tile() + 4 * half) * (2 * Codes::kBytes) +
                             tile_k * Codes::kBytes + lane * Codes::plane(0).lane_bytes();
    const auto codes = load_lane<Format::kBits>(
        lane, [&](auto words, int from) { return *reinterpret_cast<const Words<words>*>(tile + from); });
#pragma unroll
    for (int atom = 0; atom < kAtoms; ++atom) aoq::decode<M>(codes, atom, a[tile_k][atom]);
  }

  // Columns [first, first + columns) of a stage.
  __device__ void multiply_columns(typename M::Sum (&sum)[kSums], const char* at, int part, int first, int columns,
                                   bool begins) {
    hopper::fence();
#pragma unroll
    for (int k = first; k < first + columns; k += kAtomK) {
      const int in_row = k * M::kBytes % wgmma::kRowBytes;
      const char* const box = at + (k * M::kBytes / wgmma::kRowBytes * kTokens + part * kPart) * wgmma::kRowBytes;
      hopper::multiply(X{}, sum, a[k / 64][k % 64 / kAtomK], hopper::descriptor(box) + in_row / 16,
                       !begins || k > first);
    }
    hopper::commit();
  }

  // Of two rows of a lane: scale, and what the zero point takes off.
  struct Scales {
    float scale[2], shift[2];
  };
  __device__ Scales scales_of(const ScaleReader& reader, const char* at, int half, int span) {
    const char* const scales = at + stage.scale +
                               ((first_tile() + 4 * half) * kSpans + span) * static_cast<int>(reader.group()) +
                               reader.offset();
    Scales s;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto word = [&](int from) { return *reinterpret_cast<const uint32_t*>(scales + i * reader.half() + from); };
      const float value = reader.value(word(0));
      if constexpr (kZero) s.shift[i] = (Format::kMid - reader.value(word(stage.zero_point - stage.scale))) * value;
      s.scale[i] = value / M::kUnit;
    }
    return s;
  }

  __device__ void add_zero_points(float (&total)[kSums], const Scales& s, const char* at, int span, int part) {
    const float* const x_sums = reinterpret_cast<const float*>(at + stage.x_sum) + span * kTokens + part * kPart;
#pragma unroll
    for (int i = 0; i < kSums; ++i)
      total[i] = __fmaf_rn(x_sums[wgmma::sum_at(lane, i).column], s.shift[i / 2 % 2], total[i]);
  }

  __device__ void multiply(Totals& total) {
    hopper::grow_registers<232>();
    const ScaleReader reader(p.w.scales.dtype, lane / 4);
    typename M::Sum sum[kSums];
    uint32_t slot = 0, parity = 0;
    hopper::wait(full, 0);
    decode(shared, 0, 0);
    for (uint32_t left = count; left; --left) {
      const char* const at = shared + slot * stage.bytes;
      const uint32_t next_slot = slot + 1 == stages ? 0 : slot + 1, next_parity = parity ^ (next_slot == 0);
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
#pragma unroll
        for (int span = 0; span < kSpans; ++span)
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            // While a tile is multiplied, the next one is decoded: in the place of the one before it, if that is over.
            const bool last_part = part == kParts - 1;
            if constexpr (kSpans == 1) {
              multiply_columns(sum, at, part, 0, 64, true);
              if (part == 0) decode(at, half, 1);
              multiply_columns(sum, at, part, 64, 64, false);
              if (last_part) hopper::finish<1>();
            } else {
              multiply_columns(sum, at, part, span * kSpan, kSpan, true);
              if (last_part && span == 0) decode(at, half, 1);
            }
            if (last_part && span == kSpans - 1) {
              if (half + 1 < kHalves) {
                decode(at, half + 1, 0);
              } else if (left > 1) {
                hopper::wait(full + next_slot, next_parity);
                decode(shared + next_slot * stage.bytes, 0, 0);
              }
            }
            const Scales s = scales_of(reader, at, half, span);
            // While products are made; sums of bytes become floats after that, and there are no registers for both.
            constexpr bool kEarly = M::kBytes == 2;
            if constexpr (kZero && kEarly) add_zero_points(total[half][part], s, at, span, part);
            hopper::finish<0>();
            hopper::settle(sum);
#pragma unroll
            for (int i = 0; i < kSums; ++i)
              total[half][part][i] = __fmaf_rn(static_cast<float>(sum[i]), s.scale[i / 2 % 2], total[half][part][i]);
            if constexpr (kZero && !kEarly) add_zero_points(total[half][part], s, at, span, part);
          }
      __syncwarp();
      if (lane == 0) hopper::arrive(empty + slot);
      slot = next_slot;
      parity = next_parity;
    }
  }

  // ---- sums are added up, in one order, and stored

  static constexpr int kPitch = sum_pitch(kRows);

  // To shared memory, where all that share the tile see them.
  __device__ void share(const Totals& total, float* sums) {
    hopper::meet(1, kConsumers);  // the stages are free
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          const wgmma::SumAt at = wgmma::sum_at(lane, i);
          sums[(part * kPart + at.column) * kPitch + (first_tile() + 4 * half) * 16 + at.row] = total[half][part][i];
        }
    if (split > 1)
      ptx::cluster_barrier();
    else
      hopper::meet(1, kConsumers);
  }

  // Four neighbours along n, of all blocks that have sums of them.
  __device__ FourFloats sum_of_blocks(const float* from) const {
    if (split == 1) return *reinterpret_cast<const FourFloats*>(from);
    FourFloats sum{};
    for (uint32_t block = 0; block < split; ++block) {
      const ptx::U32x4 four = ptx::load_cluster_four(from, block);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.value[i] += bits_to_float(four.word[i]);
    }
    return sum;
  }

  // A lane takes four neighbours, a warp 128: sixteen bytes a lane come from shared memory without bank conflicts, and
  // eight go to out.
  __device__ void store(const Totals& total) {
    float* const sums = reinterpret_cast<float*>(shared);
    share(total, sums);
    const Place here = *place;
    const int64_t first_token = int64_t{here.token} * kTokens, first_row = int64_t{here.row} * kRows;
    const int tokens = static_cast<int>(p.m - first_token < kTokens ? p.m - first_token : kTokens);
    const int begin = static_cast<int>(tokens * here.rank / split);
    const int end = static_cast<int>(tokens * (here.rank + 1) / split);
    constexpr int kWidth = 4, kChunks = kRows / kWidth;
    const bool whole =
        p.n % kWidth == 0 && p.out.dtype != Dtype::f32 && reinterpret_cast<uintptr_t>(p.out.data) % 8 == 0;
    for (int index = begin * kChunks + static_cast<int>(threadIdx.x); index < end * kChunks; index += kConsumers) {
      const int token = index / kChunks, in_tile = index % kChunks * kWidth;
      const int64_t row = first_row + in_tile, m = first_token + token;
      if (row >= p.n) continue;
      FourFloats four = sum_of_blocks(sums + token * kPitch + in_tile);
      const int left = static_cast<int>(p.n - row < kWidth ? p.n - row : kWidth);
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        if (i < left) four.value[i] = finished(p, m, row + i, four.value[i], 0);
      if (whole) {
        ptx::store_words(static_cast<uint16_t*>(p.out.data) + m * p.n + row, halves(four.value, p.out.dtype));
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
          if (i < left) store_float(p.out.data, p.out.dtype, m * p.n + row + i, four.value[i]);
      }
    }
    if (split > 1) ptx::end_of_cluster();  // no block ends while another reads its sums
  }
};

template <class X, class Format, int kTokens, int kHalves, int kSpan, bool kZero>
__global__ void __launch_bounds__(kThreads, 1)
    multiply(const __grid_constant__ Maps maps, const __grid_constant__ Args args) {
  Block<X, Format, kTokens, kHalves, kSpan, kZero> block(maps, args);
  block.start();
  if (block.copies()) return block.copy();
  typename decltype(block)::Totals total = {};
  block.multiply(total);
  block.store(total);
}

// ---- sums of x, for zero points

// Of 32 bits of x.
__device__ inline float sum_word(ptx::Bf16, uint32_t pair) {
  return bits_to_float(pair << 16) + bits_to_float(pair & 0xffff0000);
}
__device__ inline float sum_word(ptx::F16, uint32_t pair) {
  return ptx::f16_to_f32(pair & 0xffff) + ptx::f16_to_f32(pair >> 16);
}
__device__ inline float sum_word(ptx::S8, uint32_t quad) { return static_cast<float>(ptx::add_bytes(quad, 0)); }

// sums[span][row]: of each row of x over each span of columns.
constexpr int kSumThreads = 256;
template <class X, int kSpan>
__global__ void __launch_bounds__(kSumThreads) sum_spans(const PackedMm p, float* sums, int64_t pitch) {
  constexpr int kBytes = x_bytes(X{}), kWidth = 16 / kBytes,
                kTeam = kSpan / kWidth;  // values of a thread, threads of a sum
  const int64_t spans = ceil_div(p.k, kStepK) * (kStepK / kSpan), teams = p.m * spans;
  const int64_t blocks = ceil_div(teams * kTeam, kSumThreads);
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {  // whole warps, for the shuffles
    const int64_t item = block * kSumThreads + threadIdx.x, team = item / kTeam;
    const int64_t row = team / spans, span = team % spans, k = span * kSpan + item % kTeam * kWidth;
    float sum = 0;
    if (team < teams && k < x_columns<X>(p.k)) {
      const auto x =
          *reinterpret_cast<const ptx::U32x4*>(static_cast<const char*>(p.x.data) + (row * p.x.stride + k) * kBytes);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum += sum_word(X{}, x.word[i]);
    }
#pragma unroll
    for (int i = kTeam / 2; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    if (team < teams && item % kTeam == 0) sums[span * pitch + row] = sum;
  }
}

// ---- launching

template <class X, class Format, int kTokens, int kHalves, int kSpan, bool kZero>
void run_plan(const Args& args, CudaStream stream) {
  constexpr int kXBytes = x_bytes(X{}), kTileBytes = nibbles::Tile<Format::kBits>::kBytes;
  const PackedMm& p = args.p;
  const int bytes = p.w.scales.dtype == Dtype::f32 ? 4 : 2, box_rows = 8 * kHalves;
  const int64_t tiles = ceil_div(p.n, 16), tiles_k = ceil_div(p.k, 64), groups = ceil_div(p.k, p.group);
  Maps maps{};
  maps.x = hopper::tensor_map(p.x.data, kXBytes, p.m, x_columns<X>(p.k), p.x.stride * kXBytes, kTokens,
                              wgmma::kRowBytes / kXBytes, true);
  maps.codes = hopper::tensor_map(p.w.stream, 4, tiles, tiles_k * (kTileBytes / 4), tiles_k * kTileBytes, box_rows,
                                  kStepWords<Format>, false);
  auto scales = [&](const void* data) {
    return hopper::tensor_map(data, bytes, tiles, groups * 16, groups * 16 * bytes, box_rows, kStepK / kSpan * 16,
                              false);
  };
  maps.scale = scales(p.w.scales.scale);
  maps.zero_point = scales(kZero ? p.w.scales.zero_point : p.w.scales.scale);
  const Stage stage = stage_of(kTokens, kHalves, kSpan, kZero, kXBytes, Format::kBits, bytes);
  const auto blocks = static_cast<unsigned>(args.row_tiles * args.token_tiles * args.plan.split);
  launch(multiply<X, Format, kTokens, kHalves, kSpan, kZero>,
         {dim3(blocks), kThreads, shared_bytes(args.plan, stage), stream, static_cast<unsigned>(args.plan.split),
          kMostShared},
         maps, args);
}

// Every instance for x of this kind.
template <class X, class Format>
void run_as(const PackedMm& p, const Plan& plan, float* x_sums, CudaStream stream) {
  const int64_t pitch = sums_pitch(p.m);
  const Args args{p, plan, x_sums, pitch, row_tiles(plan, p.n), token_tiles(plan, p.m)};
  auto with = [&](auto span, auto zero) {
    constexpr int kSpan = decltype(span)::value;
    constexpr bool kZero = decltype(zero)::value;
    if constexpr (kZero) {
      const int64_t threads = p.m * ceil_div(p.k, kStepK) * (kStepK * x_bytes(X{}) / 16);
      launch(sum_spans<X, kSpan>, {dim3(grid_for(threads, kSumThreads)), kSumThreads, 0, stream, 0}, p, x_sums, pitch);
    }
    switch (plan.tokens * 8 + plan.halves) {
#define AOQ_INSTANCE(tokens, halves) \
  case tokens * 8 + halves: return run_plan<X, Format, tokens, halves, kSpan, kZero>(args, stream);
      AOQ_NIBBLE_WGMMA_TILES(AOQ_INSTANCE)
#undef AOQ_INSTANCE
    }
  };
  auto with_span = [&](auto span) {
    p.w.scales.zero_point ? with(span, std::true_type{}) : with(span, std::false_type{});
  };
  switch (span_of(p.group, p.k)) {
    case 128: return with_span(std::integral_constant<int, 128>{});
    case 64: return with_span(std::integral_constant<int, 64>{});
    default: return with_span(std::integral_constant<int, 32>{});
  }
}

// x as given.
template <class Format>
void run_sm90a(const NibbleWgmma& call, CudaStream stream) {
  const PackedMm& p = call.mm;
  const bool f32 = p.x.dtype == Dtype::f32, copies = needs_copy(p);
  const int planes = f32 ? kPlanes : 1;
  const Workspace at = workspace_of({p.m, p.n, p.k, p.group, Format::kBits}, planes, copies, p.w.scales.zero_point);
  PackedMm mm = p;
  if (copies) {
    auto* const x = reinterpret_cast<uint16_t*>(call.workspace + at.copy);
    launch(copy_rows, {dim3(grid_for(p.m * p.k, kAddThreads)), kAddThreads, 0, stream, 0}, p, x, copy_pitch(p.k));
    mm.x.data = x;
    mm.x.stride = copy_pitch(p.k);
    mm.m = planes * p.m;
  }
  if (f32) {  // sums of planes, to be added up
    mm.x.dtype = Dtype::bf16;
    mm.out.bias = nullptr;
    mm.out.data = call.workspace;
    mm.out.dtype = Dtype::f32;
  }
  if (mm.x.dtype == Dtype::f16)
    run_as<ptx::F16, Format>(mm, call.plan, call.workspace + at.x_sum, stream);
  else
    run_as<ptx::Bf16, Format>(mm, call.plan, call.workspace + at.x_sum, stream);
  if (f32) add(p, call.workspace, planes, stream);
}

// x as int8 codes.
template <class Format>
void run_int8_sm90a(const NibbleWgmma& call, CudaStream stream) {
  const PackedMm& p = call.mm;
  const Workspace at = workspace_of({p.m, p.n, p.k, p.group, Format::kBits, 1}, 1, false, p.w.scales.zero_point);
  run_as<ptx::S8, Format>(p, call.plan, call.workspace + at.x_sum, stream);
}

}  // namespace
}  // namespace aoq::nibble_wgmma
