// There is no sixteen-entry look-up: flipping a code's top bit makes it (code - 8) in two's complement, which two
// shifts sign-extend.
#include "mm/x_float_avx2.h"

#include "formats/int4.h"
#include "ops/int4_mm/int4_mm.h"

namespace {

struct Int4Avx2 : FloatAvx2 {
  static constexpr bool kScaleLast = false;
  static constexpr float kMid = aoq::int4::kMidCode, kOffset = 8;
  static constexpr int kUnitK = aoq::int4::kUnitK;

  static Weight decode(Raw raw, int k) {
    const __m256i nibbles = _mm256_xor_si256(raw, _mm256_set1_epi32(static_cast<int>(0x88888888)));
    const __m256i top = _mm256_slli_epi32(nibbles, 28 - aoq::int4::lane_shift(k));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 28));
  }

  static Weight decode_scaled(Raw raw, int k, Vec scale, Vec shift) { return fma(decode(raw, k), scale, shift); }
};

}  // namespace

void aoq::int4_mm_avx2(const PackedMm& p) { VectorMm<Int4Avx2>::run(p); }
