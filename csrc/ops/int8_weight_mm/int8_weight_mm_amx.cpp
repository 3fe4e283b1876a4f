// A unit is two rows of a tile of w.
#include "mm/x_float_amx.h"

#include "formats/int8_bf16.h"
#include "ops/int8_weight_mm/int8_weight_mm.h"

namespace {

struct Int8WeightAmx : FloatAmx {
  static constexpr float kMid = 0, kOffset = 0;
  static constexpr int64_t kUnitK = aoq::int8::kUnitK;

  static void decode(__m512i raw, uint8_t* rows) {
    _mm512_store_si512(rows, int8_pairs(raw, 0));
    _mm512_store_si512(rows + 64, int8_pairs(raw, 1));
  }
};

}  // namespace

void aoq::int8_weight_mm_amx(const PackedMm& p) {
  // One row leaves fifteen sixteenths of a tile empty; other dtypes have more bits than bf16 holds.
  if (p.m == 1 || p.x_dtype != Dtype::bf16)
    int8_weight_mm_avx512bf16(p);
  else
    AmxMm<Int8WeightAmx>(p).run();
}
