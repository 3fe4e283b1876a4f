// A unit is four rows of a tile of w: codes minus 8, exact in bf16.
#include "mm/x_float_amx.h"

#include "formats/int4.h"
#include "ops/int4_mm/int4_mm.h"

namespace {

struct Int4Amx : FloatAmx {
  static constexpr float kMid = aoq::int4::kMidCode, kOffset = 8;
  static constexpr int64_t kUnitK = aoq::int4::kUnitK;

  // Four rows of a tile: bf16 pairs of k by sixteen rows of w.
  static void decode(__m512i raw, uint8_t* rows) {
    const __m512i values = _mm512_broadcast_i64x4(bf16_codes());
    _mm512_store_si512(rows, _mm512_permutexvar_epi16(raw, values));
    _mm512_store_si512(rows + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 4), values));
    _mm512_store_si512(rows + 128, _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 8), values));
    _mm512_store_si512(rows + 192, _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 12), values));
  }
};

}  // namespace

void aoq::int4_mm_amx(const PackedMm& p) {
  // One row leaves fifteen sixteenths of a tile empty; other dtypes have more bits than bf16 holds.
  if (p.m == 1 || p.x_dtype != Dtype::bf16)
    int4_mm_avx512bf16(p);
  else
    AmxMm<Int4Amx>(p).run();
}
