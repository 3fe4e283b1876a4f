// Floats to fp8 codes and back. The vec_*.h included before this file gives the types, of sixteen lanes or, on a GPU,
// of one.
#pragma once
#include "base/dtype.h"
#include "formats/fp8_code.h"

namespace {

// Values within +-kMax, rounded half to even to what fp8 holds. Normal ones: float bits, rounded to kMantissa bits.
// Subnormal ones: added to the power of two whose last bit is worth one code. Both are computed of values clamped to
// their range, where the other one gives kLeastNormal exactly; so no lane needs to choose.
template <class Format>
struct Fp8Rounded {
  static constexpr int kShift = 23 - Format::kMantissa;
  static constexpr float kMagic = Format::kLeastNormal * static_cast<float>(1 << kShift);  // 2^14, 2^7
  I32x16 sign, normal;  // 0 or 1; exponent and mantissa
  F32x16 subnormal;     // kMagic and the value

  AOQ_DEVICE explicit Fp8Rounded(F32x16 value) : sign(bits(value) >> 31) {
    const F32x16 magnitude = from_bits(bits(value) & splat(0x7fffffff)), least = splat(Format::kLeastNormal);
    const I32x16 from = bits(max(magnitude, least));
    const I32x16 odd = (from >> kShift) & splat(1);
    normal = (from + odd + splat((1 << (kShift - 1)) - 1)) >> kShift;
    subnormal = min(magnitude, least) + splat(kMagic);
  }
};

// The nearest code, as a signed byte: exponent and mantissa less the difference of the biases, and the last bits of the
// subnormal sum, less the share of the one that is kLeastNormal, 1 << kMantissa.
template <class Format>
AOQ_DEVICE inline I32x16 fp8_code(F32x16 value) {
  const Fp8Rounded<Format> rounded(value);
  constexpr int32_t kRebias = (127 - Format::kBias) << Format::kMantissa;
  constexpr int32_t kMagicBits = (127 + (Format::kMantissa == 3 ? 14 : 7)) << 23;
  const I32x16 code =
      rounded.normal + bits(rounded.subnormal) + splat(-kRebias - kMagicBits - (1 << Format::kMantissa));
  const I32x16 byte = code + (rounded.sign << 7);
  return ((byte + splat(128)) & splat(255)) + splat(-128);
}

// What the nearest code stands for. One of the two magnitudes is kLeastNormal: the other is their product over it.
template <class Format>
AOQ_DEVICE inline F32x16 fp8_nearest(F32x16 value) {
  using Rounded = Fp8Rounded<Format>;
  const Rounded rounded(value);
  const F32x16 subnormal = rounded.subnormal - splat(Rounded::kMagic);
  const F32x16 magnitude = from_bits(rounded.normal << Rounded::kShift) * (subnormal * splat(1 / Format::kLeastNormal));
  return from_bits(bits(magnitude) | (rounded.sign << 31));
}

// What absmax is divided by: at least 1e-12 of it, so that zeros give zeros.
template <class Format>
AOQ_DEVICE inline float fp8_scale(float absmax, float lb, float ub) {
  absmax = absmax < lb ? lb : absmax;
  absmax = absmax > ub ? ub : absmax;
  return (absmax > 1e-12f ? absmax : 1e-12f) / Format::kMax;
}

template <class Format>
AOQ_DEVICE inline float fp8_to_float(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24, magnitude = code & 0x7f;
  constexpr int kShift = 23 - Format::kMantissa;
  if (magnitude >> Format::kMantissa == 0)  // a whole number of the smallest code
    return bits_to_float(sign | float_to_bits(static_cast<float>(magnitude) * Format::kLeastNormal /
                                              static_cast<float>(1 << Format::kMantissa)));
  return bits_to_float(sign | ((magnitude << kShift) + (static_cast<uint32_t>(127 - Format::kBias) << 23)));
}

}  // namespace
