// What CUDA matmuls with packed weights share: how 16- and 8-bit activations meet int4 codes on the tensor cores,
// scales, and what becomes of the sums. Weights are A of mma.sync, so that 8 tokens (rows of x) are a fragment's
// columns.
#pragma once
#include "base/dtype.h"
#include "cuda/grid.cuh"
#include "cuda/pdl.h"
#include "cuda/ptx.cuh"
#include "formats/int4_cuda.h"
#include "mm/cuda/packed_mm_plan.h"
#include "mm/packed_mm.h"

namespace aoq {
namespace {

// ---- one multiplication: 32 bytes of 8 tokens with as many columns of sixteen rows of w
//
//   Sum, kBytes   of a sum, of an activation
//   kWords        of packed codes that a lane decodes for it
//   decode        those words to the registers of A
//   kZero         what a sum starts from; value(sum) is then the sum in fp32, of codes minus 8, times kUnit

template <class X>
struct Math;

template <class X>
struct FloatMath {
  using Sum = float;
  static constexpr int kBytes = 2, kWords = 1;
  static constexpr Sum kZero = 0;
  static constexpr float kUnit = 1;
  static __device__ float value(Sum sum) { return sum; }
  static __device__ void multiply(Sum (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::multiply_k16(X{}, sum, a, b0, b1);
  }
};

// Pairs of code - 8, exact.
template <>
struct Math<ptx::Bf16> : FloatMath<ptx::Bf16> {
  static __device__ void decode(const uint32_t* words, uint32_t (&pairs)[4]) {
    for (int j = 0; j < 4; ++j) {
      const uint32_t biased = ptx::and_or(*words >> 4 * j, 0x000f000f, 0x43004300);  // 128 + code
      pairs[j] = ptx::fma_pair(ptx::Bf16{}, biased, 0x3f803f80, 0xc308c308);         // - 136
    }
  }
};
template <>
struct Math<ptx::F16> : FloatMath<ptx::F16> {
  static __device__ void decode(const uint32_t* words, uint32_t (&pairs)[4]) {
    for (int j = 0; j < 4; j += 2) {
      const uint32_t low = ptx::and_or(*words >> 4 * j, 0x000f000f, 0x64006400);   // 1024 + code
      const uint32_t high = ptx::and_or(*words >> 4 * j, 0x00f000f0, 0x64006400);  // 1024 + 16 code
      pairs[j] = ptx::fma_pair(ptx::F16{}, low, 0x3c003c00, 0xe408e408);           // - 1032
      pairs[j + 1] = ptx::fma_pair(ptx::F16{}, high, 0x2c002c00, 0xd480d480);      // / 16 - 72
    }
  }
};

// Quads of 16 (code - 8), as a nibble lies in the upper half of a signed byte: x stands in the order of quantized_k
// (rows/quantize_rows.h). Sums of 128 products stay within +-2^21; they start from the bits of 1.5 * 2^23, so that they
// are the bits of that plus their value, and one subtraction makes a float of them.
template <>
struct Math<ptx::S8> {
  using Sum = int32_t;
  static constexpr int kBytes = 1, kWords = 2;
  static constexpr Sum kZero = 0x4b400000;
  static constexpr float kUnit = 16;
  static __device__ float value(Sum sum) { return bits_to_float(static_cast<uint32_t>(sum)) - 0x1.8p23f; }
  static __device__ void decode(const uint32_t* words, uint32_t (&quads)[4]) {
    for (int j = 0; j < 2; ++j) {
      quads[2 * j] = ptx::and_xor(words[j] << 4, 0xf0f0f0f0, 0x80808080);
      quads[2 * j + 1] = ptx::and_xor(words[j], 0xf0f0f0f0, 0x80808080);
    }
  }
  static __device__ void multiply(Sum (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::multiply_k32(ptx::S8{}, sum, a, b0, b1);
  }
};

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

// ---- from sums to out

// What out holds at (m, n), before it is rounded, of a whole sum of x * w.
__device__ inline float finished(const PackedMm& p, int64_t m, int64_t n, float value) {
  if (p.x_asymmetric) value = __fmaf_rn(-p.x_zero[m], p.w_sum[n], value);
  if (p.x_scale) value *= p.x_scale[m * p.x_scale_stride];
  if (p.bias) value += load_float(p.bias, p.bias_dtype, n);
  return value;
}

constexpr int kAddThreads = 256;

// out from the sum of slabs of fp32 [m][n], in order.
__global__ void __launch_bounds__(kAddThreads) add_slabs(const PackedMm p, const float* slabs, int count) {
  for (int64_t i = first_item(); i < p.m * p.n; i += item_stride()) {
    float value = slabs[i];
    for (int slab = 1; slab < count; ++slab) value += slabs[slab * p.m * p.n + i];
    store_float(p.out, p.out_dtype, i, finished(p, i / p.n, i % p.n, value));
  }
}

// x with `pitch` columns a row, zeros from k on. fp32 becomes three bf16 planes [m][pitch] whose sum it is, exactly: 8
// of its 24 bits each, cut off rather than rounded.
__global__ void __launch_bounds__(kAddThreads) copy_rows(const PackedMm p, uint16_t* planes, int64_t pitch) {
  for (int64_t to = first_item(); to < p.m * pitch; to += item_stride()) {
    const int64_t from = to / pitch * p.x_stride + to % pitch;
    const bool real = to % pitch < p.k;
    if (p.x_dtype != Dtype::f32) {
      planes[to] = real ? static_cast<const uint16_t*>(p.x)[from] : uint16_t{0};
      continue;
    }
    float left = real ? static_cast<const float*>(p.x)[from] : 0;
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
  unsigned cluster;  // blocks of one, or 0
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& how, Arguments... arguments) {
  if (how.shared > 49152)  // what needs no asking
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(how.shared));
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
  mm.x = to;
  mm.x_stride = pitch;
  if (p.x_dtype == Dtype::f32) {
    mm.x_dtype = Dtype::bf16;
    mm.m = kPlanes * p.m;
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
