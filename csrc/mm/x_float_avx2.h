// Activations in fp32 on AVX2, one k a step.
#pragma once
#include "simd/vec_avx2.h"

#include "mm/packed_mm_vector.h"

namespace {

struct FloatAvx2 : Avx2 {
  using Sum = Vec;
  using Raw = __m256i;
  using Weight = __m256;
  using X = float;
  static constexpr bool kInt8 = false;
  static constexpr int kStep = 1, kTileRows = 6, kFusedTile = 4, kFusedRows = kFusedTile;

  static Raw load_raw(const uint8_t* unit) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit)); }
  static Weight load_weight(const float* data) { return _mm256_loadu_ps(data); }
  static void store_weight(float* data, Weight weight) { _mm256_storeu_ps(data, weight); }
  static Vec dot(Vec sum, Weight weight, const X* x) { return _mm256_fmadd_ps(weight, _mm256_broadcast_ss(x), sum); }
  static const X* words(const void* x, aoq::Dtype dtype, int64_t k, int64_t steps, X* memory) {
    if (dtype == aoq::Dtype::f32 && k == steps) return static_cast<const X*>(x);
    widen_row<Avx2>(x, dtype, k, steps, memory);
    return memory;
  }
};

}  // namespace
