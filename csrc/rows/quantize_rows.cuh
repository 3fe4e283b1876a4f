// rows/quantize_rows.h on CUDA, to the bit of the CPU. A block takes a row: reads it once, sixteen bytes a load, and
// keeps it in registers while the block finds its sum of squares and its range; then writes its codes. Bound by memory:
// a row's bytes in and half or a quarter of them out.
//
// Thread t holds the eights of values t, t + 256, ... up to kEights of them. Rows longer than that, or not in whole
// aligned eights, are read again for each step (kEights = 0).
#pragma once
#include <type_traits>

#include "cuda/vec_cuda.cuh"
#include "cuda/grid.cuh"

#include "cuda/ptx.cuh"
#include "formats/fp8.h"
#include "formats/int8_code.h"
#include "formats/packed.h"
#include "rows/quantize_rows.h"
#include "rows/row_math.h"

namespace aoq {
namespace {

static_assert(kSumThreads == 256 && kSumsOfThread == 8, "the order of sums is that of a block");

struct Sixteen {
  alignas(16) uint32_t word[4];
};

struct Eight {
  float value[8];
};

// ---- eights of a row in memory; zeros from k on. kWhole: k is whole eights, which a block's registers hold, and all
// addresses are aligned.

template <bool kWhole>
using Index = std::conditional_t<kWhole, int, int64_t>;

template <bool kWhole>
class Rows {
 public:
  __device__ Rows(const void* data, Dtype dtype, int64_t stride, int64_t row, int64_t k)
      : data_(static_cast<const char*>(data) + row * stride * size_of(dtype)),
        dtype_(dtype),
        k_(k),
        whole_(kWhole || (reinterpret_cast<uintptr_t>(data_) % 16 == 0 && k % 8 == 0)) {}

  // kCount eights, 256 apart: all loads before the first conversion.
  template <int kCount>
  __device__ void load(int64_t eight, Eight (&out)[kCount]) const {
    if constexpr (!kWhole)
      if (!whole_) return load_scalars(8 * eight, out[0]);
    const auto* sixteens = reinterpret_cast<const Sixteen*>(data_);
    const auto eights = static_cast<Index<kWhole>>(k_ / 8), first = static_cast<Index<kWhole>>(eight);
    if (dtype_ == Dtype::f32) {
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        const auto at = first + c * kSumThreads;
        Sixteen raw[2] = {};
        if (at < eights) raw[0] = sixteens[2 * at], raw[1] = sixteens[2 * at + 1];
#pragma unroll
        for (int e = 0; e < 8; ++e) out[c].value[e] = bits_to_float(raw[e / 4].word[e % 4]);
      }
      return;
    }
    Sixteen raw[kCount] = {};
#pragma unroll
    for (int c = 0; c < kCount; ++c)
      if (first + c * kSumThreads < eights) raw[c] = sixteens[first + c * kSumThreads];
    const bool bf16 = dtype_ == Dtype::bf16;
#pragma unroll
    for (int c = 0; c < kCount; ++c)
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const uint32_t word = raw[c].word[e / 2], upper = e % 2 ? word & 0xffff0000 : word << 16;
        const float as_f16 = ptx::f16_to_f32(upper >> 16);
        out[c].value[e] = bf16 ? bits_to_float(upper) : as_f16;
      }
  }

 private:
  __device__ void load_scalars(int64_t first, Eight& out) const {
#pragma unroll
    for (int e = 0; e < 8; ++e) out.value[e] = first + e < k_ ? load_float(data_, dtype_, first + e) : 0;
  }

  const char* data_;
  Dtype dtype_;
  int64_t k_;
  bool whole_;
};

__device__ inline uint32_t to_half(float value, Dtype dtype) {
  const uint32_t as_f16 = ptx::f32_to_f16(value), as_bf16 = float_to_bf16(value);
  return dtype == Dtype::bf16 ? as_bf16 : as_f16;
}

