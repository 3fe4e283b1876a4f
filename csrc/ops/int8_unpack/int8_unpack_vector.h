// int8_pack backwards. The vec_*.h included before this file gives the vector types.
#pragma once
#include "base/parallel.h"
#include "formats/int8.h"
#include "ops/int8_unpack/int8_unpack.h"

namespace {

inline void unpack_blocks(const aoq::Int8Unpack& p, int64_t begin, int64_t end) {
  using namespace aoq;
  using int8::kUnitK;
  const int64_t units = ceil_div(p.k, kUnitK);
  for (int64_t block = begin; block < end; ++block) {
    int8_t* rows = p.qdata + block * kUnitN * p.k;
    const int64_t count = p.n - block * kUnitN < kUnitN ? p.n - block * kUnitN : kUnitN;
    for (int64_t unit = 0; unit < units; ++unit) {
      int32_t lanes[kUnitN];
      store16_i32(lanes,
                  load16_i32(p.packed + (block * units + unit) * kUnitBytes) ^ splat(static_cast<int32_t>(0x80808080)));
      const int64_t width = p.k - unit * kUnitK < kUnitK ? p.k - unit * kUnitK : kUnitK;
      for (int64_t row = 0; row < count; ++row)
        std::memcpy(rows + row * p.k + unit * kUnitK, lanes + row, static_cast<size_t>(width));
    }
  }
}

inline void unpack(const aoq::Int8Unpack& p) {
  auto blocks = [&](int64_t begin, int64_t end) { unpack_blocks(p, begin, end); };
  parallel(aoq::ceil_div(p.n, aoq::kUnitN), 1 + 262144 / (p.k * aoq::kUnitN), blocks);
}

}  // namespace
