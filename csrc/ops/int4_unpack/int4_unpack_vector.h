// int4_pack backwards: in each 32-bit lane, the nibbles of the low half go to the low nibbles of its four bytes, those
// of the high half to the high nibbles. The vec_*.h included before this file gives the vector types.
#pragma once
#include "base/parallel.h"
#include "formats/int4.h"
#include "ops/int4_unpack/int4_unpack.h"

namespace {

// 0000abcd -> 0a0b0c0d, in hex digits
inline I32x16 spread_out(I32x16 nibbles) {
  const I32x16 pairs = (nibbles | nibbles << 8) & splat(0x00ff00ff);
  return (pairs | pairs << 4) & splat(0x0f0f0f0f);
}

inline void unpack_blocks(const aoq::Int4Unpack& p, int64_t begin, int64_t end) {
  using namespace aoq;
  using int4::kUnitK;
  const int64_t units = ceil_div(p.k, kUnitK), row_bytes = ceil_div(p.k, 2);
  for (int64_t block = begin; block < end; ++block) {
    uint8_t* rows = p.qdata + block * kUnitN * row_bytes;
    const int64_t count = p.n - block * kUnitN < kUnitN ? p.n - block * kUnitN : kUnitN;
    for (int64_t unit = 0; unit < units; ++unit) {
      const I32x16 lanes = load16_i32(p.packed + (block * units + unit) * kUnitBytes);
      int32_t bytes[kUnitN];
      store16_i32(bytes, spread_out(lanes & splat(0xffff)) | spread_out(lanes >> 16) << 4);
      const int64_t width = row_bytes - unit * 4 < 4 ? row_bytes - unit * 4 : 4;
      for (int64_t row = 0; row < count; ++row)
        std::memcpy(rows + row * row_bytes + unit * 4, bytes + row, static_cast<size_t>(width));
    }
    for (int64_t row = 0; row < count && p.k % 2; ++row) {
      uint8_t& last = rows[(row + 1) * row_bytes - 1];
      last = static_cast<uint8_t>(last & 15);  // the upper nibble is beyond k
    }
  }
}

inline void unpack(const aoq::Int4Unpack& p) {
  auto blocks = [&](int64_t begin, int64_t end) { unpack_blocks(p, begin, end); };
  parallel(aoq::ceil_div(p.n, aoq::kUnitN), 1 + 524288 / (p.k * aoq::kUnitN), blocks);
}

}  // namespace
