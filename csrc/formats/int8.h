// The int8 layouts.
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
#include "formats/packed.h"

namespace aoq::int8 {
namespace {  // a copy in each file: ISA files are sealed

constexpr int64_t kUnitK = 4;
constexpr float kMidCode = 128;  // the zero point

static_assert(kUnitN * kUnitK == kUnitBytes, "a unit holds one code a byte");

}  // namespace
}  // namespace aoq::int8
