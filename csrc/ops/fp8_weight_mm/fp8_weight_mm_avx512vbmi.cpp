// Two k a step: two look-ups give the bytes of a whole unit's weights in bf16, so it is never worth decoding into L1.
#include "mm/x_float_avx512bf16.h"

#include "formats/fp8_vbmi.h"
#include "ops/fp8_weight_mm/fp8_weight_mm.h"

namespace {

template <class Format>
struct Fp8Avx512Vbmi : FloatAvx512Bf16 {
  using Raw = Fp8Unit;
  static constexpr bool kScaleLast = true;
  static constexpr float kMid = 0, kOffset = 0;
  static constexpr int kUnitK = aoq::int8::kUnitK, kFusedRows = 192;

  static Raw load_raw(const uint8_t* unit) { return fp8_unit<Format>(_mm512_loadu_si512(unit)); }
  static Weight decode(Raw raw, int pair) { return fp8_pairs(raw, pair); }
};

}  // namespace

void aoq::fp8_weight_mm_avx512vbmi(const PackedMm& p) {
  // fp16 and fp32 have more bits than a bf16 pair holds: they are multiplied in fp32.
  if (p.x_dtype != Dtype::bf16)
    fp8_weight_mm_avx512(p);
  else
    p.w_e5m2 ? VectorMm<Fp8Avx512Vbmi<E5m2>>::run(p) : VectorMm<Fp8Avx512Vbmi<E4m3>>::run(p);
}
