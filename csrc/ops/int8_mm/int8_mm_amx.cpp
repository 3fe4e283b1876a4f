// A unit is one row of a tile of w.
#include "mm/x_int8_amx.h"

#include "formats/int8.h"
#include "ops/int8_mm/int8_mm.h"

namespace {

struct Int8Int8Amx : Int8Amx {
  static constexpr float kMid = aoq::int8::kMidCode;
  static constexpr int64_t kUnitK = aoq::int8::kUnitK;

  static __m512i load_x(const char* row, int64_t first, int64_t count) { return load_codes(row, first, count); }
  static void decode(__m512i raw, uint8_t* row) { _mm512_store_si512(row, raw); }
};

}  // namespace

void aoq::int8_mm_amx(const PackedMm& p) {
  // One row leaves fifteen sixteenths of a tile empty.
  p.m == 1 ? int8_mm_avx512vnni(p) : AmxMm<Int8Int8Amx>(p).run();
}
