// The range of floats, 0 included, and whether all are finite. The vec_*.h included before this file gives the vector
// types; the result does not depend on the order, so every ISA and a GPU give the same bits.
#pragma once
#include "base/dtype.h"

namespace {

struct ValueRange {
  float low, high;
  bool finite;
};

class ValueRangeScan {
 public:
  AOQ_DEVICE void add(F32x16 value) {
    low_ = min(low_, value);
    high_ = max(high_, value);
    zero_ = zero_ + value * splat(0.0f);  // NaN from the first value on that is not finite
  }

  AOQ_DEVICE ValueRange result() const {
    // Adding one to the exponent carries into the sign only when all its bits are set.
    const I32x16 exponent = bits(zero_) & splat(0x7f800000);
    return {min_lanes(low_), max_lanes(high_), all_lanes(((exponent + splat(0x00800000)) >> 31) + splat(-1))};
  }

 private:
  F32x16 low_ = splat(0.0f), high_ = splat(0.0f), zero_ = splat(0.0f);
};

}  // namespace
