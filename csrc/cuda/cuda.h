// The stream that a CUDA kernel is launched on, for headers that the CPU's files read too.
#pragma once

struct CUstream_st;

namespace aoq {

using CudaStream = CUstream_st*;  // cudaStream_t

}  // namespace aoq
