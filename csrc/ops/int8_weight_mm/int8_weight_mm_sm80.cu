#include "mm/cuda/weight_mm_skinny.cuh"
#include "ops/int8_weight_mm/int8_weight_mm_cuda.h"

void aoq::int8_weight_mm_sm80(const WeightMmSkinny& call, CudaStream stream) {
  weight_skinny::run<false>(call, stream);
}
