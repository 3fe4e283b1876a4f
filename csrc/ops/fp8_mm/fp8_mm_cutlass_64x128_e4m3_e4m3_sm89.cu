#include "mm/cuda/dense_mm_sm80.cuh"
#include "ops/fp8_mm/fp8_mm_cuda.h"

void aoq::fp8_mm_cutlass_64x128_e4m3_e4m3_sm89(const DenseMm& p, CudaStream stream) {
  run_dense_sm80<cutlass::float_e4m3_t, cutlass::float_e4m3_t, 64, 128>(p, stream);
}
