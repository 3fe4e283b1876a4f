// 0x4b000000 | byte is the float 2^23 + byte: one subtraction leaves the code.
#include "mm/x_float_avx512.h"

#include "formats/int8.h"
#include "ops/int8_weight_mm/int8_weight_mm.h"

namespace {

struct Int8WeightAvx512 : FloatAvx512 {
  static constexpr bool kScaleLast = true;
  static constexpr float kMid = 0, kOffset = 0;  // codes are decoded with their sign
  static constexpr int kUnitK = aoq::int8::kUnitK;

  static Weight decode(Raw raw, int k) {
    const __m512i byte = _mm512_srli_epi32(raw, static_cast<unsigned>(8 * k));
    const __m512i magic = _mm512_set1_epi32(0x4b000000);
    const __m512i bits = _mm512_ternarylogic_epi32(byte, _mm512_set1_epi32(0xff), magic, 0xea);  // a & b | c
    return _mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(8388608 + aoq::int8::kMidCode));
  }
};

}  // namespace

void aoq::int8_weight_mm_avx512(const PackedMm& p) { VectorMm<Int8WeightAvx512>::run(p); }
