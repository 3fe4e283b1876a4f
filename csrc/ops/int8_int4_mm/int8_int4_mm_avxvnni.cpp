// A unit's low nibbles are the quads k = 0,4,1,5 and its high ones k = 2,6,3,7: x is laid out alike.
#include "mm/x_int8_avxvnni.h"

#include "formats/int4.h"
#include "ops/int8_int4_mm/int8_int4_mm.h"

namespace {

struct Int8Int4MmAvxvnni : Int8AvxVnni {
  static constexpr float kMid = aoq::int4::kMidCode;
  static constexpr int kUnitK = aoq::int4::kUnitK;

  static Weight decode(Raw raw, int half) {
    return _mm256_and_si256(_mm256_srli_epi16(raw, 4 * half), _mm256_set1_epi8(15));
  }

  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    const __m128i order = _mm_set_epi32(0x0f0b0e0a, 0x0d090c08, 0x07030602, 0x05010400);  // 0 4 1 5 2 6 3 7
    for (int64_t step = 0; step < steps; step += 2, codes += kUnitK) {
      const __m128i unit = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(memory + step), _mm_shuffle_epi8(unit, order));
    }
    return memory;
  }
};

}  // namespace

void aoq::int8_int4_mm_avxvnni(const PackedMm& p) { VectorMm<Int8Int4MmAvxvnni>::run(p); }
