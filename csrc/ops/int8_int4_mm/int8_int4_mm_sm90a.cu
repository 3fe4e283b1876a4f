// The first weights are on their way to L2 before the kernel that quantizes x has ended.
#include "mm/cuda/int4_mm_skinny.cuh"
#include "ops/int8_int4_mm/int8_int4_mm_cuda.h"

void aoq::int8_int4_mm_sm90a(const Int4MmCuda& args, CudaStream stream) {
  int4_skinny::run_int8<true>(args.mm, args.plan, args.workspace, stream);
}
