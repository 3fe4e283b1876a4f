#include "mm/packed_mm_ref.h"

#include "formats/int4.h"
#include "ops/int8_int4_mm/int8_int4_mm.h"

namespace {

struct Format {
  static constexpr bool kInt8 = true;
  static constexpr float kMid = aoq::int4::kMidCode;
  static constexpr int64_t kUnitK = aoq::int4::kUnitK;
  static int code(const uint8_t* unit, int64_t row, int64_t k) {
    uint32_t lane;
    std::memcpy(&lane, unit + 4 * row, 4);
    return static_cast<int>(lane >> aoq::int4::lane_shift(static_cast<int>(k)) & 15);
  }
};

}  // namespace

void aoq::int8_int4_mm_ref(const PackedMm& p) { multiply_ref<Format>(p); }