template <bool kWhole>
__device__ inline void store_eight(void* data, Dtype dtype, int64_t k, int64_t eight, const Eight& values) {
  if constexpr (!kWhole) {
    const int64_t first = 8 * eight;
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (first + e < k) store_float(data, dtype, first + e, values.value[e]);
    return;
  }
  auto* sixteens = static_cast<Sixteen*>(data);
  if (dtype == Dtype::f32) {
    Sixteen raw[2];
#pragma unroll
    for (int e = 0; e < 8; ++e) raw[e / 4].word[e % 4] = float_to_bits(values.value[e]);
    sixteens[2 * eight] = raw[0], sixteens[2 * eight + 1] = raw[1];
  } else {
    Sixteen raw;
#pragma unroll
    for (int e = 0; e < 4; ++e)
      raw.word[e] = to_half(values.value[2 * e], dtype) | to_half(values.value[2 * e + 1], dtype) << 16;
    sixteens[eight] = raw;
  }
}

// ---- across the block; all threads get the result

// Adds in the order that quantize_rows.h says; `add` may be any function whose order matters.
template <class T, class Function>
__device__ inline T fold_block(T value, Function function) {
  __shared__ T warps[kSumThreads / kWarp];
  __syncthreads();  // the last fold has been read
  for (int width = kWarp / 2; width > 0; width /= 2) value = function(value, __shfl_down_sync(~0u, value, width));
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  T all[kSumThreads / kWarp];
  for (int i = 0; i < kSumThreads / kWarp; ++i) all[i] = warps[i];
  for (int width = kSumThreads / kWarp / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) all[i] = function(all[i], all[i + width]);
  return all[0];
}

__device__ inline ValueRange fold_range(ValueRange range) {
  range.low = fold_block(range.low, [](float x, float y) { return x < y ? x : y; });
  range.high = fold_block(range.high, [](float x, float y) { return x > y ? x : y; });
  range.finite = fold_block(static_cast<int>(range.finite), [](int x, int y) { return x & y; });
  return range;
}

__device__ inline void widen(ValueRange& range, const Eight& values) {
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const float value = values.value[e];
    range.low = range.low < value ? range.low : value;
    range.high = range.high > value ? range.high : value;
    range.finite = range.finite && (float_to_bits(value) & 0x7f800000) != 0x7f800000;
  }
}

// ---- where a row comes from: h(), and from it values()

template <RowSource kSource, bool kWhole>
class Source {
 public:
  __device__ Source(const QuantizeRows& p, int64_t row)
      : p_(p),
        row_(row),
        x_(p.x, p.x_dtype, p.x_stride, row, p.k),
        other_(p.other, p.x_dtype, p.other_stride, row, p.k),
        weight_(p.weight, p.weight_dtype, 0, 0, p.k) {}

  template <int kCount>
  __device__ void load(int64_t eight, Eight (&out)[kCount]) const {
    x_.load(eight, out);
    if constexpr (kSource == RowSource::given) return;
    if (kSource == RowSource::rmsnorm && !p_.other) return;
    Eight other[kCount];
    other_.load(eight, other);
#pragma unroll
    for (int c = 0; c < kCount; ++c)
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        float& value = out[c].value[e];
        if constexpr (kSource == RowSource::silu_mul)
          value = silu_mul(F32x16{value}, F32x16{other[c].value[e]}).lane;
        else if (p_.x_dtype == Dtype::f32)
          value = value + other[c].value[e];
        else
          value = p_.x_dtype == Dtype::bf16 ? round_to(value + other[c].value[e], Dtype::bf16)
                                            : ptx::f16_to_f32(ptx::f32_to_f16(value + other[c].value[e]));
      }
  }

  // The sums of the row's squares that this thread adds up, one for each place in its eights.
  static __device__ void add_squares(const Eight& values, Eight& sums) {
#pragma unroll
    for (int e = 0; e < 8; ++e) sums.value[e] = sums.value[e] + values.value[e] * values.value[e];
  }
  __device__ void set_sums(const Eight& sums) {
    const float* s = sums.value;
    const float thread = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
    factor_ = rms_factor(fold_block(thread, [](float x, float y) { return x + y; }), p_.k, p_.eps);
  }
  template <int kCount>
  __device__ void normalize(int64_t eight, Eight (&values)[kCount]) const {
    Eight weight[kCount];
    weight_.load(eight, weight);
#pragma unroll
    for (int c = 0; c < kCount; ++c)
#pragma unroll
      for (int e = 0; e < 8; ++e) values[c].value[e] = values[c].value[e] * factor_ * weight[c].value[e];
  }
  __device__ void store_residual(int64_t eight, const Eight& h) const {
    if (p_.other && 8 * eight < p_.k)
      store_eight<kWhole>(static_cast<char*>(p_.residual_out) + row_ * p_.k * size_of(p_.x_dtype), p_.x_dtype, p_.k,
                          eight, h);
  }

 private:
  const QuantizeRows& p_;
  int64_t row_;
  Rows<kWhole> x_, other_, weight_;
  float factor_ = 0;
};

