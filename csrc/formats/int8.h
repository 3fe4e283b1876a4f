// Eight bits a code, a scale for each row.
//
// Plain, what a checkpoint holds:
//   qdata  int8 [n][k]   codes -128..127
//   scale  [n]           w = code * scale
//
// Tiled, what CPU kernels read: units of 64 bytes, each 16 rows n by 4 columns k.
//   packed  uint8 [ceil(n/16)][ceil(k/4)][64]   lane i = row i, its byte j = code + 128 of k = 4u + j
//   scale   [ceil(n/16)][1][16]
//
// The offset makes weights unsigned, as vpdpbusd and AMX want one side: they then are like int4 codes whose zero point
// is 128.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Int8 {
  static constexpr int kBits = 8, kFlip = 0x80, kMid = 128;
  static constexpr bool kGrouped = false, kFp8 = false, kTable = false;
  static constexpr float value(int code) { return static_cast<float>(code); }
};

}  // namespace

namespace int8 {
namespace {

constexpr int64_t kUnitK = Planes<8>::kUnitK;

static_assert(kUnitN * kUnitK == kUnitBytes, "a unit holds one code a byte");

}  // namespace
}  // namespace int8
}  // namespace aoq
