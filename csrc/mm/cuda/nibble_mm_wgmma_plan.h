// How a matmul of many rows of x with weights of one to four bits a code is shared out on Hopper: constexpr, so that
// the host plans and tests what the device walks.
//
//   A block multiplies a tile of kRows rows of w with `tokens` rows of x: two consumer warpgroups, `halves` times 64
//   rows of w each, and a third one, of which one thread copies. `split` blocks, a cluster, share a tile along k.
#pragma once
#include <cstdint>

#include "mm/cuda/nibble_mm_skinny_plan.h"
#include "mm/cuda/packed_mm_plan.h"

namespace aoq::nibble_wgmma {

constexpr int kConsumers = 256, kThreads = kConsumers + 128;
constexpr int kStepK = 128;       // columns of a stage
constexpr int kTokensInTurn = 8;  // tiles of tokens that blocks in turn take of one tile of rows: both stay in L2

// Sums are scaled after the columns of a group, or of a stage where groups are longer. Sizes: what the copy engine and
// a grid can count.
constexpr bool takes(const Shape& s) {
  const bool group = s.group >= s.k || s.group % kStepK == 0 || s.group == 64 || s.group == 32;
  constexpr int64_t kMost = int64_t{1} << 29;
  return group && s.m < kMost && s.n < kMost && s.k < kMost && ceil_div(s.m, 32) * ceil_div(s.n, 128) < kMost / 4;
}

// Tiles there are kernels for: tokens, halves.
#define AOQ_NIBBLE_WGMMA_TILES(with) with(32, 2) with(64, 1) with(64, 2) with(64, 4) with(128, 1) with(128, 2)

struct Plan {
  int tokens, halves, split, stages;

