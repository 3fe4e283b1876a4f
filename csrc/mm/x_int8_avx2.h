// int8 activations without VNNI: codes and activations widened to 16 bits, pairs of products added to each int32.
#pragma once
#include "simd/vec_avx2.h"

#include "mm/packed_mm_vector.h"

namespace {

struct Int8Avx2 : Avx2 {
  // Not __m256i: GCC 12 keeps arrays of that in memory, with a copy for every use.
  using Sum = __v8si;
  using Raw = __m256i;
  using Weight = __m256i;
  using X = uint32_t;  // two int16
  static constexpr bool kInt8 = true, kScaleLast = false;
  static constexpr float kOffset = 0;
  static constexpr int kStep = 2, kTileRows = 6, kFusedTile = 4, kFusedRows = 1 << 30;

  static Sum zero() { return Sum{}; }
  static Sum start(int32_t value) { return (Sum)_mm256_set1_epi32(value); }
  static Vec to_float(Sum sum) { return _mm256_cvtepi32_ps((__m256i)sum); }
  static Sum add(Sum a, Sum b) { return a + b; }
  using Avx2::add;
  static Raw load_raw(const uint8_t* unit) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit)); }
  static Weight load_weight(const float* data) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)); }
  static void store_weight(float* data, Weight weight) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(data), weight);
  }
  static Sum dot(Sum sum, Weight weight, const X* x) {
    return sum + (Sum)_mm256_madd_epi16(weight, _mm256_set1_epi32(static_cast<int>(*x)));
  }
  static X pair(int8_t low, int8_t high) {
    return static_cast<uint16_t>(low) | static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16;
  }
};

}  // namespace
