// x times rows of 8-bit codes on CUDA, int8_weight_mm and fp8_weight_mm: packed as int8_pack makes it there. Two tables
// each: kernels for few rows of x (skinny) and for many (wide); both take every shape.
#pragma once
#include "cuda/cuda.h"
#include "mm/cuda/weight_mm_plan.h"
#include "mm/packed_mm.h"

namespace aoq {

struct WeightMmSkinny {
  PackedMm mm;
  skinny::Plan plan;
  float* workspace;  // skinny::workspace_floats of them
};

using WeightMmSkinnyKernel = void (*)(const WeightMmSkinny&, CudaStream);

struct WeightMmWide {
  PackedMm mm;
  wide::Plan plan;
  float* workspace;  // wide::workspace_of says how many
};

using WeightMmWideKernel = void (*)(const WeightMmWide&, CudaStream);

}  // namespace aoq
