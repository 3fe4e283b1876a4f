// How a CUDA matmul of many rows of x (wide) is shared out: constexpr, so that the host plans and tests what the device
// walks.
//
//   A block multiplies kRows rows of w with `tokens` rows of x; four warps side by side along w, two along x. `split`
//   blocks share its columns, in whole units of 128, and add up through memory.
//   Blocks are numbered along x within stripes of kStripe of them, then along w, so that those which run at a time read
//   the same weights and rows of x, from L2:
//
//            w -->
//        x   0  4  8 ..
//        |   1  5  9
//        v   2  6 10
//            3  7 11
//           .. the next stripe
#pragma once
#include <cstdint>

#include "mm/cuda/packed_mm_plan.h"

namespace aoq::wide {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kWarpsN = 4;
constexpr int kRows = 128, kStripe = 4;

struct Plan {
  int tokens, split;  // 64 or 128; 1 ..
};

struct Place {
  int64_t rows, tokens;  // which block of kRows, of `tokens`
};
constexpr Place place_of(uint32_t block, uint32_t row_blocks, uint32_t token_blocks) {
  const uint32_t stripe = block / (kStripe * row_blocks), in_stripe = block % (kStripe * row_blocks);
  const uint32_t first = stripe * kStripe, left = token_blocks - first, width = left < kStripe ? left : kStripe;
  return {in_stripe / width, first + in_stripe % width};
}

// Piece `index` of `pieces` as equal as can be.
constexpr Share share(int64_t count, int64_t index, int64_t pieces) {
  return {count * index / pieces, count * (index + 1) / pieces};
}

constexpr int64_t row_blocks(int64_t n) { return ceil_div(n, kRows); }
constexpr int64_t token_blocks(const Plan& plan, int64_t m) { return ceil_div(m, plan.tokens); }

// ---- through shared memory to out

constexpr int kSumPitch = kRows + 4;  // a fragment's sums lie in different banks
constexpr int sum_bytes(int tokens) { return 4 * tokens * kSumPitch; }

// ---- workspace, in floats: sums that are added up through memory, then x where it has to be copied (fp32 as planes,
// or rows that are not whole aligned sixteen bytes), then the sums of x over each span that zero points take

struct Workspace {
  int64_t copy, x_sum, end;  // where each begins
};
constexpr int64_t copy_pitch(int64_t k) { return ceil_div(k, 8) * 8; }
constexpr int64_t spans_of(int64_t group, int64_t k) { return ceil_div(k, span_of(group, k)); }

constexpr Workspace workspace_of(const Plan& plan, const Shape& shape, int planes, bool copies, bool zero) {
  const int64_t slabs = plan.split * planes, rows = planes * shape.m;
  const int64_t copy = slabs > 1 ? ceil_div(slabs * shape.m * shape.n, 4) * 4 : 0;
  const int64_t x_sum = copy + (copies ? rows * copy_pitch(shape.k) / 2 : 0);
  return {copy, x_sum, x_sum + (zero ? rows * spans_of(shape.group, shape.k) : 0)};
}

// ---- which plan: a cost model, in ns, no measurement at run time. `config` picks tokens and split instead.

constexpr int kSplits[] = {1, 2, 3, 4, 6, 8, 12, 16};
constexpr int kConfigs = 16;

constexpr Plan plan_of(int config) { return {config < 8 ? 64 : 128, kSplits[config % 8]}; }

// Whether all blocks have columns: then no other config is the same plan.
constexpr bool differs(const Plan& plan, int64_t k) { return plan.split <= ceil_div(k, 128); }

// What a unit of 128 columns takes of a block.
struct Unit {
  double multiplies;  // at the tensor cores' peak
  double weights, x;  // bytes
  int stages, stage_bytes;
};

// Of a block: what bounds its k loop, and what comes before and after it.
constexpr double cost_of(const Plan& plan, const Shape& shape, const Device& device, const Unit& unit) {
  const int64_t blocks = row_blocks(shape.n) * token_blocks(plan, shape.m) * plan.split;
  const int64_t units = ceil_div(ceil_div(shape.k, 128), plan.split);
  const int at_once = plan.tokens == 64 ? 2 : 1;  // blocks of a multiprocessor
  const int64_t slots = int64_t{at_once} * device.multiprocessors, waves = ceil_div(blocks, slots);
  const int64_t busy = blocks < slots ? blocks : slots;                                // blocks that run at a time
  const double sharing = static_cast<double>(ceil_div(busy, device.multiprocessors));  // of a multiprocessor
  const double compute = unit.multiplies / device.multiplies_per_ns * sharing;
  // Weights come from memory once for the token blocks that run together, x from L2 three times as fast.
  const int64_t together = token_blocks(plan, shape.m) < kStripe ? token_blocks(plan, shape.m) : kStripe;
  const double fair = device.bytes_per_ns / static_cast<double>(busy);
  const double in_flight = (unit.stages - 1) * unit.stage_bytes / 1000.0;
  const double memory =
      (unit.weights / static_cast<double>(together) + unit.x / 3) / (fair < in_flight ? fair : in_flight);
  const double slower = compute > memory ? compute : memory;
  const double out = 4.0 * static_cast<double>(shape.m * shape.n) / (3 * device.bytes_per_ns);
  const double add = plan.split > 1 ? 1500 + 2 * plan.split * out : 0;
  return static_cast<double>(waves) * (static_cast<double>(units) * slower + 1500 + 8.0 * plan.tokens) + add;
}

// The plan of least cost.
template <class Cost>
constexpr Plan cheapest(const Shape& shape, Cost cost_of) {
  return aoq::cheapest(kConfigs, plan_of, [&](const Plan& plan) { return differs(plan, shape.k); }, cost_of);
}

}  // namespace aoq::wide
