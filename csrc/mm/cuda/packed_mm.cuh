// What CUDA matmuls with packed weights share: scales, what becomes of the sums, and launches.
#pragma once
#include "base/dtype.h"
#include "cuda/grid.cuh"
#include "cuda/pdl.h"
#include "cuda/ptx.cuh"
#include "mm/cuda/experts.h"
#include "mm/cuda/packed_mm_plan.h"
#include "mm/packed_mm.h"

namespace aoq {
namespace {

// ---- scales

// Scales or zero points of any dtype without a branch: a row's value is some bytes of an aligned word.
class ScaleReader {
 public:
  __device__ ScaleReader(Dtype dtype, int row) : f16_(dtype == Dtype::f16) {
    const uint32_t bytes = dtype == Dtype::f32 ? 4 : 2;
    // Of the word's halves the even row's is low. bf16 goes to the upper half of a float, fp16 is converted.
    const bool odd = row % 2;
    selector_ = ptx::kept(dtype == Dtype::f32 ? 0x3210 : f16_ ? (odd ? 0x4432 : 0x4410) : (odd ? 0x3244 : 0x1044));
    half_ = ptx::kept(8 * bytes);
    offset_ = row * bytes & ~3u;
  }
  __device__ uint32_t offset() const { return offset_; }   // bytes from a group's first value to row's
  __device__ uint32_t half() const { return half_; }       // from row's to row + 8's
  __device__ uint32_t group() const { return 2 * half_; }  // from a group to the next
  __device__ float value(uint32_t word) const {
    const uint32_t chosen = ptx::bytes_of(word, 0, selector_);
    const float converted = ptx::f16_to_f32(chosen);
    return f16_ ? converted : bits_to_float(chosen);
  }