// ---- what codes it gets

template <Codes kCodes>
struct Quantizer;
template <>
struct Quantizer<Codes::int8> {
  static __device__ RowScale scale(const QuantizeRows& p, ValueRange range) {
    return int8_scale(range, p.asymmetric, p.scale_dtype);
  }
  static __device__ int code(float value, RowScale scale) { return int8_code(F32x16{value}, scale).lane; }
  static __device__ float value(uint32_t code) { return static_cast<int8_t>(code); }
};
template <class Format>
struct Fp8Quantizer {
  static __device__ RowScale scale(const QuantizeRows& p, ValueRange range) {
    const float absmax = -range.low > range.high ? -range.low : range.high;
    return {fp8_scale<Format>(absmax, p.lb, p.ub), 0};
  }
  static __device__ int code(float value, RowScale scale) {
    const F32x16 quotient = F32x16{value} / F32x16{scale.scale};
    return fp8_code<Format>(min(max(quotient, splat(-Format::kMax)), splat(Format::kMax))).lane;
  }
  static __device__ float value(uint32_t code) { return fp8_to_float<Format>(static_cast<uint8_t>(code)); }
};
template <>
struct Quantizer<Codes::e4m3> : Fp8Quantizer<E4m3> {};
template <>
struct Quantizer<Codes::e5m2> : Fp8Quantizer<E5m2> {};

// From one row of codes to the next.
__device__ inline int64_t code_pitch(const QuantizeRows& p) {
  return p.permute || p.padded ? ceil_div(p.k, 16) * 16 : p.k;
}

// Eight codes, in order or with those of the other half of their sixteen in the order of quantized_k: then they lie
// k, k + 8 beside each other, and lane pairs swap halves. All threads of a warp take part.
template <Codes kCodes, bool kWhole>
__device__ inline void store_codes(const QuantizeRows& p, uint8_t* row, int64_t eight, const Eight& values,
                                   RowScale scale) {
  uint32_t word[2] = {};
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const bool real = static_cast<Index<kWhole>>(8 * eight) + e < static_cast<Index<kWhole>>(p.k);
    const int code = Quantizer<kCodes>::code(values.value[e], scale);
    word[e / 4] |= (real ? static_cast<uint32_t>(code) & 255 : 0) << 8 * (e % 4);
  }
  const auto pitch = static_cast<Index<kWhole>>(code_pitch(p)), first = static_cast<Index<kWhole>>(8 * eight);
  if (p.permute) {
    const bool upper = eight % 2;
    const uint32_t given = upper ? word[0] : word[1];
    const uint32_t other = __shfl_xor_sync(~0u, given, 1);
    const uint32_t low = upper ? other : word[0], high = upper ? word[1] : other;  // of k, of k + 8
    for (int i = 0; i < 2; ++i) {
      const uint32_t a = low >> 16 * i, b = high >> 16 * i;
      word[i] = (a & 255) | (b & 255) << 8 | (a & 0xff00) << 8 | (b & 0xff00) << 16;
    }
  }
  if (first >= pitch) return;
  if constexpr (kWhole) {
    *reinterpret_cast<uint64_t*>(row + first) = static_cast<uint64_t>(word[1]) << 32 | word[0];
  } else {
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (first + e < pitch) row[first + e] = static_cast<uint8_t>(word[e / 4] >> 8 * (e % 4));
  }
}

