// int8 activations without VNNI: codes and activations widened to 16 bits, pairs of products added to each int32.
#pragma once
#include "core/vec_avx512.h"

#include "core/packed_mm_vector.h"

namespace {

struct Int8Avx512 : Avx512 {
  using Sum = __m512i;
  using Raw = __m512i;
  using Weight = __m512i;
  using X = uint32_t;  // two int16
  static constexpr bool kInt8 = true;
  static constexpr float kOffset = 0;
  static constexpr int kStep = 2, kTileRows = 12, kFusedRows = 4;

  static Sum zero() { return _mm512_setzero_si512(); }
  static Vec to_float(Sum sum) { return _mm512_cvtepi32_ps(sum); }
  static Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  using Avx512::add;
  static Raw load_raw(const uint8_t* unit) { return _mm512_loadu_si512(unit); }
  static Weight load_weight(const float* data) { return _mm512_loadu_si512(data); }
  static void store_weight(float* data, Weight weight) { _mm512_storeu_si512(data, weight); }
  static Sum dot(Sum sum, Weight weight, const X* x) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(weight, _mm512_set1_epi32(static_cast<int>(*x))));
  }
  static X pair(int8_t low, int8_t high) {
    return static_cast<uint16_t>(low) | static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16;
  }
};

}  // namespace
