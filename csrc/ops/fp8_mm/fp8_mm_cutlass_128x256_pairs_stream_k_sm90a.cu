#include "mm/cuda/dense_mm_sm90.cuh"
#include "ops/fp8_mm/fp8_mm_cuda.h"

void aoq::fp8_mm_cutlass_128x256_pairs_stream_k_sm90a(const DenseMm& p, CudaStream stream) {
  run_dense_sm90<cutlass::float_e4m3_t, 128, 256, true, true>(p, stream);
}