  constexpr int rows() const { return 128 * halves; }
};

constexpr int64_t row_tiles(const Plan& plan, int64_t n) { return ceil_div(n, plan.rows()); }
constexpr int64_t token_tiles(const Plan& plan, int64_t m) { return ceil_div(m, plan.tokens); }

struct Tile {
  int64_t row, token;
};
// Tiles in turn: kTokensInTurn tiles of tokens at a time, all rows of w before the next ones.
constexpr Tile tile_of(int64_t index, int64_t row_tiles, int64_t token_tiles) {
  const int64_t in_turn = kTokensInTurn * row_tiles, first = index / in_turn * kTokensInTurn, rest = index % in_turn;
  const int64_t left = token_tiles - first, tokens = left < kTokensInTurn ? left : kTokensInTurn;
  return {rest / tokens, first + rest % tokens};
}

// Steps along k of a block.
struct Steps {
  int64_t begin, end;
};
constexpr Steps steps_of(int64_t k, int split, int rank) {
  const int64_t steps = ceil_div(k, kStepK);
  return {steps * rank / split, steps * (rank + 1) / split};
}

// ---- shared memory: stages, each of x, w, scales, zero points and sums of x; at the end of all, barriers and
// the block's place. Where sums
// are added up, they take the place of the stages.

struct Stage {
  int x, codes, scale, zero_point, x_sum, bytes;  // where each begins; of all
};
// element: bytes of an activation; w_bits: of a weight's code; scale: bytes of a scale.
constexpr Stage stage_of(int tokens, int halves, int span, bool zero, int element, int w_bits, int scale) {
  Stage s{};
  const int tiles = 8 * halves, spans = kStepK / span, scales = tiles * spans * 16 * scale;
  s.codes = tokens * kStepK * element;
  s.scale = s.codes + tiles * (16 * kStepK * w_bits / 8);
  s.zero_point = s.scale + scales;
  s.x_sum = s.zero_point + (zero ? scales : 0);
  s.bytes = static_cast<int>(ceil_div(s.x_sum + (zero ? spans * tokens * 4 : 0), 1024) * 1024);
  return s;
}

// From one token's sums to the next's: a warp's stores hit different banks.
constexpr int sum_pitch(int rows) { return rows + 4; }
constexpr int sum_bytes(int tokens, int rows) { return 4 * tokens * sum_pitch(rows); }

constexpr int kMostShared = 232448, kMostStages = 8;
constexpr int kBarrierBytes = 2 * 8 * kMostStages, kPlaceBytes = 16;

// 1023: the stages begin at a multiple of 1024.
constexpr int shared_bytes(const Plan& plan, const Stage& stage) {
  const int stages = plan.stages * stage.bytes, sums = sum_bytes(plan.tokens, plan.rows());
  return 1023 + (stages > sums ? stages : sums) + kBarrierBytes + kPlaceBytes;
}
constexpr int stages_of(const Stage& stage) {
  const int fitting = (kMostShared - 1023 - kBarrierBytes - kPlaceBytes) / stage.bytes;
  return fitting < kMostStages ? fitting : kMostStages;
}

// ---- workspace, in floats: sums of the planes of an fp32 x, then x where it has to be copied (fp32 as planes, or rows
// that are not whole aligned sixteen bytes), then the sums of x over each span that zero points take

struct Workspace {
  int64_t copy, x_sum, end;  // where each begins
};
constexpr int64_t copy_pitch(int64_t k) { return ceil_div(k, 8) * 8; }
constexpr int64_t sums_pitch(int64_t m) { return ceil_div(m, 128) * 128; }  // whole tiles of tokens, of any plan

constexpr Workspace workspace_of(const Shape& shape, int planes, bool copies, bool zero) {
  const int64_t rows = planes * shape.m, spans = kStepK / span_of(shape.group, shape.k);
  const int64_t copy = planes > 1 ? ceil_div(rows * shape.n, 4) * 4 : 0;
  const int64_t x_sum = copy + (copies ? ceil_div(rows * copy_pitch(shape.k), 8) * 4 : 0);
  return {copy, x_sum, x_sum + (zero ? sums_pitch(rows) * ceil_div(shape.k, kStepK) * spans : 0)};
}

// ---- which plan: a cost model, in ns, no measurement at run time. `config` picks tile and split instead:
// 4 * tile + log2(split).

constexpr int kTiles[][2] = {
#define AOQ_TILE(tokens, halves) {tokens, halves},
    AOQ_NIBBLE_WGMMA_TILES(AOQ_TILE)
#undef AOQ_TILE
};
constexpr int kSplits = 4, kConfigs = kSplits * sizeof(kTiles) / sizeof(kTiles[0]);

// zero, scale: whether there are zero points, the bytes of a scale; they take room in a stage.
constexpr Plan plan_of(int config, const Shape& shape, bool zero, int scale) {
  const int tokens = kTiles[config / kSplits][0], halves = kTiles[config / kSplits][1];
  const Stage stage = stage_of(tokens, halves, span_of(shape.group, shape.k), zero, static_cast<int>(shape.x_bytes),
                               static_cast<int>(shape.w_bits), scale);
  const int64_t steps = ceil_div(shape.k, kStepK);
  int split = 1 << config % kSplits;
  while (split > steps) split /= 2;  // a block without a step would have nothing to wait for
  return {tokens, halves, split, stages_of(stage)};
}

constexpr double larger(double a, double b) { return a > b ? a : b; }

constexpr double cost_of(const Plan& plan, const Shape& shape, const Device& device) {
  constexpr double kClock = 1.6, kL2 = 40;  // GHz; bytes a ns and multiprocessor
  const double rows = plan.rows(), tokens = plan.tokens, x_bytes = static_cast<double>(shape.x_bytes);
  const double weights = static_cast<double>(kStepK * shape.w_bits) / 8;  // bytes of a row in a step; scales take 2
  const double spans = kStepK / static_cast<double>(span_of(shape.group, shape.k));
  const int64_t blocks = row_tiles(plan, shape.n) * token_tiles(plan, shape.m) * plan.split;
  const int64_t waves = ceil_div(blocks, device.multiprocessors);
  const double busy = static_cast<double>(blocks < device.multiprocessors ? blocks : device.multiprocessors);
  // A step: 2048 products a clock and multiprocessor, of bytes twice as many; or instructions, two warps a scheduler:
  // decoding, a multiply-add a sum and span (of bytes also a conversion), and around them.
  const double products = rows * tokens * kStepK * x_bytes / 2 / (2048 * kClock);
  const double decoding = 45 * x_bytes, scaling = spans * (16 + tokens / x_bytes);
  const double instructions = 2 * (plan.halves * (decoding + scaling) + 50) / kClock;
  // Its bytes: weights from memory once for the tiles of tokens that run together, all from L2.
  const int64_t in_turn = token_tiles(plan, shape.m);
  const double together = static_cast<double>(in_turn < kTokensInTurn ? in_turn : kTokensInTurn);
  const double memory = (weights + 2) * rows / together * busy / device.bytes_per_ns;
  const double l2 = (weights * rows + kStepK * x_bytes * tokens) / kL2;
  // The largest bounds it; the others hide behind it all but for a tenth.
  const double bound = larger(larger(products, instructions), larger(memory, l2));
  const double step = bound + 0.1 * (products + instructions + memory + l2 - bound);
  const double steps = static_cast<double>(ceil_div(ceil_div(shape.k, kStepK), plan.split));
  // Sums go to shared memory and back, of a cluster to others'.
  const double sums = rows * tokens * 8 / (128 * kClock);
  const double add = plan.split > 1 ? 1000 + sums : 0;
  return static_cast<double>(waves) * (steps * step + 2000 + sums + add);
}

constexpr Plan choose(const Shape& shape, const Device& device, bool zero, int scale) {
  return cheapest(
      kConfigs, [&](int config) { return plan_of(config, shape, zero, scale); }, [](const Plan&) { return true; },
      [&](const Plan& plan) { return cost_of(plan, shape, device); });
}

// Whether it beats the skinny plans; `before`: kernels that prepare x for it.
constexpr bool pays(const Shape& shape, const Device& device, int before) {
  return shape.m > 32 && takes(shape) &&
         cost_of(choose(shape, device, true, 4), shape, device) + 2000.0 * before <
             nibble_skinny::cost_of(nibble_skinny::choose(shape, device), shape, device);
}

}  // namespace aoq::nibble_wgmma
