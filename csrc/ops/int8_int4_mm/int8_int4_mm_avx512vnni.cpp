// A unit's low nibbles are the quads k = 0,4,1,5 and its high ones k = 2,6,3,7: x is laid out alike.
#include "mm/x_int8_avx512vnni.h"

#include "formats/int4.h"
#include "ops/int8_int4_mm/int8_int4_mm.h"

namespace {

struct Int8Int4MmAvx512vnni : Int8Avx512Vnni {
  static constexpr float kMid = aoq::int4::kMidCode;
  static constexpr int kUnitK = aoq::int4::kUnitK;

  static Weight decode(Raw raw, int half) {
    return _mm512_and_si512(_mm512_srli_epi16(raw, static_cast<unsigned>(4 * half)), _mm512_set1_epi8(15));
  }

  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    const __m512i order = _mm512_set4_epi32(0x0f0b0e0a, 0x0d090c08, 0x07030602, 0x05010400);  // 0 4 1 5 2 6 3 7
    for (int64_t step = 0; step < steps; step += 16, codes += 64) {
      const __mmask16 rest = static_cast<__mmask16>(steps - step < 16 ? (1 << (steps - step)) - 1 : 0xffff);
      _mm512_mask_storeu_epi32(memory + step, rest, _mm512_shuffle_epi8(_mm512_maskz_loadu_epi32(rest, codes), order));
    }
    return memory;
  }
};

}  // namespace

void aoq::int8_int4_mm_avx512vnni(const PackedMm& p) { VectorMm<Int8Int4MmAvx512vnni>::run(p); }
