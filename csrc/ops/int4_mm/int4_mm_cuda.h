// int4_mm.h's formula on CUDA; packed as formats/int4_cuda.h says. Three tables: kernels for few rows of x (skinny),
// which take every shape, for many (wide), and for many on Hopper (wgmma).
#pragma once
#include "cuda/cuda.h"
#include "mm/cuda/int4_mm_config.h"
#include "mm/packed_mm.h"

namespace aoq {

struct Int4MmCuda {
  PackedMm mm;
  int4_skinny::Plan plan;
  float* workspace;  // int4_skinny::workspace_floats of them
};

using Int4MmCudaKernel = void (*)(const Int4MmCuda&, CudaStream);

struct Int4MmWide {
  PackedMm mm;
  int4_wide::Plan plan;
  float* workspace;  // int4_wide::workspace_of says how many
};

using Int4MmWideKernel = void (*)(const Int4MmWide&, CudaStream);

struct Int4MmWgmma {
  PackedMm mm;
  int4_wgmma::Plan plan;
  float* workspace;  // int4_wgmma::workspace_floats of them
};

using Int4MmWgmmaKernel = void (*)(const Int4MmWgmma&, CudaStream);

// What decides among the three. hopper: wgmma's kernels run here.
inline int4_config::Problem problem_of(const PackedMm& p, const Shape& shape, int before, bool hopper) {
  const bool aligned = (reinterpret_cast<uintptr_t>(p.scale) | reinterpret_cast<uintptr_t>(p.zero_point)) % 16 == 0;
  return {shape, p.zero_point != nullptr, p.scale_dtype == Dtype::f32 ? 4 : 2, before, hopper && aligned};
}

#define AOQ_KERNEL(sm, function) void function(const Int4MmCuda&, CudaStream);
#include "ops/int4_mm/kernels_cuda.inc"
#undef AOQ_KERNEL

#define AOQ_KERNEL(sm, function) void function(const Int4MmWide&, CudaStream);
#include "ops/int4_mm/kernels_wide_cuda.inc"
#undef AOQ_KERNEL

#define AOQ_KERNEL(sm, function) void function(const Int4MmWgmma&, CudaStream);
#include "ops/int4_mm/kernels_wgmma_cuda.inc"
#undef AOQ_KERNEL

}  // namespace aoq