 private:
  bool f16_;
  uint32_t offset_, half_, selector_;
};

// ---- rows of x (tokens)

// Those that a block multiplies, and which expert's weight with; -1: none's, they become zeros.
struct Tokens {
  int64_t first;
  int count;
  int32_t expert;
};
// Tokens of block `index` of those along x, tiles of `most`. kExperts: whether this kernel takes experts at all.
template <bool kExperts>
__device__ inline Tokens tokens_of(const PackedMm& p, int64_t index, int most) {
  if (kExperts && p.expert_tiles) {
    if (index >= p.expert_tile_count) return {0, 0, 0};
    const ExpertTile tile = p.expert_tiles[index];
    return {tile.first, tile.count, tile.expert};
  }
  const int64_t first = index * most, left = p.m - first;
  return {first, left <= 0 ? 0 : left < most ? static_cast<int>(left) : most, 0};
}

// How many blocks there are along x.
inline int64_t token_blocks_of(const PackedMm& p, int tokens) {
  return p.expert_tiles ? p.expert_tile_count : ceil_div(p.m, tokens);
}

// Whose row m is.
__device__ inline int32_t expert_of(const PackedMm& p, int64_t m) {
  if (!p.expert_tiles) return 0;
  int64_t begin = 0, end = p.experts;
  while (begin < end) {  // the first whose rows end after m
    const int64_t middle = (begin + end) / 2;
    p.expert_ends[middle] > m ? end = middle : begin = middle + 1;
  }
  return begin < p.experts ? static_cast<int32_t>(begin) : -1;
}

// ---- from sums to out

// What out holds at (m, n), before it is rounded, of a whole sum of x * w.
__device__ inline float finished(const PackedMm& p, int64_t m, int64_t n, float value, int32_t expert) {
  if (expert < 0) return 0;
  const int64_t at = expert * p.n + n;  // in what experts have of their own
  if (p.out.row_zero) value = __fmaf_rn(-p.out.row_zero[m], p.w.sum[at], value);
  if (p.out.row_scale) value *= p.out.row_scale[m * p.out.row_scale_stride];
  if (p.out.bias) value += load_float(p.out.bias, p.out.bias_dtype, at);
  return value;
}

struct alignas(16) FourFloats {
  float value[4];
};
// Four values as the dtype of 16 bits that out has.
__device__ inline Words<2> halves(const float (&value)[4], Dtype dtype) {
  Words<2> four;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float low = value[2 * i], high = value[2 * i + 1];
    four.word[i] = dtype == Dtype::bf16
                       ? static_cast<uint32_t>(float_to_bf16(low)) | static_cast<uint32_t>(float_to_bf16(high)) << 16
                       : ptx::f32_to_f16(low) | ptx::f32_to_f16(high) << 16;
  }
  return four;
}

constexpr int kAddThreads = 256;

// out from the sum of slabs of fp32 [m][n], in order.
__global__ void __launch_bounds__(kAddThreads) add_slabs(const PackedMm p, const float* slabs, int count) {
  for (int64_t i = first_item(); i < p.m * p.n; i += item_stride()) {
    float value = slabs[i];
    for (int slab = 1; slab < count; ++slab) value += slabs[slab * p.m * p.n + i];
    store_float(p.out.data, p.out.dtype, i, finished(p, i / p.n, i % p.n, value, expert_of(p, i / p.n)));
  }
}

// x with `pitch` columns a row, zeros from k on. fp32 becomes three bf16 planes [m][pitch] whose sum it is, exactly: 8
// of its 24 bits each, cut off rather than rounded.
__global__ void __launch_bounds__(kAddThreads) copy_rows(const PackedMm p, uint16_t* planes, int64_t pitch) {
  for (int64_t to = first_item(); to < p.m * pitch; to += item_stride()) {
    const int64_t from = to / pitch * p.x.stride + to % pitch;
    const bool real = to % pitch < p.k;
    if (p.x.dtype != Dtype::f32) {
      planes[to] = real ? static_cast<const uint16_t*>(p.x.data)[from] : uint16_t{0};
      continue;
    }
    float left = real ? static_cast<const float*>(p.x.data)[from] : 0;
    for (int plane = 0; plane < kPlanes; ++plane) {
      const uint32_t bits = float_to_bits(left);
      planes[plane * p.m * pitch + to] =
          static_cast<uint16_t>(bits >> 16 | ((bits & 0x7fffffff) > 0x7f800000 ? 0x40 : 0));
      left -= bits_to_float(bits & 0xffff0000);
    }
  }
}

// ---- launching

struct Launch {
  dim3 grid;
  int threads;
  int64_t shared;
  CudaStream stream;
  unsigned cluster;         // blocks of one, or 0
  int64_t most_shared = 0;  // what any launch of this kernel takes, where plans differ
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& how, Arguments... arguments) {
  // The limit is the kernel's, not this launch's: always the same one, or another thread with a smaller plan could
  // lower it before this launch.
  const int64_t most = how.shared > how.most_shared ? how.shared : how.most_shared;
  if (most > 49152)  // what needs no asking
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most));
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = static_cast<size_t>(how.shared);
  config.stream = how.stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = how.cluster;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = how.cluster ? (pdl() ? 2 : 1) : 0;
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

// p on a copy of x at `to`, as copy_rows makes it: with planes as rows of their own.
inline PackedMm copied(const PackedMm& p, float* to, int64_t pitch, CudaStream stream) {
  PackedMm mm = p;
  mm.x.data = to;
  mm.x.stride = pitch;
  if (p.x.dtype == Dtype::f32) {
    mm.x.dtype = Dtype::bf16;
    mm.m = kPlanes * p.m;
    mm.expert_tile_count = kPlanes * p.expert_tile_count;
  }
  launch(copy_rows, {dim3(grid_for(p.m * p.k, kAddThreads)), kAddThreads, 0, stream, 0}, p,
         reinterpret_cast<uint16_t*>(to), pitch);
  return mm;
}

inline void add(const PackedMm& p, const float* slabs, int count, CudaStream stream) {
  launch(add_slabs, {dim3(grid_for(p.m * p.n, kAddThreads)), kAddThreads, 0, stream, 0}, p, slabs, count);
}

}  // namespace
}  // namespace aoq
