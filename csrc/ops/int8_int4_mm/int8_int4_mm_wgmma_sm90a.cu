#include "mm/cuda/int4_mm_wgmma.cuh"
#include "ops/int8_int4_mm/int8_int4_mm_cuda.h"

void aoq::int8_int4_mm_wgmma_sm90a(const Int4MmWgmma& args, CudaStream stream) {
  int4_wgmma::run_int8(args.mm, args.plan, args.workspace, stream);
}
