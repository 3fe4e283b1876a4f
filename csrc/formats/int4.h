// The int4 layouts: THE contract between checkpoints, packing and every CPU kernel.
//
// Plain, what a checkpoint holds:
//   qdata      uint8 [n][ceil(k/2)]   low nibble = even k, codes 0..15
//   scale      [n][ceil(k/group)]
//   zero_point [n][ceil(k/group)]     or none, which means 8;  w = (code - zero_point) * scale
//
// Tiled, what CPU kernels read: units of 64 bytes, each 16 rows n by 8 columns k.
//   packed     uint8 [ceil(n/16)][ceil(k/8)][64]
//   scale, zero_point  [ceil(n/16)][ceil(k/group)][16]
//
//   A unit is sixteen 32-bit lanes, lane i = row i; bits of a lane, high to low, name k:
//
//     31                          15                           0
//     |  7  |  5  |  3  |  1  |   |  6  |  4  |  2  |  0  |
//     '---- odd k, 16 bits ---'   '--- even k, 16 bits ---'
//
//   so that shifting 16-bit words right by 4j leaves codes k = 2j, 2j+1 in the low nibbles of a lane's two words: a
//   16-bit table look-up then gives the bf16 pairs of vdpbf16ps and AMX. Shifting 32-bit lanes by 4p gives one k for
//   f32. And bytes & 15 gives k = 0,4,1,5 while bytes >> 4 gives 2,6,3,7: the quads of vpdpbusd and AMX int8.
#pragma once
#include <cstdint>

#include "formats/packed.h"

namespace aoq::int4 {
namespace {  // a copy in each file: ISA files are sealed

constexpr int64_t kUnitK = 8;
constexpr float kMidCode = 8;  // the zero point when there is none

static_assert(kUnitN * kUnitK == 2 * kUnitBytes, "a unit holds two codes a byte");

// Right shift that brings code k (0..7) of a unit to the low nibble of its 32-bit lane.
constexpr int lane_shift(int k) { return 4 * (k / 2) + 16 * (k % 2); }

static_assert(lane_shift(0) == 0 && lane_shift(1) == 16 && lane_shift(6) == 12 && lane_shift(7) == 28);

}  // namespace
}  // namespace aoq::int4
