// How a CUDA matmul of few rows of x (skinny) is shared out: constexpr, so that the host plans and tests what the
// device walks.
//
//   A block is eight warps: 8 / warps_k side by side along n, each with row_tiles tiles of sixteen rows, times warps_k
//   along k. `split` blocks share a stretch of rows along k as well; they are a cluster, or add up through memory.
//
//          k -->        block 0        |        block 1        |  ...  split - 1
//        +-----------+-----------+-----------+-----------+
//    n   |  warp 0   |  warp 4   |  warp 0   |  warp 4   |       warps_k = 2: four warps along n
//    |   +-----------+-----------+-----------+-----------+
//    v   |  warp 1   |  warp 5   |  warp 1   |  warp 5   |
#pragma once
#include <cstdint>

#include "mm/cuda/packed_mm_plan.h"

namespace aoq::skinny {

constexpr int kWarps = 8, kThreads = 32 * kWarps;

// tokens: rows of x that a block multiplies at once, 8, 16 or 32.
// More tokens need more accumulators: fewer tiles of rows.
constexpr int row_tiles(int tokens) { return tokens == 8 ? 4 : 2; }

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

// x takes at most `most` bytes of shared memory.
constexpr Plan plan_of(int config, int tokens, const Shape& shape, int64_t most) {
  Plan plan{tokens, config / 4, config % 4, 0};
  const int64_t rows = shape.m < tokens ? shape.m : tokens;
  const int64_t fitting = (most / rows - 16) / (128 * shape.x_bytes), wanted = block_units(plan, shape.k);
  plan.chunk = 128 * (wanted < fitting ? wanted : fitting);
  return plan;
}

// Whether all blocks and warps have columns: then no other config is the same plan.
constexpr bool differs(const Plan& plan, int64_t k) { return plan.split() * plan.warps_k() <= ceil_div(k, 128); }

// The plan of least cost, of those that `of_config` gives.
template <class OfConfig, class Cost>
constexpr Plan cheapest(const Shape& shape, OfConfig of_config, Cost cost_of) {
  return aoq::cheapest(kConfigs, of_config, [&](const Plan& plan) { return differs(plan, shape.k); }, cost_of);
}

}  // namespace aoq::skinny
