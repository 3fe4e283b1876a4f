// A row of floats to int8, as weights and activations are: the one quantizer of every int8 op. The vec_*.h included
// before this file gives the vector types; every ISA gives the same bits.
//
//   symmetric   scale = absmax / 127.5, zero_point 0
//   asymmetric  over a range that includes 0: scale = (max - min) / 255, zero_point = -128 - round(min / scale)
// The scale is rounded to its stored dtype first, so storing it costs nothing.
//   code = clamp(round(x / scale) + zero_point, -128, 127), half to even;  scale >= 2^-23, so that zeros give zeros
#pragma once
#include "core/dtype.h"
#include "core/value_range.h"

namespace {

struct RowScale {
  float scale, zero_point;
};

// A row as it lies in memory. What is quantized is any such function of i: the values i .. i + 15, zeros from k on.
struct GivenRow {
  const void* x;
  aoq::Dtype dtype;
  int64_t k;
  F32x16 operator()(int64_t i) const { return load16_part(x, dtype, i, k); }
};

template <class Row>
inline ValueRange row_range(const Row& row, int64_t k) {
  ValueRangeScan scan;
  for (int64_t i = 0; i < k; i += 16) scan.add(row(i));
  return scan.result();
}

// codes has room for k rounded up to 16. A row with a NaN or an infinity gets the scale NaN.
template <class Row>
inline RowScale quantize_row(const Row& values, int64_t k, bool asymmetric, aoq::Dtype scale_dtype, int8_t* codes) {
  const ValueRange range = row_range(values, k);
  constexpr float kEps = 0x1p-23f;
  RowScale row{};
  if (asymmetric) {
    const float scale = range.high / 255 - range.low / 255;
    row.scale = round_to(scale > kEps ? scale : kEps, scale_dtype);
    int32_t rounded[16];
    store16_i32(rounded, round_to_int(splat(range.low / row.scale)));
    const int32_t zero = -128 - rounded[0];
    row.zero_point = static_cast<float>(zero < -128 ? -128 : zero > 127 ? 127 : zero);
  } else {
    const float absmax = -range.low > range.high ? -range.low : range.high;
    row.scale = round_to(absmax / 127.5f > kEps ? absmax / 127.5f : kEps, scale_dtype);
  }
  const F32x16 scale = splat(row.scale), least = splat(-128 - row.zero_point), most = splat(127 - row.zero_point);
  const I32x16 zero = splat(static_cast<int32_t>(row.zero_point));
  for (int64_t i = 0; i < k; i += 16)
    store16_i8(codes + i, round_to_int(min(max(values(i) / scale, least), most)) + zero);
  if (!range.finite) row.scale = bits_to_float(0x7fc00000);
  return row;
}

inline RowScale quantize_row(const void* x, aoq::Dtype dtype, int64_t k, bool asymmetric, aoq::Dtype scale_dtype,
                             int8_t* codes) {
  return quantize_row(GivenRow{x, dtype, k}, k, asymmetric, scale_dtype, codes);
}

}  // namespace
