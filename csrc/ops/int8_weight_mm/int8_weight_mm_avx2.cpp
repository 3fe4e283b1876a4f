// 0x4b000000 | byte is the float 2^23 + byte: one subtraction leaves the code.
#include "mm/x_float_avx2.h"

#include "formats/int8.h"
#include "ops/int8_weight_mm/int8_weight_mm.h"

namespace {

struct Int8WeightAvx2 : FloatAvx2 {
  static constexpr bool kScaleLast = true;
  static constexpr float kMid = 0, kOffset = 0;  // codes are decoded with their sign
  static constexpr int kUnitK = aoq::int8::kUnitK;

  static Weight decode(Raw raw, int k) {
    const __m256i byte = _mm256_and_si256(_mm256_srli_epi32(raw, 8 * k), _mm256_set1_epi32(0xff));
    const __m256i bits = _mm256_or_si256(byte, _mm256_set1_epi32(0x4b000000));
    return _mm256_sub_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(8388608 + aoq::int8::kMidCode));
  }
};

}  // namespace

void aoq::int8_weight_mm_avx2(const PackedMm& p) { VectorMm<Int8WeightAvx2>::run(p); }
