// Two k a step: bf16 pairs, which hold every code.
#include "mm/x_float_avx512bf16.h"

#include "formats/int8_bf16.h"
#include "ops/int8_weight_mm/int8_weight_mm.h"

namespace {

struct Int8WeightAvx512Bf16 : FloatAvx512Bf16 {
  static constexpr bool kScaleLast = true;
  static constexpr float kMid = 0, kOffset = 0;  // codes are decoded with their sign
  static constexpr int kUnitK = aoq::int8::kUnitK, kFusedRows = 40;

  static Weight decode(Raw raw, int pair) { return int8_pairs(raw, pair); }
};

}  // namespace

void aoq::int8_weight_mm_avx512bf16(const PackedMm& p) {
  // fp16 and fp32 have more bits than a bf16 pair holds: they are multiplied in fp32.
  if (p.x_dtype != Dtype::bf16)
    int8_weight_mm_avx512(p);
  else
    VectorMm<Int8WeightAvx512Bf16>::run(p);
}
