// A table of 16 integers of 8 bits, in groups, denser around 0: the codes of llama.cpp's IQ4_NL and IQ4_XS.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Iq4Nl {
  static constexpr int kBits = 4, kFlip = 0, kMid = 0;
  static constexpr bool kGrouped = true, kFp8 = false, kTable = true;
  static constexpr float value(int code) {
    constexpr float kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return kValues[code];
  }
};

}  // namespace
}  // namespace aoq
