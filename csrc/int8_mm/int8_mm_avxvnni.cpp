// A unit is a quad of k for each row, ready to multiply.
#include "core/int8_avxvnni.h"

#include "core/int8.h"
#include "int8_mm/int8_mm.h"

namespace {

struct Int8MmAvxvnni : Int8AvxVnni {
  static constexpr float kMid = aoq::int8::kMidCode;
  static constexpr int kUnitK = aoq::int8::kUnitK;

  static Weight decode(Raw raw, int) { return raw; }

  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    std::memcpy(memory, codes, static_cast<size_t>(steps) * 4);
    return memory;
  }
};

}  // namespace

void aoq::int8_mm_avxvnni(const PackedMm& p) { VectorMm<Int8MmAvxvnni>::run(p); }
