// What blocks for many rows of x (mm/cuda/wide_plan.h) and weights of one to four bits a code have in shared memory,
// and which plan they take.
#pragma once
#include <cstdint>

#include "mm/cuda/nibble_mm_skinny_plan.h"
#include "mm/cuda/wide_plan.h"

namespace aoq::nibble_wide {

using namespace wide;

constexpr int kXBytes = 128;  // of a row of x in a stage: 64 columns of 16-bit floats, 128 of bytes
// In shared memory, all but one on their way while that is multiplied.
constexpr int stages(int x_bytes) { return x_bytes == 2 ? 4 : 3; }

// ---- shared memory: stages of x, weights and sums of x, each at a multiple of 128 bytes; then sums of w * x

constexpr int weight_bytes(int x_bytes, int w_bits) { return kRows * kXBytes / x_bytes * w_bits / 8; }  // of a stage
constexpr int most_spans(int x_bytes) { return kXBytes / x_bytes / 32; }
constexpr int stage_bytes(int tokens, int x_bytes, int w_bits) {
  return tokens * kXBytes + weight_bytes(x_bytes, w_bits) + 4 * tokens * most_spans(x_bytes);
}
constexpr int shared_bytes(int tokens, int x_bytes, int w_bits) {
  const int copies = stages(x_bytes) * stage_bytes(tokens, x_bytes, w_bits), sums = sum_bytes(tokens);
  return copies > sums ? copies : sums;
}
static_assert(shared_bytes(128, 2, 4) <= 99 * 1024 && shared_bytes(128, 1, 4) <= 99 * 1024,
              "what sm_86 and sm_89 give a block");
static_assert(2 * (shared_bytes(64, 1, 4) + 1024) <= 164 * 1024, "two blocks of 64 tokens fit an sm_80");

// Sums are scaled after 32 columns at the least.
constexpr bool takes(const Shape& shape) { return span_of(shape.group, shape.k) >= 32; }

constexpr double cost_of(const Plan& plan, const Shape& shape, const Device& device) {
  const int x_bytes = static_cast<int>(shape.x_bytes), w_bits = static_cast<int>(shape.w_bits);
  // 85% of the peak at best, less where a decoded weight serves half as many tokens; and a multiply-add of each sum for
  // its scale, an eighth as fast as a tensor core's.
  const double span = static_cast<double>(span_of(shape.group, shape.k));
  const double multiplies =
      128.0 * kRows * plan.tokens * (x_bytes / 2.0 + 8 / span) / (plan.tokens == 64 ? 0.75 : 0.85);
  const Unit unit{multiplies, 16.0 * w_bits * kRows, 128.0 * plan.tokens * x_bytes, stages(x_bytes),
                  stage_bytes(plan.tokens, x_bytes, w_bits)};
  return wide::cost_of(plan, shape, device, unit);
}

constexpr Plan choose(const Shape& shape, const Device& device) {
  return cheapest(shape, [&](const Plan& plan) { return cost_of(plan, shape, device); });
}

// Whether it beats the skinny plans; `before`: kernels that prepare x for it.
constexpr bool pays(const Shape& shape, const Device& device, int before) {
  return shape.m > 32 && takes(shape) &&
         cost_of(choose(shape, device), shape, device) + 2000.0 * before <
             nibble_skinny::cost_of(nibble_skinny::choose(shape, device), shape, device);
}

}  // namespace aoq::nibble_wide
