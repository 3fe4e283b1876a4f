// Low nibbles of a unit are one row of a tile of w, high nibbles the next.
#include "mm/x_int8_amx.h"

#include "formats/int4.h"
#include "ops/int8_int4_mm/int8_int4_mm.h"

namespace {

struct Int8Int4Amx : Int8Amx {
  static constexpr float kMid = aoq::int4::kMidCode;
  static constexpr int64_t kUnitK = aoq::int4::kUnitK;

  // Within each 8 k, the order of a unit's nibbles: low ones first.
  static __m512i load_x(const char* row, int64_t first, int64_t count) {
    const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return _mm512_shuffle_epi8(load_codes(row, first, count), _mm512_broadcast_i32x4(order));
  }

  // Two rows of a tile: quads of k by sixteen rows of w.
  static void decode(__m512i raw, uint8_t* rows) {
    const __m512i nibble = _mm512_set1_epi8(15);
    _mm512_store_si512(rows, _mm512_and_si512(raw, nibble));
    _mm512_store_si512(rows + 64, _mm512_and_si512(_mm512_srli_epi16(raw, 4), nibble));
  }
};

}  // namespace

void aoq::int8_int4_mm_amx(const PackedMm& p) {
  // One row leaves fifteen sixteenths of a tile empty.
  p.m == 1 ? int8_int4_mm_avx512vnni(p) : AmxMm<Int8Int4Amx>(p).run();
}
