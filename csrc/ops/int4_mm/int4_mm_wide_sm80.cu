#include "mm/cuda/int4_mm_wide.cuh"
#include "ops/int4_mm/int4_mm_cuda.h"

void aoq::int4_mm_wide_sm80(const Int4MmWide& args, CudaStream stream) {
  int4_wide::run(args.mm, args.plan, args.workspace, stream);
}
