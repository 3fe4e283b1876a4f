#include "mm/packed_mm_ref.h"

#include "formats/fp8_weight.h"
#include "ops/fp8_weight_mm/fp8_weight_mm.h"

namespace {

template <class Fp8>
struct Format {
  static constexpr bool kInt8 = false;
  static constexpr float kMid = 0;
  static constexpr int64_t kUnitK = aoq::int8::kUnitK;
  static double code(const uint8_t* unit, int64_t row, int64_t k) {
    const uint8_t byte = unit[4 * row + k] ^ kFp8SignFlip;
    const float magnitude = bf16_to_float(fp8_to_bf16<Fp8>(byte & 0x7f));
    return byte & 0x80 ? -magnitude : magnitude;
  }
};

}  // namespace

void aoq::fp8_weight_mm_ref(const PackedMm& p) {
  p.w_e5m2 ? multiply_ref<Format<E5m2>>(p) : multiply_ref<Format<E4m3>>(p);
}
