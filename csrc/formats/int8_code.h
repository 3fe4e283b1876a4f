// int8 codes of a row from its range. The vec_*.h included before this file gives the types, of sixteen lanes or, on a
// GPU, of one.
//
//   symmetric   scale = absmax / 127.5, zero_point 0
//   asymmetric  over a range that includes 0: scale = (max - min) / 255, zero_point = -128 - round(min / scale)
// The scale is rounded to its stored dtype first, so storing it costs nothing.
//   code = clamp(round(x / scale) + zero_point, -128, 127), half to even
// A scale is at least the smallest normal number of its dtype, of fp16 the smallest at all, so that zeros give zeros.
#pragma once
#include "base/dtype.h"
#include "rows/value_range.h"

namespace {

struct RowScale {
  float scale, zero_point;
};

AOQ_DEVICE inline RowScale int8_scale(ValueRange range, bool asymmetric, aoq::Dtype scale_dtype) {
  const float least = scale_dtype == aoq::Dtype::f16 ? 0x1p-24f : 0x1p-126f;
  RowScale row{};
  if (asymmetric) {
    const float scale = range.high / 255 - range.low / 255;
    row.scale = round_to(scale > least ? scale : least, scale_dtype);
    const float steps = range.low / row.scale;  // -300 and less clamp alike, and so does what is no number
    constexpr float kMagic = 0x1.8p23f;         // a sum with it has no fraction: rounded half to even
    const float zero = -128 - ((steps > -300 ? steps : -300) + kMagic - kMagic);
    row.zero_point = zero < -128 ? -128 : zero > 127 ? 127 : zero;
  } else {
    const float absmax = -range.low > range.high ? -range.low : range.high;
    row.scale = round_to(absmax / 127.5f > least ? absmax / 127.5f : least, scale_dtype);
  }
  return row;
}

AOQ_DEVICE inline I32x16 int8_code(F32x16 value, RowScale row) {
  const F32x16 least = splat(-128 - row.zero_point), most = splat(127 - row.zero_point);
  return round_to_int(min(max(value / splat(row.scale), least), most)) + splat(static_cast<int32_t>(row.zero_point));
}

// What is stored of a row: a row with a NaN or an infinity gets the scale NaN.
AOQ_DEVICE inline float stored_scale(float scale, ValueRange range) {
  return range.finite ? scale : bits_to_float(0x7fc00000);
}

}  // namespace
