// Blocks that share rows along k add up through memory: a second kernel adds their sums in order.
#include "int4_mm/int4_mm_cuda.h"
#include "int4_mm/int4_mm_skinny.cuh"

void aoq::int4_mm_sm80(const Int4MmCuda& args, CudaStream stream) {
  int4_skinny::run<false>(args.mm, args.plan, args.workspace, stream);
}
