// Sixteen floats or integers in sixteen threads, half a warp, one each: what vec_ref.h says, bit for bit, so that a
// plan written for vectors runs on a GPU as it stands. All sixteen threads take part in every call.
#pragma once
#include <cuda_runtime.h>

#include "base/dtype.h"

namespace {

struct I32x16 {
  int32_t lane;
};
struct F32x16 {
  float lane;
};

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x % 16); }

__device__ inline F32x16 splat(float value) { return {value}; }
__device__ inline I32x16 splat(int32_t value) { return {value}; }
__device__ inline F32x16 operator+(F32x16 a, F32x16 b) { return {a.lane + b.lane}; }
__device__ inline F32x16 operator-(F32x16 a, F32x16 b) { return {a.lane - b.lane}; }
__device__ inline F32x16 operator*(F32x16 a, F32x16 b) { return {a.lane * b.lane}; }
__device__ inline F32x16 operator/(F32x16 a, F32x16 b) { return {a.lane / b.lane}; }
__device__ inline F32x16 min(F32x16 a, F32x16 b) { return a.lane < b.lane ? a : b; }
__device__ inline F32x16 max(F32x16 a, F32x16 b) { return a.lane > b.lane ? a : b; }
__device__ inline I32x16 operator+(I32x16 a, I32x16 b) {  // wraps around
  return {static_cast<int32_t>(static_cast<uint32_t>(a.lane) + static_cast<uint32_t>(b.lane))};
}
__device__ inline I32x16 operator&(I32x16 a, I32x16 b) { return {a.lane & b.lane}; }
__device__ inline I32x16 operator|(I32x16 a, I32x16 b) { return {a.lane | b.lane}; }
__device__ inline I32x16 operator^(I32x16 a, I32x16 b) { return {a.lane ^ b.lane}; }
__device__ inline I32x16 operator<<(I32x16 a, int count) {
  return {static_cast<int32_t>(static_cast<uint32_t>(a.lane) << count)};
}
__device__ inline I32x16 operator>>(I32x16 a, int count) {  // logical
  return {static_cast<int32_t>(static_cast<uint32_t>(a.lane) >> count)};
}
__device__ inline I32x16 bits(F32x16 a) { return {static_cast<int32_t>(float_to_bits(a.lane))}; }
__device__ inline F32x16 from_bits(I32x16 a) { return {bits_to_float(static_cast<uint32_t>(a.lane))}; }
__device__ inline I32x16 round_to_int(F32x16 a) { return {__float2int_rn(a.lane)}; }  // half to even
__device__ inline F32x16 to_float(I32x16 a) { return {static_cast<float>(a.lane)}; }

// ---- what lanes.h says, by shuffles

__device__ inline unsigned sixteen() { return 0xffffu << (threadIdx.x & 16); }  // these threads of the warp

template <class T, class Function>
__device__ inline T fold_lanes(T value, Function function) {
  for (int width = 8; width > 0; width /= 2) value = function(value, __shfl_down_sync(sixteen(), value, width, 16));
  return __shfl_sync(sixteen(), value, 0, 16);
}
__device__ inline float sum_lanes(F32x16 a) {
  return fold_lanes(a.lane, [](float x, float y) { return x + y; });
}
__device__ inline float min_lanes(F32x16 a) {
  return fold_lanes(a.lane, [](float x, float y) { return x < y ? x : y; });
}
__device__ inline float max_lanes(F32x16 a) {
  return fold_lanes(a.lane, [](float x, float y) { return x > y ? x : y; });
}
__device__ inline bool all_lanes(I32x16 a) {
  return fold_lanes(a.lane, [](int32_t x, int32_t y) { return x & y; }) == -1;
}
__device__ inline F32x16 first_lanes(int64_t count) { return {lane_index() < count ? 1.0f : 0.0f}; }
__device__ inline F32x16 load16_part(const void* data, aoq::Dtype dtype, int64_t first, int64_t count) {
  const int64_t i = first + lane_index();
  return {i < count ? load_float(data, dtype, i) : 0.0f};
}
// bits: of a code, known when this is compiled.
__device__ inline void store16_codes(uint8_t* data, I32x16 codes, int64_t count, int bits) {
  const int lane = lane_index();
  if (bits != 4) {  // a lane makes a byte, of all codes that have bits in it
    const int first = 8 * lane / bits;
    int32_t byte = 0;
    for (int i = 0; i <= 8 / bits + 1; ++i) {
      const int32_t code = __shfl_sync(sixteen(), codes.lane, (first + i) % 16, 16);
      const int shift = (first + i) * bits - 8 * lane;
      if (first + i < count && first + i < 16 && shift < 8) byte |= shift < 0 ? code >> -shift : code << shift;
    }
    if (8 * lane < (count < 16 ? count : 16) * bits) data[lane] = static_cast<uint8_t>(byte);
    return;
  }
  const int32_t next = __shfl_down_sync(sixteen(), codes.lane, 1, 16);
  if (lane % 2 == 0 && lane < count)
    data[lane / 2] = static_cast<uint8_t>(codes.lane | (lane + 1 < count ? next << 4 : 0));
}

}  // namespace
