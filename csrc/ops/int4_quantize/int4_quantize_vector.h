// Quantizing one group, in fp32. The vec_*.h included before this file gives the vector types; sums are kept in sixteen
// lanes and added up in one fixed order, so that every ISA and a GPU give the same bits.
#pragma once
#include "formats/format.h"
#include "ops/int4_quantize/int4_quantize.h"
#include "rows/value_range.h"

namespace {

using aoq::Dtype;
using aoq::Int4Mapping;
using aoq::Int4Quantize;

AOQ_DEVICE inline F32x16 abs(F32x16 a) { return from_bits(bits(a) & splat(0x7fffffff)); }

// a^exponent for normal a > 0, to about five digits: it only weighs how far an error is shrunk.
AOQ_DEVICE inline F32x16 power(F32x16 a, float exponent) {
  const I32x16 word = bits(a);
  const F32x16 whole = to_float((word >> 23) + splat(-127));
  const F32x16 m = from_bits((word & splat(0x7fffff)) | splat(0x3f800000)) - splat(1.0f);  // [0, 1)
  // log2(1 + m), then 2^f for f in [-0.5, 0.5]: least-squares polynomials
  F32x16 log = splat(0.0440047f);
  constexpr float kLog[] = {-0.19031905f, 0.41234423f, -0.70777019f, 1.4417403f};
  for (const float c : kLog) log = log * m + splat(c);
  const F32x16 power_of_two = (whole + log * m) * splat(exponent);
  const I32x16 integer = round_to_int(power_of_two);
  const F32x16 f = power_of_two - to_float(integer);
  F32x16 exp = splat(0.00966725f);
  constexpr float kExp[] = {0.05587554f, 0.24022309f, 0.69312726f, 1.0f};
  for (const float c : kExp) exp = exp * f + splat(c);
  return exp * from_bits((integer + splat(127)) << 23);
}

// A group of w. values(v) gives its sixteen from 16v on, zeros after `count`.
template <class Values>
struct Group {
  Values values;
  int64_t count;

  AOQ_DEVICE int64_t vectors() const { return aoq::ceil_div(count, 16); }
  // 1 for lanes that hold w, 0 after the end
  AOQ_DEVICE F32x16 mask(int64_t vector) const { return first_lanes(count - vector * 16); }
  AOQ_DEVICE ValueRange range() const {
    ValueRangeScan scan;
    for (int64_t v = 0; v < vectors(); ++v) scan.add(values(v));
    return scan.result();
  }
};

// most: the largest code, 15 of four bits.
AOQ_DEVICE inline F32x16 codes_of(F32x16 w, F32x16 scale, F32x16 zero, float most) {
  // Clamped before rounding: a huge quotient has no integer.
  return to_float(round_to_int(min(max(w / scale + zero, splat(0.0f)), splat(most))));
}

struct ScaleAndZero {
  float scale, zero;
};

// HQQ's zero point (shrink the error towards what an Lp norm tolerates, re-centre, repeat), for the full range and for
// narrower ones that clip outliers; of all that was met, the pair with the least error in the norm below.
template <class Values>
AOQ_DEVICE inline ScaleAndZero fit(const Group<Values>& group, float scale, float zero, Dtype dtype, float most) {
  constexpr float kP = 0.7f, kKappa = 1.01f, kErrorNorm = 2.4f;
  static constexpr float kRanges[] = {1, 0.97f, 0.94f, 0.91f, 0.88f, 0.85f, 0.8f, 0.75f};
  constexpr int kIterations = 20;
  ScaleAndZero best{scale, zero};
  float best_error = 3.4e38f;
  const F32x16 one = splat(1.0f), tiny = splat(1e-12f), full = splat(scale);
  for (const float range : kRanges) {
    ScaleAndZero now{round_to(scale * range, dtype), zero};
    float beta = 10, last_error = 3.4e38f;
    if (now.scale == 0) break;
    for (int iteration = 0; iteration < kIterations; ++iteration, beta *= kKappa) {
      F32x16 errors = splat(0.0f), zeros = splat(0.0f);
      const F32x16 s = splat(now.scale), z = splat(now.zero);
      for (int64_t v = 0; v < group.vectors(); ++v) {
        const F32x16 w = group.values(v), code = codes_of(w, s, z, most);
        const F32x16 error = w - (code - z) * s, size = abs(error);
        const F32x16 shrunk = max(size - power(max(size, tiny), kP - 1) * splat(1 / beta), splat(0.0f));
        const F32x16 kept = from_bits(bits(shrunk) | (bits(error) & splat(static_cast<int32_t>(0x80000000))));
        const F32x16 mask = (v + 1) * 16 <= group.count ? one : group.mask(v);
        errors = errors + power(max(size / full, tiny), kErrorNorm) * mask;
        zeros = zeros + (code - (w - kept) / s) * mask;
      }
      const float error = sum_lanes(errors);
      if (error < best_error) {
        best_error = error;
        best = now;
      }
      if (!(error < last_error)) break;
      last_error = error;
      now.zero = sum_lanes(zeros) / static_cast<float>(group.count);
    }
  }
  return {best.scale, round_to(best.zero, dtype)};
}

// at: the group's place among all scales. bits: of a code; where it is known when this is compiled, all is as if it
// were written for that width.
template <class Values>
AOQ_DEVICE inline void quantize_group(const Int4Quantize& p, const Group<Values>& group, const ValueRange& range,
                                      int64_t at, uint8_t* qdata, int bits) {
  const float most = static_cast<float>((1 << bits) - 1);
  const bool symmetric = p.mapping == Int4Mapping::symmetric;
  const float absmax = -range.low > range.high ? -range.low : range.high;
  // Halves first: max - min of finite values may be infinite.
  const float span = symmetric ? absmax / (most / 2) : (range.high / most - range.low / most);
  float scale = round_to(span, p.scale_dtype), zero = symmetric ? (most + 1) / 2 : 0;
  if (!range.finite) {
    scale = zero = bits_to_float(0x7fc00000);  // where the kernel cannot stop
  } else if (scale == 0) {
    scale = 1;  // all zeros, or so small that the stored dtype has none
  } else if (!symmetric) {
    zero = round_to(-range.low / scale, p.scale_dtype);
    if (p.mapping == Int4Mapping::hqq) {
      const ScaleAndZero fitted = fit(group, scale, zero, p.scale_dtype, most);
      scale = fitted.scale;
      zero = fitted.zero;
    }
  }
  store_float(p.scale, p.scale_dtype, at, scale);
  if (!symmetric) store_float(p.zero_point, p.scale_dtype, at, zero);

  for (int64_t v = 0; v < group.vectors(); ++v) {
    const I32x16 codes = round_to_int(codes_of(group.values(v), splat(scale), splat(zero), most));
    store16_codes(qdata + v * 2 * bits, codes, group.count - v * 16, bits);
  }
}

}  // namespace
