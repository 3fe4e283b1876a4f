// Blocks that share rows along k are a cluster and add up through its shared memory; the first weights are on their way
// to L2 before the kernel that computes x has ended.
#include "mm/cuda/int4_mm_skinny.cuh"
#include "ops/int4_mm/int4_mm_cuda.h"

void aoq::int4_mm_sm90a(const Int4MmCuda& args, CudaStream stream) {
  int4_skinny::run<true>(args.mm, args.plan, args.workspace, stream);
}
