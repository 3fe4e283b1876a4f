// A code's bits, moved to where a float has them; subnormal codes are whole numbers of the smallest.
#include "mm/x_float_avx2.h"

#include "formats/fp8_weight.h"
#include "ops/fp8_weight_mm/fp8_weight_mm.h"

namespace {

template <class Format>
struct Fp8Avx2 : FloatAvx2 {
  static constexpr bool kScaleLast = true;
  static constexpr float kMid = 0, kOffset = 0;
  static constexpr int kUnitK = aoq::int8::kUnitK;

  static Weight decode(Raw raw, int k) {
    const __m256i byte = _mm256_srli_epi32(raw, 8 * k);
    const __m256i magnitude = _mm256_and_si256(byte, _mm256_set1_epi32(0x7f));
    constexpr float kLeast = Format::kLeastNormal / (1 << Format::kMantissa);
    const __m256i mantissa = _mm256_slli_epi32(magnitude, 23 - Format::kMantissa);
    __m256i bits = _mm256_add_epi32(mantissa, _mm256_set1_epi32((127 - Format::kBias) << 23));
    const __m256i subnormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(1 << Format::kMantissa), magnitude);
    const __m256 small = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(kLeast));
    bits = _mm256_blendv_epi8(bits, _mm256_castps_si256(small), subnormal);
    // NaN, and e5m2's infinity: all ones in the exponent, and the code's mantissa.
    const __m256i special = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(kLastFp8<Format>));
    bits = _mm256_blendv_epi8(bits, _mm256_or_si256(mantissa, _mm256_set1_epi32(0x7f800000)), special);
    const __m256i sign =
        _mm256_andnot_si256(_mm256_slli_epi32(byte, 24), _mm256_set1_epi32(static_cast<int>(0x80000000)));
    return _mm256_castsi256_ps(_mm256_or_si256(bits, sign));
  }
};

}  // namespace

void aoq::fp8_weight_mm_avx2(const PackedMm& p) {
  p.w_e5m2 ? VectorMm<Fp8Avx2<E5m2>>::run(p) : VectorMm<Fp8Avx2<E4m3>>::run(p);
}
