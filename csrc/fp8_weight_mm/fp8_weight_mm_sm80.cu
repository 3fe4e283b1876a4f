#include "fp8_weight_mm/fp8_weight_mm_cuda.h"
#include "fp8_weight_mm/fp8_weight_mm_skinny.cuh"

void aoq::fp8_weight_mm_sm80(const Int4MmCuda& args, CudaStream stream) {
  fp8_skinny::run(args.mm, args.plan, args.workspace, stream);
}
