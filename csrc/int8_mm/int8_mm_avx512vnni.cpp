// A unit is a quad of k for each row, ready to multiply.
#include "core/int8_avx512vnni.h"

#include "core/int8.h"
#include "int8_mm/int8_mm.h"

namespace {

struct Int8MmAvx512vnni : Int8Avx512Vnni {
  static constexpr float kMid = aoq::int8::kMidCode;
  static constexpr int kUnitK = aoq::int8::kUnitK;

  static Weight decode(Raw raw, int) { return raw; }

  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    std::memcpy(memory, codes, static_cast<size_t>(steps) * 4);
    return memory;
  }
};

}  // namespace

void aoq::int8_mm_avx512vnni(const PackedMm& p) { VectorMm<Int8MmAvx512vnni>::run(p); }
