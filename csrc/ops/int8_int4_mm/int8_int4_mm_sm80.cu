#include "mm/cuda/int4_mm_skinny.cuh"
#include "ops/int8_int4_mm/int8_int4_mm_cuda.h"

void aoq::int8_int4_mm_sm80(const Int4MmCuda& args, CudaStream stream) {
  int4_skinny::run_int8<false>(args.mm, args.plan, args.workspace, stream);
}
