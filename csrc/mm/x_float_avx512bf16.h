// bf16 activations on AVX512_BF16: vdpbf16ps multiplies pairs exactly and adds in fp32.
#pragma once
#include "simd/vec_avx512.h"

#include "mm/packed_mm_vector.h"

namespace {

struct FloatAvx512Bf16 : Avx512 {
  using Sum = Vec;
  using Raw = __m512i;
  using Weight = __m512i;
  using X = uint32_t;  // a bf16 pair
  static constexpr bool kInt8 = false;
  static constexpr int kStep = 2, kTileRows = 12, kFusedTile = 8, kFusedRows = kFusedTile;

  static Raw load_raw(const uint8_t* unit) { return _mm512_loadu_si512(unit); }
  static Weight load_weight(const float* data) { return _mm512_loadu_si512(data); }
  static void store_weight(float* data, Weight weight) { _mm512_storeu_si512(data, weight); }
  static Vec dot(Vec sum, Weight weight, const X* x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weight, (__m512bh)_mm512_set1_epi32(static_cast<int>(*x)));
  }

  static const X* words(const void* x, aoq::Dtype, int64_t k, int64_t steps, X* memory) {
    if (k == 2 * steps) return static_cast<const X*>(x);
    std::memcpy(memory, x, static_cast<size_t>(k) * 2);
    std::memset(reinterpret_cast<char*>(memory) + k * 2, 0, static_cast<size_t>(2 * steps - k) * 2);
    return memory;
  }
};

}  // namespace
