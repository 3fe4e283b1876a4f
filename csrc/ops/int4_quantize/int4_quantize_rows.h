// Rows of groups over threads, a group at a time in L1. The vec_*.h included before this file gives the vector types.
#pragma once
#include "base/parallel.h"
#include "ops/int4_quantize/int4_quantize_vector.h"

namespace {

struct ScratchValues {
  const float* w;
  F32x16 operator()(int64_t vector) const { return load16(w + vector * 16); }
};

inline void quantize(const Int4Quantize& p) {
  const int64_t group = p.group, groups = aoq::ceil_div(p.k, group);
  auto rows = [&](int64_t begin, int64_t end) {
    const Scratch<float> w(aoq::ceil_div(group, 16) * 16);
    for (int64_t row = begin; row < end; ++row) {
      const char* data = static_cast<const char*>(p.w) + row * p.w_stride * size_of(p.w_dtype);
      uint8_t* qdata = p.qdata + row * aoq::ceil_div(p.k * p.bits, 8);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * group, count = p.k - first < group ? p.k - first : group;
        for (int64_t k = 0; k < count; k += 16)
          store16(w.get() + k, load16_part(data, p.w_dtype, first + k, first + count));
        const Group<ScratchValues> values{{w.get()}, count};
        const ValueRange range = values.range();
        if (!range.finite) {
          __atomic_store_n(p.bad_row, row, __ATOMIC_RELAXED);
          return;
        }
        quantize_group(p, values, range, row * groups + g, qdata + first * p.bits / 8, p.bits);
      }
    }
  };
  parallel(p.n, 1 + 16384 / p.k, rows);
}

}  // namespace