// The exact sums of a row's codes, from what the block has stored.
template <Codes kCodes>
__device__ inline void sum_groups(const QuantizeRows& p, const uint8_t* row, float* sums) {
  __syncthreads();
  for (int64_t group = threadIdx.x; group * p.sum_group < p.k; group += kSumThreads) {
    const int64_t begin = group * p.sum_group, end = begin + p.sum_group < p.k ? begin + p.sum_group : p.k;
    double sum = 0;
    for (int64_t k = begin; k < end; ++k) {
      const int64_t in_atom = k % 16;  // quantized_k's inverse
      const int64_t at = p.permute ? k - in_atom + in_atom % 8 / 2 * 4 + in_atom % 2 * 2 + in_atom / 8 : k;
      sum += static_cast<double>(Quantizer<kCodes>::value(row[at]));
    }
    sums[group] = static_cast<float>(sum);
  }
}

// ---- kernels

template <RowSource kSource, Codes kCodes, int kEights>
__global__ void __launch_bounds__(kSumThreads) quantize(const QuantizeRows p) {
  ptx::start_kernel_after();  // one that waits by itself for what this one writes
  const int64_t row = blockIdx.x;
  constexpr bool kWhole = kEights > 0;
  Source<kSource, kWhole> source(p, row);
  Eight kept[kEights ? kEights : 1];
  auto each = [&](auto load, auto visit) {  // of the row's eights, kept ones or read again
    if constexpr (kEights > 0) {
#pragma unroll
      for (int c = 0; c < kEights; ++c) visit(threadIdx.x + c * kSumThreads, kept[c]);
    } else {
      const int64_t end = ceil_div(ceil_div(p.k, 16) * 2, kSumThreads) * kSumThreads;  // as many for all threads
      for (int64_t eight = threadIdx.x; eight < end; eight += kSumThreads) {
        load(eight, kept);
        visit(eight, kept[0]);
      }
    }
  };
  auto load_h = [&](int64_t eight, auto& values) { source.load(eight, values); };
  auto load_values = [&](int64_t eight, auto& values) {
    source.load(eight, values);
    if constexpr (kSource == RowSource::rmsnorm) source.normalize(eight, values);
  };

  if constexpr (kEights > 0) source.load(threadIdx.x, kept);
  if constexpr (kSource == RowSource::rmsnorm) {
    Eight sums{};
    each(load_h, [&](int64_t eight, const Eight& h) {
      source.add_squares(h, sums);
      source.store_residual(eight, h);
    });
    source.set_sums(sums);
    if constexpr (kEights > 0) source.normalize(threadIdx.x, kept);
  }
  RowScale scale{};
  if (p.per_tensor) {
    scale.scale = *static_cast<const float*>(p.scale);  // scale_of_all wrote it
  } else {
    ValueRange range{0, 0, true};
    each(load_values, [&](int64_t, const Eight& values) { widen(range, values); });
    range = fold_range(range);
    scale = Quantizer<kCodes>::scale(p, range);
    if (threadIdx.x == 0) {
      store_float(p.scale, p.scale_dtype, row, stored_scale(scale.scale, range));
      if (p.asymmetric) store_float(p.zero_point, p.scale_dtype, row, scale.zero_point);
    }
  }
  uint8_t* const codes = p.qdata + row * code_pitch(p);
  each(load_values,
       [&](int64_t eight, const Eight& values) { store_codes<kCodes, kWhole>(p, codes, eight, values, scale); });
  if (p.group_sum) sum_groups<kCodes>(p, codes, p.group_sum + row * ceil_div(p.k, p.sum_group));
}

