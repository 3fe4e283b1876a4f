// Two k a step: a 16-bit table look-up gives bf16 pairs of codes minus 8, which are exact.
#include "mm/x_float_avx512bf16.h"

#include "formats/int4.h"
#include "ops/int4_mm/int4_mm.h"

namespace {

struct Int4Avx512Bf16 : FloatAvx512Bf16 {
  static constexpr bool kScaleLast = false;
  static constexpr float kMid = aoq::int4::kMidCode, kOffset = 8;
  static constexpr int kUnitK = aoq::int4::kUnitK, kFusedRows = 192;

  static Weight decode(Raw raw, int pair) {
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, static_cast<unsigned>(4 * pair)),
                                    _mm512_broadcast_i64x4(bf16_codes()));
  }

  // In fp32, one look-up for each of the two words of a lane, then rounded to bf16 pairs.
  static Weight decode_scaled(Raw raw, int pair, Vec scale, Vec shift) {
    const __m512 codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    auto look_up = [&](int bit) {
      return fma(_mm512_permutexvar_ps(_mm512_srli_epi32(raw, static_cast<unsigned>(bit)), codes), scale, shift);
    };
    const __m512i words = (__m512i)_mm512_cvtne2ps_pbh(look_up(4 * pair + 16), look_up(4 * pair));
    const __m512i lanes = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(lanes, words);
  }
};

}  // namespace

void aoq::int4_mm_avx512bf16(const PackedMm& p) {
  // fp16 and fp32 have more bits than a bf16 pair holds: they are multiplied in fp32.
  p.x_dtype == Dtype::bf16 ? VectorMm<Int4Avx512Bf16>::run(p) : int4_mm_avx512(p);
}
