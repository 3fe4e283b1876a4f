// A row of floats to int8, as weights and activations are: the one quantizer of every int8 op. The vec_*.h included
// before this file gives the vector types; every ISA gives the same bits.
//
//   symmetric   scale = absmax / 127.5, zero_point 0
//   asymmetric  over a range that includes 0: scale = (max - min) / 255, zero_point = -128 - round(min / scale)
// The scale is rounded to its stored dtype first, so storing it costs nothing.
//   code = clamp(round(x / scale) + zero_point, -128, 127), half to even;  scale >= 2^-23, so that zeros give zeros
#pragma once
#include "core/dtype.h"

namespace {

struct RowScale {
  float scale, zero_point;
};

// data[i] for i in [first, first + 16), zeros from count on
inline F32x16 load16_part(const void* data, aoq::Dtype dtype, int64_t first, int64_t count) {
  if (first + 16 <= count) return load16(data, dtype, first);
  float part[16];
  for (int i = 0; i < 16; ++i) part[i] = first + i < count ? load_float(data, dtype, first + i) : 0;
  return load16(part);
}

// codes has room for k rounded up to 16. A row with a NaN or an infinity gets the scale NaN.
inline RowScale quantize_row(const void* x, aoq::Dtype dtype, int64_t k, bool asymmetric, aoq::Dtype scale_dtype,
                             int8_t* codes) {
  F32x16 low = splat(0.0f), high = splat(0.0f);
  I32x16 finite = splat(-1);
  for (int64_t i = 0; i < k; i += 16) {
    const F32x16 value = load16_part(x, dtype, i, k);
    low = min(low, value);
    high = max(high, value);
    // Adding one to the exponent carries into the sign only when all its bits are set.
    const I32x16 exponent = bits(value) & splat(0x7f800000);
    finite = finite & (((exponent + splat(0x00800000)) >> 31) + splat(-1));
  }
  float lows[16], highs[16];
  int32_t finites[16];
  store16(lows, low);
  store16(highs, high);
  store16_i32(finites, finite);
  for (int i = 1; i < 16; ++i) {
    lows[0] = lows[i] < lows[0] ? lows[i] : lows[0];
    highs[0] = highs[i] > highs[0] ? highs[i] : highs[0];
    finites[0] &= finites[i];
  }
  constexpr float kEps = 0x1p-23f;
  RowScale row{};
  if (asymmetric) {
    const float scale = highs[0] / 255 - lows[0] / 255;
    row.scale = round_to(scale > kEps ? scale : kEps, scale_dtype);
    int32_t rounded[16];
    store16_i32(rounded, round_to_int(splat(lows[0] / row.scale)));
    const int32_t zero = -128 - rounded[0];
    row.zero_point = static_cast<float>(zero < -128 ? -128 : zero > 127 ? 127 : zero);
  } else {
    const float absmax = -lows[0] > highs[0] ? -lows[0] : highs[0];
    row.scale = round_to(absmax / 127.5f > kEps ? absmax / 127.5f : kEps, scale_dtype);
  }
  const F32x16 scale = splat(row.scale), least = splat(-128 - row.zero_point), most = splat(127 - row.zero_point);
  const I32x16 zero = splat(static_cast<int32_t>(row.zero_point));
  for (int64_t i = 0; i < k; i += 16) {
    const F32x16 quotient = load16_part(x, dtype, i, k) / scale;
    store16_i8(codes + i, round_to_int(min(max(quotient, least), most)) + zero);
  }
  if (finites[0] != -1) row.scale = bits_to_float(0x7fc00000);
  return row;
}

}  // namespace
