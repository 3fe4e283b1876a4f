#include "mm/packed_mm_ref.h"

#include "formats/int8.h"
#include "ops/int8_weight_mm/int8_weight_mm.h"

namespace {

struct Format {
  static constexpr bool kInt8 = false;
  static constexpr float kMid = aoq::int8::kMidCode;
  static constexpr int64_t kUnitK = aoq::int8::kUnitK;
  static int code(const uint8_t* unit, int64_t row, int64_t k) { return unit[4 * row + k]; }
};

}  // namespace

void aoq::int8_weight_mm_ref(const PackedMm& p) { multiply_ref<Format>(p); }
