// A row of floats to the fp8 codes of one scale. The vec_*.h included before this file gives the vector types; every
// ISA gives the same bits.
#pragma once
#include "formats/fp8.h"
#include "rows/quantize_row.h"

namespace {

template <class Format>
inline float fp8_scale(ValueRange range, float lb, float ub) {
  if (!range.finite) return bits_to_float(0x7fc00000);
  return fp8_scale<Format>(-range.low > range.high ? -range.low : range.high, lb, ub);
}

// store(i, v) gets v = x / scale, within +-kMax, of x[i : i + 16]. Returns the scale: `given`, or if that is null the
// row's own.
template <class Format, class Row, class Store>
inline float fp8_row(const Row& x, int64_t k, float lb, float ub, const float* given, Store store) {
  const float scale = given ? *given : fp8_scale<Format>(row_range(x, k), lb, ub);
  const F32x16 divisor = splat(scale), least = splat(-Format::kMax), most = splat(Format::kMax);
  for (int64_t i = 0; i < k; i += 16) store(i, min(max(x(i) / divisor, least), most));
  return scale;
}

}  // namespace
