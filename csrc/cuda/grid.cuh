// Launching CUDA kernels.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/cuda.h"

namespace aoq {
namespace {

constexpr int kWarp = 32;

// The first of a thread's items, and how far it is to its next one, when all threads of a grid share `count` items.
__device__ inline int64_t first_item() { return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; }
__device__ inline int64_t item_stride() { return gridDim.x * static_cast<int64_t>(blockDim.x); }

// Kernels are launched without <<<>>>, so that a test can run them on the CPU. OnDevice::check_launch reports errors.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, int threads, CudaStream stream, Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Blocks of `threads` for `count` items: no more than fill any device several times over.
inline unsigned grid_for(int64_t count, int threads) {
  const int64_t blocks = (count + threads - 1) / threads;
  return static_cast<unsigned>(blocks < 8192 ? blocks : 8192);
}

}  // namespace
}  // namespace aoq
