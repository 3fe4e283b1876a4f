#include "mm/cuda/weight_mm_wide.cuh"
#include "ops/fp8_weight_mm/fp8_weight_mm_cuda.h"

void aoq::fp8_weight_mm_wide_sm80(const WeightMmWide& call, CudaStream stream) { weight_wide::run<true>(call, stream); }
