// Sixteen floats or integers in plain C++: what vec_avx2.h and vec_avx512.h say in intrinsics, lane by lane the same.
#pragma once
#include <cmath>

#include "base/dtype.h"

namespace {

constexpr int kVec = 16;

struct I32x16 {
  int32_t lane[kVec];
};
struct F32x16 {
  float lane[kVec];
};

template <class To, class A, class Function>
inline To each(const A& a, Function function) {
  To result;
  for (int i = 0; i < kVec; ++i) result.lane[i] = function(a.lane[i]);
  return result;
}
template <class To, class A, class B, class Function>
inline To each(const A& a, const B& b, Function function) {
  To result;
  for (int i = 0; i < kVec; ++i) result.lane[i] = function(a.lane[i], b.lane[i]);
  return result;
}

inline F32x16 splat(float value) {
  return each<F32x16>(F32x16{}, [=](float) { return value; });
}
inline I32x16 splat(int32_t value) {
  return each<I32x16>(I32x16{}, [=](int32_t) { return value; });
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
  return each<F32x16>(a, b, [](float x, float y) { return x + y; });
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  return each<F32x16>(a, b, [](float x, float y) { return x - y; });
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  return each<F32x16>(a, b, [](float x, float y) { return x * y; });
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
  return each<F32x16>(a, b, [](float x, float y) { return x / y; });
}
inline F32x16 min(F32x16 a, F32x16 b) {
  return each<F32x16>(a, b, [](float x, float y) { return x < y ? x : y; });
}
inline F32x16 max(F32x16 a, F32x16 b) {
  return each<F32x16>(a, b, [](float x, float y) { return x > y ? x : y; });
}
inline I32x16 operator+(I32x16 a, I32x16 b) {  // wraps around
  return each<I32x16>(a, b, [](int32_t x, int32_t y) {
    return static_cast<int32_t>(static_cast<uint32_t>(x) + static_cast<uint32_t>(y));
  });
}
inline I32x16 operator&(I32x16 a, I32x16 b) {
  return each<I32x16>(a, b, [](int32_t x, int32_t y) { return x & y; });
}
inline I32x16 operator|(I32x16 a, I32x16 b) {
  return each<I32x16>(a, b, [](int32_t x, int32_t y) { return x | y; });
}
inline I32x16 operator^(I32x16 a, I32x16 b) {
  return each<I32x16>(a, b, [](int32_t x, int32_t y) { return x ^ y; });
}
inline I32x16 operator<<(I32x16 a, int count) {
  return each<I32x16>(a, [=](int32_t x) { return static_cast<int32_t>(static_cast<uint32_t>(x) << count); });
}
inline I32x16 operator>>(I32x16 a, int count) {  // logical
  return each<I32x16>(a, [=](int32_t x) { return static_cast<int32_t>(static_cast<uint32_t>(x) >> count); });
}
inline I32x16 bits(F32x16 a) {
  return each<I32x16>(a, [](float x) { return static_cast<int32_t>(float_to_bits(x)); });
}
inline F32x16 from_bits(I32x16 a) {
  return each<F32x16>(a, [](int32_t x) { return bits_to_float(static_cast<uint32_t>(x)); });
}
inline I32x16 round_to_int(F32x16 a) {  // half to even
  return each<I32x16>(a, [](float x) { return static_cast<int32_t>(std::nearbyint(x)); });
}
inline F32x16 to_float(I32x16 a) {
  return each<F32x16>(a, [](int32_t x) { return static_cast<float>(x); });
}
inline F32x16 load16(const float* data) {
  F32x16 result;
  std::memcpy(result.lane, data, sizeof(result));
  return result;
}
inline F32x16 load16(const void* data, aoq::Dtype dtype, int64_t i) {
  F32x16 result;
  for (int lane = 0; lane < kVec; ++lane) result.lane[lane] = load_float(data, dtype, i + lane);
  return result;
}
inline void store16(float* data, F32x16 a) { std::memcpy(data, a.lane, sizeof(a)); }
// The first `count` of them, or all sixteen.
inline void store16_part(void* data, aoq::Dtype dtype, int64_t i, F32x16 a, int64_t count) {
  for (int lane = 0; lane < kVec && lane < count; ++lane) store_float(data, dtype, i + lane, a.lane[lane]);
}
inline void store16_i32(void* data, I32x16 a) { std::memcpy(data, a.lane, sizeof(a)); }
inline void store16_i8(int8_t* data, I32x16 a) {  // values that fit
  for (int lane = 0; lane < kVec; ++lane) data[lane] = static_cast<int8_t>(a.lane[lane]);
}
inline I32x16 load16_i32(const void* data) {
  I32x16 result;
  std::memcpy(result.lane, data, sizeof(result));
  return result;
}
// Sixteen 32-bit words, `stride` bytes apart.
inline I32x16 gather16(const uint8_t* data, int64_t stride) {
  I32x16 result;
  for (int lane = 0; lane < kVec; ++lane) std::memcpy(&result.lane[lane], data + lane * stride, 4);
  return result;
}

}  // namespace

#include "simd/lanes.h"
