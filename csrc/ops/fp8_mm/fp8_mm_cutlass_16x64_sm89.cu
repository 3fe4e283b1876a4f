#include "mm/cuda/dense_mm_sm80.cuh"
#include "ops/fp8_mm/fp8_mm_cuda.h"

void aoq::fp8_mm_cutlass_16x64_sm89(const DenseMm& p, CudaStream stream) {
  run_dense_sm80<cutlass::float_e4m3_t, cutlass::float_e4m3_t, 16, 64>(p, stream);
}