// One scale of all rows, in two steps: the absmax of each block's rows, NaN for what is not finite; then of all.
__global__ void __launch_bounds__(kSumThreads) absmax_of_rows(const QuantizeRows p) {
  ValueRange range{0, 0, true};
  for (int64_t row = blockIdx.x; row < p.m; row += gridDim.x) {
    const Rows<false> x(p.x, p.x_dtype, p.x_stride, row, p.k);
    for (int64_t eight = threadIdx.x; 8 * eight < p.k; eight += kSumThreads) {
      Eight values[1];
      x.load(eight, values);
      widen(range, values[0]);
    }
  }
  range = fold_range(range);
  const float absmax = -range.low > range.high ? -range.low : range.high;
  if (threadIdx.x == 0) p.workspace[blockIdx.x] = stored_scale(absmax, range);
}
template <Codes kCodes>
__global__ void __launch_bounds__(kSumThreads) scale_of_all(const QuantizeRows p, int count) {
  ValueRange range{0, 0, true};
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSumThreads) {
    const float absmax = p.workspace[i];
    range.high = range.high > absmax ? range.high : absmax;
    range.finite = range.finite && absmax == absmax;
  }
  range = fold_range(range);
  if (threadIdx.x == 0) *static_cast<float*>(p.scale) = stored_scale(Quantizer<kCodes>::scale(p, range).scale, range);
}

// ---- launching

template <class Kernel, class... Parameters>
void launch_rows(Kernel kernel, int64_t blocks, CudaStream stream, Parameters... parameters) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kSumThreads);
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, parameters...);
}

// Whether rows are whole eights in aligned memory, codes and all.
inline bool is_whole(const QuantizeRows& p) {
  auto aligned = [&](const void* data, Dtype dtype, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * (dtype == Dtype::f32 ? 4 : 2) % 16 == 0;
  };
  return p.k % 8 == 0 && aligned(p.x, p.x_dtype, p.x_stride) && aligned(p.other, p.x_dtype, p.other_stride) &&
         aligned(p.weight, p.weight_dtype, 0) && aligned(p.residual_out, p.x_dtype, 0) &&
         aligned(p.qdata, Dtype::f32, 0);
}

template <RowSource kSource, Codes kCodes>
void quantize_rows(const QuantizeRows& p, CudaStream stream) {
  if constexpr (kSource == RowSource::given && kCodes != Codes::int8)
    if (p.per_tensor) {
      const int blocks = static_cast<int>(p.m < kPartialRanges ? p.m : kPartialRanges);
      launch_rows(absmax_of_rows, blocks, stream, p);
      launch_rows(scale_of_all<kCodes>, 1, stream, p, blocks);
    }
  if (!is_whole(p))
    launch_rows(quantize<kSource, kCodes, 0>, p.m, stream, p);
  else if (p.k <= 2 * 8 * kSumThreads)
    launch_rows(quantize<kSource, kCodes, 2>, p.m, stream, p);
  else if (p.k <= 8 * 8 * kSumThreads)
    launch_rows(quantize<kSource, kCodes, 8>, p.m, stream, p);
  else
    launch_rows(quantize<kSource, kCodes, 0>, p.m, stream, p);
}

template <RowSource kSource>
void quantize_rows_from(const QuantizeRows& p, CudaStream stream) {
  switch (p.codes) {
    case Codes::int8: return quantize_rows<kSource, Codes::int8>(p, stream);
    case Codes::e4m3: return quantize_rows<kSource, Codes::e4m3>(p, stream);
    case Codes::e5m2: return quantize_rows<kSource, Codes::e5m2>(p, stream);
  }
}

}  // namespace
}  // namespace aoq
