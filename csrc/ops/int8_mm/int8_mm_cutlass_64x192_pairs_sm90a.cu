#include "mm/cuda/dense_mm_sm90.cuh"
#include "ops/int8_mm/int8_mm_cuda.h"

void aoq::int8_mm_cutlass_64x192_pairs_sm90a(const DenseMm& p, CudaStream stream) {
  run_dense_sm90<int8_t, 64, 192, true>(p, stream);
}
