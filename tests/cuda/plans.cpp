// The plans of int4_mm on CUDA, as test_int4_mm_plan.py asks for them.
#include "int4_mm/int4_mm_wide_plan.h"

using namespace aoq;

extern "C" {

// {cost, tokens, split} of the wide plan that is chosen.
void wide_plan(const Shape* shape, const Device* device, double* plan) {
  const int4_wide::Plan chosen = int4_wide::choose(*shape, *device);
  plan[0] = int4_wide::cost_of(chosen, *shape, *device);
  plan[1] = chosen.tokens;
  plan[2] = chosen.split;
}

double skinny_cost(const Shape* shape, const Device* device) {
  return int4_skinny::cost_of(int4_skinny::choose(*shape, *device), *shape, *device);
}

bool wide_pays(const Shape* shape, const Device* device, int before) {
  return int4_wide::pays(*shape, *device, before);
}

void wide_place(uint32_t block, uint32_t row_blocks, uint32_t token_blocks, int64_t* place) {
  const int4_wide::Place at = int4_wide::place_of(block, row_blocks, token_blocks);
  place[0] = at.rows;
  place[1] = at.tokens;
}

void wide_share(int64_t count, int64_t index, int64_t pieces, int64_t* share) {
  const Share part = int4_wide::share(count, index, pieces);
  share[0] = part.begin;
  share[1] = part.end;
}

}  // extern "C"
