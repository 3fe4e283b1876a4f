#include "mm/cuda/int4_mm_wide.cuh"
#include "ops/int8_int4_mm/int8_int4_mm_cuda.h"

void aoq::int8_int4_mm_wide_sm80(const Int4MmWide& args, CudaStream stream) {
  int4_wide::run_int8(args.mm, args.plan, args.workspace, stream);
}
