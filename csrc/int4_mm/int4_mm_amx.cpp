// AMX-BF16: tiles of 16 rows of x by 32 k against 32 k by 16 rows of w. Products are exact, sums fp32.
#include "core/int4.h"
#include "core/packed_mm_amx.h"
#include "int4_mm/int4_mm.h"

namespace {

struct AmxBf16 : Avx512 {
  static constexpr bool kInt8 = false;
  static constexpr float kMid = aoq::int4::kMidCode, kOffset = 8;
  static constexpr int64_t kUnitK = aoq::int4::kUnitK, kTileK = 32;

  static __m512i load_x(const char* row, int64_t first, int64_t count) {
    const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
    return _mm512_maskz_loadu_epi16(mask, row + first * 2);
  }

  // Four rows of a tile: bf16 pairs of k by sixteen rows of w.
  static void decode(__m512i raw, uint8_t* rows) {
    const __m512i values = _mm512_broadcast_i64x4(bf16_codes());
    _mm512_store_si512(rows, _mm512_permutexvar_epi16(raw, values));
    _mm512_store_si512(rows + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 4), values));
    _mm512_store_si512(rows + 128, _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 8), values));
    _mm512_store_si512(rows + 192, _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 12), values));
  }

  template <int sum, int a, int b>
  static void dot() {
    tile_dot_bf16<sum, a, b>();
  }
  static __m512 product(const float* sums) { return _mm512_load_ps(sums); }
};

}  // namespace

void aoq::int4_mm_amx(const PackedMm& p) {
  // One row leaves fifteen sixteenths of a tile empty; other dtypes have more bits than bf16 holds.
  if (p.m == 1 || p.x_dtype != Dtype::bf16)
    int4_mm_avx512bf16(p);
  else
    AmxMm<AmxBf16>(p).run();
}
