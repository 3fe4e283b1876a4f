// The functions of a row that are computed before it is quantized. Only sums, products, quotients and roots, each
// rounded to fp32 and in one order, so that every ISA and a GPU give the same bits. The vec_*.h included before this
// file gives the types, of sixteen lanes or, on a GPU, of one.
#pragma once
#include "base/dtype.h"

namespace {

AOQ_DEVICE inline float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

// e^x, x clamped to [-87, 88]; within 2 units in the last place (Cephes' expf).
AOQ_DEVICE inline F32x16 exponential(F32x16 x) {
  const F32x16 in_range = min(max(x, splat(-87.0f)), splat(88.0f));
  const I32x16 power = round_to_int(in_range * splat(1.44269504f));
  const F32x16 whole = to_float(power);
  // ln 2 in two parts: the first has few bits, so that its product is exact.
  const F32x16 r = in_range - whole * splat(0.693359375f) - whole * splat(-2.12194440e-4f);
  F32x16 sum = splat(1.9875691500e-4f);
  sum = sum * r + splat(1.3981999507e-3f);
  sum = sum * r + splat(8.3334519073e-3f);
  sum = sum * r + splat(4.1665795894e-2f);
  sum = sum * r + splat(1.6666665459e-1f);
  sum = sum * r + splat(5.0000001201e-1f);
  return (sum * (r * r) + r + splat(1.0f)) * from_bits((power + splat(127)) << 23);
}

AOQ_DEVICE inline F32x16 silu_mul(F32x16 gate, F32x16 up) {
  return gate / (splat(1.0f) + exponential(splat(0.0f) - gate)) * up;
}

// What each value of a row is multiplied with before the weight.
AOQ_DEVICE inline float rms_factor(float sum_of_squares, int64_t k, float eps) {
  return 1.0f / square_root(sum_of_squares / static_cast<float>(k) + eps);
}

}  // namespace
