// How a CUDA matmul of few rows of x (skinny) is shared out: constexpr, so that the host plans and tests what the
// device walks.
//
//   A block is eight warps: 8 / warps_k side by side along n, each with kRowTiles tiles of sixteen rows, times warps_k
//   along k. `split` blocks share a stretch of rows along k as well; they are a cluster, or add up through memory.
//
//          k -->        block 0        |        block 1        |  ...  split - 1
//        +-----------+-----------+-----------+-----------+
//    n   |  warp 0   |  warp 4   |  warp 0   |  warp 4   |       warps_k = 2: four warps along n
//    |   +-----------+-----------+-----------+-----------+
//    v   |  warp 1   |  warp 5   |  warp 1   |  warp 5   |
#pragma once
#include <cstdint>

#include "core/packed_mm_plan.h"

namespace aoq::int4_skinny {

constexpr int kWarps = 8, kThreads = 32 * kWarps;

// tokens: rows of x that a block multiplies at once, 8, 16 or 32.
// More tokens need more accumulators: fewer tiles of rows.
constexpr int row_tiles(int tokens) { return tokens == 8 ? 4 : 2; }
// Tiles along k of each tile of rows that a warp has in flight: 4 to 8 KB a warp.
constexpr int tiles_ahead(int tokens) { return tokens == 16 ? 6 : 4; }

struct Plan {
  int tokens, log_warps_k, log_split;
  int64_t chunk;  // columns of x in shared memory at a time, a multiple of 128

  constexpr int warps_k() const { return 1 << log_warps_k; }
  constexpr int split() const { return 1 << log_split; }
};

// Piece `index` of 2^log_pieces as equal as can be; no division, which would delay a warp's first load.
constexpr Share share(Share of, int64_t index, int log_pieces) {
  const int64_t count = of.end - of.begin;
  return {of.begin + (count * index >> log_pieces), of.begin + (count * (index + 1) >> log_pieces)};
}

constexpr int64_t block_rows(const Plan& plan) { return (kWarps >> plan.log_warps_k) * row_tiles(plan.tokens) * 16; }
constexpr int64_t row_blocks(const Plan& plan, int64_t n) { return ceil_div(n, block_rows(plan)); }

// ---- shared memory

// From one row of x to the next: eight rows lie in different banks.
constexpr int64_t x_pitch(int64_t chunk, int64_t bytes) { return bytes * chunk + 16; }
// Sums of a warp: [tokens][rows of the warp + 4 so that a fragment's lie in different banks].
constexpr int sum_pitch(int tokens) { return 16 * row_tiles(tokens) + 4; }
constexpr int64_t sum_bytes(int tokens) { return int64_t{4} * kWarps * tokens * sum_pitch(tokens); }

constexpr int64_t kMostShared = 98304;  // what every device from sm_80 on gives a block

constexpr int64_t shared_bytes(const Plan& plan, int64_t m, int64_t bytes) {
  const int64_t x = (m < plan.tokens ? m : plan.tokens) * x_pitch(plan.chunk, bytes), sums = sum_bytes(plan.tokens);
  return x > sums ? x : sums;
}

// ---- workspace: sums that are added up through memory, and the planes of an fp32 x

constexpr int slabs_of(const Plan& plan, bool cluster, bool f32) {
  return (cluster ? 1 : plan.split()) * (f32 ? kPlanes : 1);
}
constexpr int64_t workspace_floats(const Plan& plan, bool cluster, bool f32, int64_t m, int64_t n, int64_t k) {
  const int slabs = slabs_of(plan, cluster, f32);
  return (slabs > 1 ? ceil_div(slabs * m * n, 4) * 4 : 0) + (f32 ? ceil_div(kPlanes * m * k, 2) : 0);
}

// ---- which plan: a cost model of one device, in ns, no measurement at run time. `config` picks warps_k and split
// instead: 4 * log2(warps_k) + log2(split).

constexpr int kConfigs = 16;

// k in units of 128 that a block, or a warp, gets at most.
constexpr int64_t block_units(const Plan& plan, int64_t k) { return ceil_div(ceil_div(k, 128), plan.split()); }

constexpr Plan plan_of(int config, const Shape& shape) {
  // Sums that are scaled after each 8 columns have a kernel for 16 tokens only.
  const bool odd_group = span_of(shape.group, shape.k) == 8;
  Plan plan{odd_group ? 16 : shape.m <= 8 ? 8 : shape.m <= 16 ? 16 : 32, config / 4, config % 4, 0};
  const int64_t rows = shape.m < plan.tokens ? shape.m : plan.tokens;
  const int64_t fitting = (kMostShared / rows - 16) / (128 * shape.x_bytes), wanted = block_units(plan, shape.k);
  plan.chunk = 128 * (wanted < fitting ? wanted : fitting);
  return plan;
}

constexpr double cost_of(const Plan& plan, const Shape& shape, const Device& device) {
  const int64_t tokens = shape.m < plan.tokens ? shape.m : plan.tokens;
  const int64_t blocks = row_blocks(plan, shape.n) * plan.split() * ceil_div(shape.m, plan.tokens);
  const int64_t columns =
      128 * plan.warps_k() * ceil_div(block_units(plan, shape.k), plan.warps_k());  // idle warps' too
  const double scales = shape.group < shape.k ? 4.0 / static_cast<double>(shape.group) : 0;
  const double weights = static_cast<double>(block_rows(plan) * columns) * (0.5 + scales);
  const double x = static_cast<double>(tokens * columns * shape.x_bytes) / 2;  // from L2, twice as fast
  const int64_t waves = ceil_div(blocks, device.multiprocessors);
  // What a block gets of the memory's rate, and at most the 48 KB that it has in flight each 1200 ns; decoding would
  // allow 57 at 1.7 GHz.
  const double fair = device.bytes_per_ns * static_cast<double>(waves) / static_cast<double>(blocks);
  const double rate = fair < 40 ? fair : 40;
  // 70% of the tensor cores' peak, from where reading no longer binds.
  const double multiplies = static_cast<double>(block_rows(plan) * columns * plan.tokens * shape.x_bytes) / 2;
  const double compute = multiplies / (0.7 * device.multiplies_per_ns), read = (weights + x) / rate;
  const double passes = static_cast<double>(ceil_div(128 * block_units(plan, shape.k), plan.chunk));
  const double add = (plan.log_warps_k ? 300 : 0) + (plan.log_split ? 800 + 100 * plan.split() : 0);
  return static_cast<double>(waves) * ((read > compute ? read : compute) + 700 + 300 * passes) + add;
}

// Whether all blocks and warps have columns.
constexpr bool differs(int config, const Shape& shape) {
  const Plan plan = plan_of(config, shape);
  return plan.split() * plan.warps_k() <= ceil_div(shape.k, 128);
}

constexpr Plan choose(const Shape& shape, const Device& device) {
  Plan best = plan_of(0, shape);
  double least = cost_of(best, shape, device);
  for (int config = 1; config < kConfigs; ++config) {
    if (!differs(config, shape)) continue;
    const Plan plan = plan_of(config, shape);
    const double cost = cost_of(plan, shape, device);
    if (cost >= least) continue;
    best = plan;
    least = cost;
  }
  return best;
}

}  // namespace aoq::int4_skinny
