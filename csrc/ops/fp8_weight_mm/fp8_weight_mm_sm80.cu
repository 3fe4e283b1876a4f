#include "mm/cuda/weight_mm_skinny.cuh"
#include "ops/fp8_weight_mm/fp8_weight_mm_cuda.h"

void aoq::fp8_weight_mm_sm80(const WeightMmSkinny& call, CudaStream stream) { weight_skinny::run<true>(call, stream); }
