// Which plan of which kernels multiplies with weights of one to four bits a code on CUDA: constexpr, so that the host
// tests what the device gets. The op's `config` counts the plans of all: skinny's, then wide's, then wgmma's.
#pragma once
#include "mm/cuda/experts.h"
#include "mm/cuda/nibble_mm_skinny_plan.h"
#include "mm/cuda/nibble_mm_wgmma_plan.h"
#include "mm/cuda/nibble_mm_wide_plan.h"

namespace aoq::nibble_config {

constexpr int kFirstWide = nibble_skinny::kConfigs, kFirstWgmma = kFirstWide + nibble_wide::kConfigs;
constexpr int kConfigs = kFirstWgmma + nibble_wgmma::kConfigs;

struct Problem {
  Shape shape;      // m: of x's planes together
  bool zero;        // there are zero points
  int scale_bytes;  // of a scale
  int before;       // kernels that prepare x where there are many rows
  bool hopper;      // wgmma's kernels run here, and the operands are aligned as they need it
};

enum class Kernels { skinny, wide, wgmma };

struct Choice {
  Kernels kernels;
  nibble_skinny::Plan skinny;  // of the three the one that `kernels` says
  nibble_wide::Plan wide;
  nibble_wgmma::Plan wgmma;
};

// How many configs there are for this problem. Those that need groups of 32 columns, or Hopper, come last.
constexpr int configs(const Problem& p) {
  if (p.hopper && nibble_wgmma::takes(p.shape)) return kConfigs;
  return nibble_wide::takes(p.shape) ? kFirstWgmma : kFirstWide;
}

// `config`: below configs(p), or -1 for the cost models' choice.
constexpr Choice choose(const Problem& p, const Device& device, int config) {
  const bool wgmma =
      config < 0 ? configs(p) == kConfigs && nibble_wgmma::pays(p.shape, device, p.before) : config >= kFirstWgmma;
  if (wgmma)
    return {Kernels::wgmma,
            {},
            {},
            config < 0 ? nibble_wgmma::choose(p.shape, device, p.zero, p.scale_bytes)
                       : nibble_wgmma::plan_of(config - kFirstWgmma, p.shape, p.zero, p.scale_bytes)};
  if (config < 0 ? nibble_wide::pays(p.shape, device, p.before) : config >= kFirstWide)
    return {Kernels::wide,
            {},
            config < 0 ? nibble_wide::choose(p.shape, device) : nibble_wide::plan_of(config - kFirstWide),
            {}};
  return {Kernels::skinny,
          config < 0 ? nibble_skinny::choose(p.shape, device) : nibble_skinny::plan_of(config, p.shape),
          {},
          {}};
}

// Whether a config is worth a trial: all of its blocks and warps have columns, and no other config is the same plan.
constexpr bool differs(const Problem& p, int config) {
  if (config >= kFirstWgmma) {
    const int split = 1 << (config - kFirstWgmma) % nibble_wgmma::kSplits;
    return split <= ceil_div(p.shape.k, nibble_wgmma::kStepK);
  }
  if (config >= kFirstWide) return wide::differs(wide::plan_of(config - kFirstWide), p.shape.k);
  return nibble_skinny::differs(config, p.shape);
}

// ---- of experts: plans of skinny and wide whose blocks share no rows along k

constexpr bool takes_experts(int config) {
  return config < kFirstWide    ? nibble_skinny::plan_of(config, {1, 1, 1, 1, 4}).log_split == 0
         : config < kFirstWgmma ? wide::plan_of(config - kFirstWide).split == 1
                                : false;
}

// m: rows of x in all. config: one that takes_experts, or -1 for the cost models' choice.
constexpr Choice choose_for_experts(const Problem& p, int64_t m, int64_t experts, const Device& device, int config) {
  Shape shape = p.shape;
  shape.m = rows_of_expert(m, experts);
  shape.n *= experts_with_rows(m, experts);
  Problem problem = p;
  problem.shape = shape;
  if (config >= 0) return choose(problem, device, config);
  Choice best = choose(problem, device, 0);
  double least = nibble_skinny::cost_of(best.skinny, shape, device);
  for (int one = 1; one < configs(problem) && one < kFirstWgmma; ++one) {
    if (!takes_experts(one) || !differs(problem, one)) continue;
    const Choice choice = choose(problem, device, one);
    const bool wide = choice.kernels == Kernels::wide;
    if (wide && shape.m <= 32) continue;  // most of a tile would be empty
    const double cost = wide ? nibble_wide::cost_of(choice.wide, shape, device) + 2000.0 * p.before
                             : nibble_skinny::cost_of(choice.skinny, shape, device);
    if (cost >= least) continue;
    best = choice;
    least = cost;
  }
  return best;
}

}  // namespace aoq::nibble_config
