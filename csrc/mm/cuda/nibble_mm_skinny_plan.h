// Which of the plans for few rows of x (mm/cuda/skinny_plan.h) matmuls with weights of one to four bits a code take.
#pragma once
#include <cstdint>

#include "mm/cuda/skinny_plan.h"

namespace aoq::nibble_skinny {

using namespace skinny;

// Tiles along k of each tile of rows that a warp has in flight: 4 to 8 KB a warp. Scales after each 8 columns take
// registers, and longer than memory does.
constexpr int tiles_ahead(int tokens, int span) { return span == 8 ? 2 : tokens == 16 ? 6 : 4; }

constexpr int64_t kMostShared = 98304;  // what every device from sm_80 on gives a block

constexpr Plan plan_of(int config, const Shape& shape) {
  // Sums that are scaled after each 8 columns have a kernel for 16 tokens only.
  const bool odd_group = span_of(shape.group, shape.k) == 8;
  const int tokens = odd_group ? 16 : shape.m <= 8 ? 8 : shape.m <= 16 ? 16 : 32;
  return skinny::plan_of(config, tokens, shape, kMostShared);
}

constexpr double cost_of(const Plan& plan, const Shape& shape, const Device& device) {
  const int64_t tokens = shape.m < plan.tokens ? shape.m : plan.tokens;
  const int64_t blocks = row_blocks(plan, shape.n) * plan.split() * ceil_div(shape.m, plan.tokens);
  const int64_t columns =
      128 * plan.warps_k() * ceil_div(block_units(plan, shape.k), plan.warps_k());  // idle warps' too
  const double scales = shape.group < shape.k ? 4.0 / static_cast<double>(shape.group) : 0;
  const double weights =
      static_cast<double>(block_rows(plan) * columns) * (static_cast<double>(shape.w_bits) / 8 + scales);
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

constexpr bool differs(int config, const Shape& shape) { return skinny::differs(plan_of(config, shape), shape.k); }

constexpr Plan choose(const Shape& shape, const Device& device) {
  return cheapest(
      shape, [&](int config) { return plan_of(config, shape); },
      [&](const Plan& plan) { return cost_of(plan, shape, device); });
}

}  // namespace aoq::nibble_skinny
