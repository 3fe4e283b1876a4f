#include "mm/cuda/int4_mm_wgmma.cuh"

#include "ops/int4_mm/int4_mm_cuda.h"

void aoq::int4_mm_wgmma_sm90a(const Int4MmWgmma& args, CudaStream stream) {
  int4_wgmma::run(args.mm, args.plan, args.workspace, stream);
}
