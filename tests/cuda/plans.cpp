// The plans of matmuls on CUDA, as plan_library.py asks for them.
#include "mm/cuda/nibble_mm_config.h"
#include "mm/cuda/weight_mm_plan.h"

using namespace aoq;

extern "C" {

// {cost, tokens, split} of the wide plan that is chosen.
void wide_plan(const Shape* shape, const Device* device, double* plan) {
  const nibble_wide::Plan chosen = nibble_wide::choose(*shape, *device);
  plan[0] = nibble_wide::cost_of(chosen, *shape, *device);
  plan[1] = chosen.tokens;
  plan[2] = chosen.split;
}

// {tokens, chunk} of the skinny plan of `config`.
void skinny_plan(const Shape* shape, int config, int64_t* plan) {
  const nibble_skinny::Plan made = nibble_skinny::plan_of(config, *shape);
  plan[0] = made.tokens;
  plan[1] = made.chunk;
}

// Floats of workspace; m: rows of x, `planes` of each.
int64_t skinny_workspace(const Shape* shape, int log_split, bool cluster, bool f32) {
  return nibble_skinny::workspace_floats({8, 0, log_split, 128}, cluster, f32, shape->m, shape->n, shape->k);
}
int64_t wide_workspace(const Shape* shape, int split, int planes, bool copies, bool zero) {
  return nibble_wide::workspace_of({64, split}, *shape, planes, copies, zero).end;
}
int64_t wgmma_workspace(const Shape* shape, int planes, bool copies, bool zero) {
  return nibble_wgmma::workspace_of(*shape, planes, copies, zero).end;
}

double skinny_cost(const Shape* shape, const Device* device) {
  return nibble_skinny::cost_of(nibble_skinny::choose(*shape, *device), *shape, *device);
}

bool wide_pays(const Shape* shape, const Device* device, int before) {
  return nibble_wide::pays(*shape, *device, before);
}

void wide_place(uint32_t block, uint32_t row_blocks, uint32_t token_blocks, int64_t* place) {
  const nibble_wide::Place at = nibble_wide::place_of(block, row_blocks, token_blocks);
  place[0] = at.rows;
  place[1] = at.tokens;
}

void wide_share(int64_t count, int64_t index, int64_t pieces, int64_t* share) {
  const Share part = nibble_wide::share(count, index, pieces);
  share[0] = part.begin;
  share[1] = part.end;
}

// {cost, tokens, halves, split, stages, shared_bytes} of wgmma's plan: of the one of `config`, or the chosen one.
void wgmma_plan(const Shape* shape, const Device* device, bool zero, int scale_bytes, int config, double* plan) {
  const nibble_wgmma::Plan chosen = config < 0 ? nibble_wgmma::choose(*shape, *device, zero, scale_bytes)
                                               : nibble_wgmma::plan_of(config, *shape, zero, scale_bytes);
  const int span = span_of(shape->group, shape->k);
  const nibble_wgmma::Stage stage =
      nibble_wgmma::stage_of(chosen.tokens, chosen.halves, span, zero, static_cast<int>(shape->x_bytes),
                             static_cast<int>(shape->w_bits), scale_bytes);
  const double values[] = {nibble_wgmma::cost_of(chosen, *shape, *device),
                           0.0 + chosen.tokens,
                           0.0 + chosen.halves,
                           0.0 + chosen.split,
                           0.0 + chosen.stages,
                           0.0 + nibble_wgmma::shared_bytes(chosen, stage)};
  for (int i = 0; i < 6; ++i) plan[i] = values[i];
}

bool wgmma_pays(const Shape* shape, const Device* device, int before) {
  return nibble_wgmma::pays(*shape, *device, before);
}

void wgmma_tile(int64_t index, int64_t row_tiles, int64_t token_tiles, int64_t* tile) {
  const nibble_wgmma::Tile at = nibble_wgmma::tile_of(index, row_tiles, token_tiles);
  tile[0] = at.row;
  tile[1] = at.token;
}

void wgmma_steps(int64_t k, int split, int rank, int64_t* steps) {
  const nibble_wgmma::Steps part = nibble_wgmma::steps_of(k, split, rank);
  steps[0] = part.begin;
  steps[1] = part.end;
}

int configs(const nibble_config::Problem* problem) { return nibble_config::configs(*problem); }

bool differs(const nibble_config::Problem* problem, int config) { return nibble_config::differs(*problem, config); }

// {kernels, tokens, log_warps_k or halves, split} of a config, or of the chosen one.
void choice(const nibble_config::Problem* problem, const Device* device, int config, int* plan) {
  const nibble_config::Choice chosen = nibble_config::choose(*problem, *device, config);
  plan[0] = static_cast<int>(chosen.kernels);
  switch (chosen.kernels) {
    case nibble_config::Kernels::skinny:
      plan[1] = chosen.skinny.tokens;
      plan[2] = chosen.skinny.log_warps_k;
      plan[3] = chosen.skinny.split();
      break;
    case nibble_config::Kernels::wide:
      plan[1] = chosen.wide.tokens;
      plan[2] = 0;
      plan[3] = chosen.wide.split;
      break;
    case nibble_config::Kernels::wgmma:
      plan[1] = chosen.wgmma.tokens;
      plan[2] = chosen.wgmma.halves;
      plan[3] = chosen.wgmma.split;
      break;
  }
}

// ---- int8_weight_mm and fp8_weight_mm

int weight_configs() { return weight::kConfigs; }

bool weight_differs(const Shape* shape, int config) { return weight::differs(*shape, config); }

// {tokens, chunk} of a config for few rows.
void weight_plan(const Shape* shape, int config, int64_t* plan) {
  const skinny::Plan of_config = weight_skinny::plan_of(config, *shape);
  plan[0] = of_config.tokens;
  plan[1] = of_config.chunk;
}

// {wide, tokens, log_warps_k, split, shared_bytes, cost} of a config, or of the chosen one.
void weight_choice(const Shape* shape, const Device* device, int config, double* plan) {
  const weight::Choice chosen = weight::choose(*shape, 0, *device, config);
  const auto& [wide, few, many] = chosen;
  plan[0] = wide;
  plan[1] = wide ? many.tokens : few.tokens;
  plan[2] = wide ? 0 : few.log_warps_k;
  plan[3] = wide ? many.split : few.split();
  plan[4] = wide ? weight_wide::shared_bytes(many.tokens) : static_cast<double>(skinny::shared_bytes(few, shape->m, 2));
  plan[5] = wide ? weight_wide::cost_of(many, *shape, *device) : weight_skinny::cost_of(few, *shape, *device);
}

}  // extern "C"
