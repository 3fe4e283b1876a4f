#include "mm/cuda/dense_mm_sm90.cuh"
#include "ops/int8_mm/int8_mm_cuda.h"

void aoq::int8_mm_cutlass_16x64_sm90a(const DenseMm& p, CudaStream stream) {
  run_dense_sm90<int8_t, 16, 64, false>(p, stream);
}
