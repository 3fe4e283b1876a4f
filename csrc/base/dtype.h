// The three float dtypes, and their scalar conversions. Usable in sealed ISA files.
#pragma once
#include <cstdint>
#include <cstring>

// On what both the CPU and a GPU compute: in a .cu file it is for the device.
#if defined(__CUDACC__)
#define AOQ_DEVICE __device__
#else
#define AOQ_DEVICE
#endif

namespace aoq {

enum class Dtype : int8_t { f32, bf16, f16 };

}  // namespace aoq

namespace {  // a copy in each file: see ARCHITECTURE, "ISA files are sealed"

AOQ_DEVICE inline int64_t size_of(aoq::Dtype dtype) { return dtype == aoq::Dtype::f32 ? 4 : 2; }

AOQ_DEVICE inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

AOQ_DEVICE inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

AOQ_DEVICE inline float bf16_to_float(uint16_t bits) { return bits_to_float(static_cast<uint32_t>(bits) << 16); }

AOQ_DEVICE inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // a NaN stays one
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);                 // half to even
}

AOQ_DEVICE inline float f16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  if (exponent == 0) return bits_to_float(sign | float_to_bits(static_cast<float>(mantissa) * 0x1p-24f));
  if (exponent == 31) return bits_to_float(sign | 0x7f800000 | mantissa << 13);
  return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

AOQ_DEVICE inline uint16_t float_to_f16(float value) {
  const uint32_t bits = float_to_bits(value), magnitude = bits & 0x7fffffff;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds to 65536: infinity
  if (magnitude < 0x38800000)                         // subnormal: adding 0.5 leaves the rounded bits at the end
    return static_cast<uint16_t>(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - float_to_bits(0.5f)));
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

AOQ_DEVICE inline float load_float(const void* data, aoq::Dtype dtype, int64_t i) {
  if (dtype == aoq::Dtype::f32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return dtype == aoq::Dtype::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
}

// value as the dtype holds it
AOQ_DEVICE inline float round_to(float value, aoq::Dtype dtype) {
  if (dtype == aoq::Dtype::bf16) return bf16_to_float(float_to_bf16(value));
  if (dtype == aoq::Dtype::f16) return f16_to_float(float_to_f16(value));
  return value;
}

AOQ_DEVICE inline void store_float(void* data, aoq::Dtype dtype, int64_t i, float value) {
  if (dtype == aoq::Dtype::f32)
    static_cast<float*>(data)[i] = value;
  else
    static_cast<uint16_t*>(data)[i] = dtype == aoq::Dtype::bf16 ? float_to_bf16(value) : float_to_f16(value);
}

}  // namespace
