// Two k a step: a 16-bit table look-up gives the magnitudes of bf16 pairs.
#include "mm/x_float_avx512bf16.h"

#include "formats/fp8_bf16.h"
#include "ops/fp8_weight_mm/fp8_weight_mm.h"

namespace {

template <class Format>
struct Fp8Avx512Bf16 : FloatAvx512Bf16 {
  static constexpr bool kScaleLast = true;
  static constexpr float kMid = 0, kOffset = 0;
  static constexpr int kUnitK = aoq::int8::kUnitK;

  static Weight decode(Raw raw, int pair) { return fp8_pairs<Format>(raw, pair); }
};

}  // namespace

void aoq::fp8_weight_mm_avx512bf16(const PackedMm& p) {
  // fp16 and fp32 have more bits than a bf16 pair holds: they are multiplied in fp32.
  if (p.x_dtype != Dtype::bf16)
    fp8_weight_mm_avx512(p);
  else
    p.w_e5m2 ? VectorMm<Fp8Avx512Bf16<E5m2>>::run(p) : VectorMm<Fp8Avx512Bf16<E4m3>>::run(p);
}
