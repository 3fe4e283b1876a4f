// Four bytes of sixteen rows become one unit, 128 added to each. The vec_*.h included before this file gives the vector
// types.
#pragma once
#include "base/parallel.h"
#include "formats/int8.h"
#include "ops/int8_pack/int8_pack.h"

namespace {

inline void pack_blocks(const aoq::Int8Pack& p, int64_t begin, int64_t end) {
  using namespace aoq;
  using int8::kUnitK;
  const int64_t units = ceil_div(p.k, kUnitK);
  uint8_t edge[kUnitBytes];
  for (int64_t block = begin; block < end; ++block) {
    const uint8_t* rows = reinterpret_cast<const uint8_t*>(p.qdata) + block * kUnitN * p.k;
    const int64_t count = p.n - block * kUnitN < kUnitN ? p.n - block * kUnitN : kUnitN;
    for (int64_t unit = 0; unit < units; ++unit) {
      const uint8_t* from = rows + unit * kUnitK;
      int64_t stride = p.k;
      const int64_t width = p.k - unit * kUnitK < kUnitK ? p.k - unit * kUnitK : kUnitK;
      if (count < kUnitN || width < kUnitK || stride > kGatherStride) {  // beyond n or k: zeros
        std::memset(edge, 0, sizeof(edge));
        for (int64_t row = 0; row < count; ++row)
          std::memcpy(edge + row * kUnitK, from + row * p.k, static_cast<size_t>(width));
        from = edge;
        stride = kUnitK;
      }
      // Adding 128 flips the top bit.
      store16_i32(p.packed + (block * units + unit) * kUnitBytes,
                  gather16(from, stride) ^ splat(static_cast<int32_t>(0x80808080)));
    }
  }
}

inline void pack(const aoq::Int8Pack& p) {
  auto blocks = [&](int64_t begin, int64_t end) { pack_blocks(p, begin, end); };
  parallel(aoq::ceil_div(p.n, aoq::kUnitN), 1 + 262144 / (p.k * aoq::kUnitN), blocks);
}

}  // namespace
