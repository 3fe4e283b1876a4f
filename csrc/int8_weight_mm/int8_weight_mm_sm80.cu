#include "core/weight_mm_skinny.cuh"
#include "int8_weight_mm/int8_weight_mm_cuda.h"

void aoq::int8_weight_mm_sm80(const WeightMmSkinny& call, CudaStream stream) {
  weight_skinny::run<false>(call, stream);
}
