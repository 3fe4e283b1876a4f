// The range of floats, 0 included, and whether all are finite. The vec_*.h included before this file gives the vector
// types; the result does not depend on the order, so every ISA gives the same bits.
#pragma once
#include "core/dtype.h"

namespace {

// data[i] for i in [first, first + 16), zeros from count on
inline F32x16 load16_part(const void* data, aoq::Dtype dtype, int64_t first, int64_t count) {
  if (first + 16 <= count) return load16(data, dtype, first);
  float part[16];
  for (int i = 0; i < 16; ++i) part[i] = first + i < count ? load_float(data, dtype, first + i) : 0;
  return load16(part);
}

struct ValueRange {
  float low, high;
  bool finite;
};

class ValueRangeScan {
 public:
  void add(F32x16 value) {
    low_ = min(low_, value);
    high_ = max(high_, value);
    // Adding one to the exponent carries into the sign only when all its bits are set.
    const I32x16 exponent = bits(value) & splat(0x7f800000);
    finite_ = finite_ & (((exponent + splat(0x00800000)) >> 31) + splat(-1));
  }

  ValueRange result() const {
    float low[16], high[16];
    int32_t finite[16];
    store16(low, low_);
    store16(high, high_);
    store16_i32(finite, finite_);
    for (int i = 1; i < 16; ++i) {
      low[0] = low[i] < low[0] ? low[i] : low[0];
      high[0] = high[i] > high[0] ? high[i] : high[0];
      finite[0] &= finite[i];
    }
    return {low[0], high[0], finite[0] == -1};
  }

 private:
  F32x16 low_ = splat(0.0f), high_ = splat(0.0f);
  I32x16 finite_ = splat(-1);
};

}  // namespace
