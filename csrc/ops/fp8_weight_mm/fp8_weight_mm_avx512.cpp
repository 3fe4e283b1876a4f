// A code's bits, moved to where a float has them; subnormal codes are whole numbers of the smallest.
#include "mm/x_float_avx512.h"

#include "formats/fp8_weight.h"
#include "ops/fp8_weight_mm/fp8_weight_mm.h"

namespace {

template <class Format>
struct Fp8Avx512 : FloatAvx512 {
  static constexpr bool kScaleLast = true;
  static constexpr float kMid = 0, kOffset = 0;
  static constexpr int kUnitK = aoq::int8::kUnitK, kFusedRows = kFusedTile;

  static Weight decode(Raw raw, int k) {
    const __m512i byte = _mm512_srli_epi32(raw, static_cast<unsigned>(8 * k));
    const __m512i magnitude = _mm512_and_si512(byte, _mm512_set1_epi32(0x7f));
    constexpr float kLeast = Format::kLeastNormal / (1 << Format::kMantissa);
    __m512i bits = _mm512_add_epi32(_mm512_slli_epi32(magnitude, 23 - Format::kMantissa),
                                    _mm512_set1_epi32((127 - Format::kBias) << 23));
    const __mmask16 subnormal = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(1 << Format::kMantissa));
    const __m512 small = _mm512_mul_ps(_mm512_cvtepi32_ps(magnitude), _mm512_set1_ps(kLeast));
    bits = _mm512_mask_mov_epi32(bits, subnormal, _mm512_castps_si512(small));
    // NaN, and e5m2's infinity: all ones in the exponent, and the code's mantissa.
    const __mmask16 special = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(kLastFp8<Format>));
    const __m512i mantissa = _mm512_slli_epi32(magnitude, 23 - Format::kMantissa);
    bits = _mm512_mask_or_epi32(bits, special, mantissa, _mm512_set1_epi32(0x7f800000));
    // bits | (~flipped sign & 0x80000000)
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, _mm512_slli_epi32(byte, 24),
                                                         _mm512_set1_epi32(static_cast<int>(0x80000000)), 0xf2));
  }
};

}  // namespace

void aoq::fp8_weight_mm_avx512(const PackedMm& p) {
  p.w_e5m2 ? VectorMm<Fp8Avx512<E5m2>>::run(p) : VectorMm<Fp8Avx512<E4m3>>::run(p);
}
