// Activations in fp32 on AVX-512, one k a step.
#pragma once
#include "simd/vec_avx512.h"

#include "mm/packed_mm_vector.h"

namespace {

struct FloatAvx512 : Avx512 {
  using Sum = Vec;
  using Raw = __m512i;
  using Weight = __m512;
  using X = float;
  static constexpr bool kInt8 = false;
  static constexpr int kStep = 1, kTileRows = 12, kFusedTile = 10, kFusedRows = 40;

  static Raw load_raw(const uint8_t* unit) { return _mm512_loadu_si512(unit); }
  static Weight load_weight(const float* data) { return _mm512_loadu_ps(data); }
  static void store_weight(float* data, Weight weight) { _mm512_storeu_ps(data, weight); }
  static Vec dot(Vec sum, Weight weight, const X* x) { return _mm512_fmadd_ps(weight, _mm512_set1_ps(*x), sum); }
  static const X* words(const void* x, aoq::Dtype dtype, int64_t k, int64_t steps, X* memory) {
    if (dtype == aoq::Dtype::f32 && k == steps) return static_cast<const X*>(x);
    widen_row<Avx512>(x, dtype, k, steps, memory);
    return memory;
  }
};

}  // namespace
