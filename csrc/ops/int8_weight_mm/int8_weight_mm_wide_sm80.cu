#include "mm/cuda/weight_mm_wide.cuh"
#include "ops/int8_weight_mm/int8_weight_mm_cuda.h"

void aoq::int8_weight_mm_wide_sm80(const WeightMmWide& call, CudaStream stream) {
  weight_wide::run<false>(call, stream);
}
