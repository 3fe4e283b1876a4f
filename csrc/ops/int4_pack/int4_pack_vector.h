// Four bytes of sixteen rows become one unit: in each 32-bit lane, low nibbles (even k) move to the low half and high
// nibbles to the high half, in order. The vec_*.h included before this file gives the vector types.
#pragma once
#include "base/parallel.h"
#include "formats/int4.h"
#include "ops/int4_pack/int4_pack.h"

namespace {

// 0a0b0c0d -> 0000abcd, in hex digits
inline I32x16 close_up(I32x16 nibbles) {
  const I32x16 pairs = (nibbles | nibbles >> 4) & splat(0x00ff00ff);
  return (pairs | pairs >> 8) & splat(0x0000ffff);
}

inline void pack_blocks(const aoq::Int4Pack& p, int64_t begin, int64_t end) {
  using namespace aoq;
  using int4::kUnitK;
  const int64_t units = ceil_div(p.k, kUnitK), row_bytes = ceil_div(p.k, 2);
  uint8_t edge[kUnitN * 4];
  for (int64_t block = begin; block < end; ++block) {
    const uint8_t* rows = p.qdata + block * kUnitN * row_bytes;
    const int64_t count = p.n - block * kUnitN < kUnitN ? p.n - block * kUnitN : kUnitN;
    for (int64_t unit = 0; unit < units; ++unit) {
      const uint8_t* from = rows + unit * 4;
      int64_t stride = row_bytes;
      const int64_t bytes = row_bytes - unit * 4 < 4 ? row_bytes - unit * 4 : 4;
      const bool half = p.k % 2 && unit + 1 == units;                       // the last byte's upper nibble is beyond k
      if (count < kUnitN || bytes < 4 || half || stride > kGatherStride) {  // beyond n or k: zeros
        std::memset(edge, 0, sizeof(edge));
        for (int64_t row = 0; row < count; ++row)
          std::memcpy(edge + row * 4, from + row * row_bytes, static_cast<size_t>(bytes));
        for (int64_t row = 0; row < count && half; ++row) edge[row * 4 + bytes - 1] &= 15;
        from = edge;
        stride = 4;
      }
      const I32x16 codes = gather16(from, stride), low = splat(0x0f0f0f0f);
      store16_i32(p.packed + (block * units + unit) * kUnitBytes, close_up(codes & low) | close_up(codes >> 4 & low)
                                                                                              << 16);
    }
  }
}

inline void pack(const aoq::Int4Pack& p) {
  auto blocks = [&](int64_t begin, int64_t end) { pack_blocks(p, begin, end); };
  parallel(aoq::ceil_div(p.n, aoq::kUnitN), 1 + 524288 / (p.k * aoq::kUnitN), blocks);
}

}  // namespace
