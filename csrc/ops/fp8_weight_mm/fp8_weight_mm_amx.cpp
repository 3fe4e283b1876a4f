// A unit is two rows of a tile of w.
#include "mm/x_float_amx.h"

#include "formats/fp8_vbmi.h"
#include "ops/fp8_weight_mm/fp8_weight_mm.h"

namespace {

template <class Format>
struct Fp8Amx : FloatAmx {
  static constexpr float kMid = 0, kOffset = 0;
  static constexpr int64_t kUnitK = aoq::int8::kUnitK;

  static void decode(__m512i raw, uint8_t* rows) {
    const Fp8Unit unit = fp8_unit<Format>(raw);
    _mm512_store_si512(rows, fp8_pairs(unit, 0));
    _mm512_store_si512(rows + 64, fp8_pairs(unit, 1));
  }
};

}  // namespace

void aoq::fp8_weight_mm_amx(const PackedMm& p) {
  // One row leaves fifteen sixteenths of a tile empty; other dtypes have more bits than bf16 holds.
  if (p.m == 1 || p.x_dtype != Dtype::bf16)
    fp8_weight_mm_avx512vbmi(p);
  else
    p.w_e5m2 ? AmxMm<Fp8Amx<E5m2>>(p).run() : AmxMm<Fp8Amx<E4m3>>(p).run();
}
