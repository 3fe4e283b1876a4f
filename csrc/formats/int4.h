// Four bits a code, in groups: codes 0..15, around 8 where no zero point is stored.
//
//   qdata              uint8 [n][ceil(k/2)]   low nibble = even k
//   scale, zero_point  [n][ceil(k/group)]     w = (code - zero_point) * scale
//
// Packed for the CPU (formats/format.h) a unit is sixteen rows by eight columns in 64 bytes, and scales and zero points
// are [ceil(n/16)][ceil(k/group)][16]. CUDA's kernels read another layout: formats/int4_cuda.h.
#pragma once
#include <cstdint>

#include "formats/format.h"

namespace aoq {
namespace {

struct Int4 : Affine<4> {};

}  // namespace

namespace int4 {
namespace {

constexpr int64_t kUnitK = Planes<4>::kUnitK;

static_assert(kUnitN * kUnitK == 2 * kUnitBytes, "a unit holds two codes a byte");
static_assert(nibble_shift(0) == 0 && nibble_shift(1) == 16 && nibble_shift(6) == 12 && nibble_shift(7) == 28);

}  // namespace
}  // namespace int4
}  // namespace aoq
