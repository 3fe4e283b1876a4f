// Which plans matmuls with rows of 8-bit codes take on CUDA: those of mm/cuda/skinny_plan.h for few rows of x, of
// mm/cuda/wide_plan.h for many.
#pragma once
#include <cstdint>

#include "mm/cuda/experts.h"
#include "mm/cuda/skinny_plan.h"
#include "mm/cuda/wide_plan.h"

namespace aoq::weight_skinny {

using namespace skinny;

constexpr int kAhead = 2;  // steps of 64 columns of its rows that a warp has in flight, 4 to 8 KB each
// Of x: two blocks share a multiprocessor.
constexpr int64_t kMostShared = 49152;

constexpr Plan plan_of(int config, const Shape& shape) {
  return skinny::plan_of(config, shape.m <= 8 ? 8 : shape.m <= 16 ? 16 : 32, shape, kMostShared);
}

constexpr double cost_of(const Plan& plan, const Shape& shape, const Device& device) {
  const int64_t tokens = shape.m < plan.tokens ? shape.m : plan.tokens;
  const int64_t blocks = row_blocks(plan, shape.n) * plan.split() * ceil_div(shape.m, plan.tokens);
  const int64_t columns =
      128 * plan.warps_k() * ceil_div(block_units(plan, shape.k), plan.warps_k());  // idle warps' too
  const int64_t slots = int64_t{2} * device.multiprocessors, waves = ceil_div(blocks, slots);
  const int64_t busy = blocks < slots ? blocks : slots;                                // blocks that run at a time
  const double sharing = static_cast<double>(ceil_div(busy, device.multiprocessors));  // of a multiprocessor
  const double weights = static_cast<double>(block_rows(plan) * columns);
  const double x = static_cast<double>(tokens * columns * shape.x_bytes) / 2;  // from L2, twice as fast
  // What a block gets of the memory's rate, at most 24 bytes a ns with 64 KB in flight (8 tokens) or 16 with 32, and
  // its part of the 70 weights that a multiprocessor decodes each ns.
  const double fair = device.bytes_per_ns / static_cast<double>(busy), flight = plan.tokens == 8 ? 24 : 16;
  const double own = flight < 70 / sharing ? flight : 70 / sharing;
  const double read = (weights + x) / (fair < own ? fair : own);
  // 70% of the tensor cores' peak, from where reading no longer binds.
  const double multiplies = static_cast<double>(block_rows(plan) * columns * plan.tokens);
  const double compute = multiplies / (0.7 * device.multiplies_per_ns) * sharing;
  const double passes = static_cast<double>(ceil_div(128 * block_units(plan, shape.k), plan.chunk));
  const double add = (plan.log_warps_k ? 300 : 0) + (plan.log_split ? 800 + 100 * plan.split() : 0);
  return static_cast<double>(waves) * ((read > compute ? read : compute) + 700 + 300 * passes) + add;
}

constexpr Plan choose(const Shape& shape, const Device& device) {
  return cheapest(
      shape, [&](int config) { return plan_of(config, shape); },
      [&](const Plan& plan) { return cost_of(plan, shape, device); });
}

}  // namespace aoq::weight_skinny

namespace aoq::weight_wide {

using namespace wide;

// ---- shared memory: stages of 64 columns of x and of weights; then sums

constexpr int kXBytes = 128, kWeightBytes = 64;  // of a row in a stage
// In shared memory, all but one on their way while that is multiplied.
constexpr int stages(int tokens) { return tokens == 64 ? 3 : 4; }
constexpr int stage_bytes(int tokens) { return tokens * kXBytes + kRows * kWeightBytes; }
constexpr int shared_bytes(int tokens) {
  const int copies = stages(tokens) * stage_bytes(tokens), sums = sum_bytes(tokens);
  return copies > sums ? copies : sums;
}
static_assert(shared_bytes(128) <= 99 * 1024 && 2 * (shared_bytes(64) + 1024) <= 100 * 1024,
              "one block of 128 tokens, two of 64 fit an sm_86 and an sm_89, which have the least");

constexpr double cost_of(const Plan& plan, const Shape& shape, const Device& device) {
  // 85% of the peak at best, less where a decoded weight serves half as many tokens.
  const double multiplies = 128.0 * kRows * plan.tokens / (plan.tokens == 64 ? 0.7 : 0.85);
  const Unit unit{multiplies, 128.0 * kRows, 256.0 * plan.tokens, stages(plan.tokens), stage_bytes(plan.tokens)};
  return wide::cost_of(plan, shape, device, unit);
}

constexpr Plan choose(const Shape& shape, const Device& device) {
  return cheapest(shape, [&](const Plan& plan) { return cost_of(plan, shape, device); });
}

// Whether it beats the skinny plans; `before`: kernels that prepare x for it.
constexpr bool pays(const Shape& shape, const Device& device, int before) {
  return shape.m > 32 && cost_of(choose(shape, device), shape, device) + 2000.0 * before <
                             weight_skinny::cost_of(weight_skinny::choose(shape, device), shape, device);
}

}  // namespace aoq::weight_wide

// ---- all plans by one number, the op's `config`: skinny's, then wide's

namespace aoq::weight {

constexpr int kFirstWide = weight_skinny::kConfigs, kConfigs = kFirstWide + weight_wide::kConfigs;

struct Choice {
  bool wide;
  skinny::Plan few;  // of the two the one that `wide` says
  wide::Plan many;
};

// config: below kConfigs, or -1 for the cost models' choice; `before`: kernels that prepare x where there are many
// rows.
constexpr Choice choose(const Shape& shape, int before, const Device& device, int config) {
  if (config < 0 ? weight_wide::pays(shape, device, before) : config >= kFirstWide)
    return {true, {}, config < 0 ? weight_wide::choose(shape, device) : weight_wide::plan_of(config - kFirstWide)};
  return {false, config < 0 ? weight_skinny::choose(shape, device) : weight_skinny::plan_of(config, shape), {}};
}

constexpr bool differs(const Shape& shape, int config) {
  const Choice choice = choose(shape, 0, {}, config);
  return choice.wide ? wide::differs(choice.many, shape.k) : skinny::differs(choice.few, shape.k);
}

// ---- of experts: plans whose blocks share no rows along k

constexpr bool takes_experts(int config) {
  return config < kFirstWide ? config % 4 == 0 : weight_wide::plan_of(config - kFirstWide).split == 1;
}

// shape.m: rows of x in all, k and n of an expert. config: one that takes_experts, or -1 for the cost models' choice.
constexpr Choice choose_for_experts(Shape shape, int64_t experts, int before, const Device& device, int config) {
  const int64_t m = shape.m;
  shape.m = rows_of_expert(m, experts);
  shape.n *= experts_with_rows(m, experts);
  if (config >= 0) return choose(shape, before, device, config);
  Choice best = choose(shape, before, device, 0);
  double least = weight_skinny::cost_of(best.few, shape, device);
  for (int one = 1; one < kConfigs; ++one) {
    if (!takes_experts(one) || !differs(shape, one)) continue;
    const Choice choice = choose(shape, before, device, one);
    if (choice.wide && shape.m <= 32) continue;  // most of a tile would be empty
    const double cost = choice.wide ? weight_wide::cost_of(choice.many, shape, device) + 2000.0 * before
                                    : weight_skinny::cost_of(choice.few, shape, device);
    if (cost >= least) continue;
    best = choice;
    least = cost;
  }
  return best;
}

}  // namespace aoq::weight
