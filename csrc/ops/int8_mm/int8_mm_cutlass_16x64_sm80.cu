#include "mm/cuda/dense_mm_sm80.cuh"
#include "ops/int8_mm/int8_mm_cuda.h"

void aoq::int8_mm_cutlass_16x64_sm80(const DenseMm& p, CudaStream stream) {
  run_dense_sm80<int8_t, int8_t, 16, 64>(p, stream);
}
