// What a host compiler needs, included before all else, to read CUTLASS's kernels: nothing here is run.
#pragma once
#define CUTLASS_SM90_COLLECTIVE_BUILDER_SUPPORTED
#include <cuda_runtime.h>

inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;
inline void __syncthreads() {}
inline void __syncwarp(unsigned = ~0u) {}
inline int __syncthreads_and(int x) { return x; }
namespace cutlass::arch {
inline int LaneId() { return 0; }
inline int SmId() { return 0; }
}  // namespace cutlass::arch
