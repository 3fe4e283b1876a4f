// What the plans of CUDA matmuls with packed weights have in common: constexpr, so that the host plans and tests what
// the device walks.
#pragma once
#include <cstdint>

#include "mm/packed_mm.h"

namespace aoq {

// What a cost model, in ns, knows of a device.
struct Device {
  int multiprocessors;
  double bytes_per_ns;       // of memory, all multiprocessors together
  double multiplies_per_ns;  // of 16-bit floats by mma.sync, a multiprocessor; twice as many of bytes
};

struct Shape {
  int64_t m, n, k, group;
  int64_t w_bits;       // of a weight's code
  int64_t x_bytes = 2;  // of an activation
};

// The columns after which sums are scaled: groups begin and end there only.
constexpr int span_of(int64_t group, int64_t k) {
  if (group >= k || group % 128 == 0) return 128;
  return group % 64 == 0 ? 64 : group % 32 == 0 ? 32 : 8;
}

struct Share {
  int64_t begin, end;
};

// The plan of least cost among the first `configs` of of_config; a config that does not differ is another's plan.
template <class OfConfig, class Differs, class Cost>
constexpr auto cheapest(int configs, OfConfig of_config, Differs differs, Cost cost_of) {
  auto best = of_config(0);
  double least = cost_of(best);
  for (int config = 1; config < configs; ++config) {
    const auto plan = of_config(config);
    if (!differs(plan)) continue;
    const double cost = cost_of(plan);
    if (cost >= least) continue;
    best = plan;
    least = cost;
  }
  return best;
}

constexpr int kPlanes = 3;  // of bf16, whose sum is an fp32 x; their products with w are added up as slabs are

// Whether 16-bit rows of x have to be copied: to whole, aligned sixteen bytes that do not overlap, or from fp32.
inline bool needs_copy(const PackedMm& p) {
  return p.x.dtype == Dtype::f32 || p.k % 8 || p.x.stride % 8 || p.x.stride < p.k ||
         reinterpret_cast<uintptr_t>(p.x.data) % 16;
}

}  // namespace aoq
