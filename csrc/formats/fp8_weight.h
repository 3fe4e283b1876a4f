// fp8 weights as matmuls read them: tiled like int8 (formats/int8.h), so a stored byte is the code with its sign
// flipped.
#pragma once
#include "formats/fp8_code.h"
#include "formats/int8.h"

namespace {

constexpr uint8_t kFp8SignFlip = 0x80;

// Above it, a code's magnitude is NaN, or infinity.
template <class Format>
constexpr int kLastFp8 = Format::kMantissa == 3 ? 0x7e : 0x7b;

// The bf16 bits of a code's magnitude: every fp8 value is exact in bf16.
template <class Format>
constexpr uint16_t fp8_to_bf16(int magnitude) {
  int exponent = (magnitude >> Format::kMantissa) - Format::kBias;
  int mantissa = magnitude & ((1 << Format::kMantissa) - 1);
  if (magnitude > kLastFp8<Format>) return Format::kMantissa == 2 && mantissa == 0 ? 0x7f80 : 0x7fc0;
  if (magnitude == 0) return 0;
  if (magnitude >> Format::kMantissa == 0) {  // subnormal: a leading 1, wherever it is
    for (exponent = 1 - Format::kBias; !(mantissa >> Format::kMantissa); --exponent) mantissa *= 2;
    mantissa -= 1 << Format::kMantissa;
  }
  return static_cast<uint16_t>((exponent + 127) << 7 | mantissa << (7 - Format::kMantissa));
}

static_assert(fp8_to_bf16<E4m3>(0x7e) == 0x43e0 && fp8_to_bf16<E5m2>(0x7b) == 0x4760, "448 and 57344");
static_assert(fp8_to_bf16<E4m3>(1) == 0x3b00 && fp8_to_bf16<E5m2>(3) == 0x3840, "2^-9 and 3 * 2^-16");

template <class Format>
struct Fp8Table {
  alignas(64) uint16_t bf16[128];
  constexpr Fp8Table() : bf16{} {
    for (int magnitude = 0; magnitude < 128; ++magnitude) bf16[magnitude] = fp8_to_bf16<Format>(magnitude);
  }
};
template <class Format>
constexpr Fp8Table<Format> kFp8Table{};

// A format of weights (formats/format.h).
template <class Fp8_, bool kGrouped_ = false>
struct Fp8Weight {
  using Fp8 = Fp8_;
  static constexpr int kBits = 8, kFlip = kFp8SignFlip, kMid = 0;
  static constexpr bool kGrouped = kGrouped_, kFp8 = true, kTable = false;
  static constexpr float value(int code) {
    const int byte = code ^ kFp8SignFlip;
    const uint32_t bits = static_cast<uint32_t>(fp8_to_bf16<Fp8>(byte & 0x7f)) << 16;
    return __builtin_bit_cast(float, bits | static_cast<uint32_t>(byte & 0x80) << 24);
  }
};

}  // namespace
