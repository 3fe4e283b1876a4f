// Blocks that share rows along k add up through memory: a second kernel adds their sums in order.
#include "mm/cuda/int4_mm_skinny.cuh"
#include "ops/int4_mm/int4_mm_cuda.h"

void aoq::int4_mm_sm80(const Int4MmCuda& args, CudaStream stream) {
  int4_skinny::run<false>(args.mm, args.plan, args.workspace, stream);
}
