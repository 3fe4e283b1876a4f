// Across sixteen lanes, one by one: what is not worth an instruction of its own. The vec_*.h that includes this file
// gives the vector types.
#pragma once
#include "base/dtype.h"

namespace {

constexpr int64_t kGatherStride = INT32_MAX / 15;  // the longest that gather16 takes: offsets have 32 bits

template <class Function>
inline float fold_lanes(F32x16 a, Function function) {
  float lane[16];
  store16(lane, a);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = function(lane[i], lane[i + width]);
  return lane[0];
}
// Sums are in one order, so that every ISA and a GPU give the same bits.
inline float sum_lanes(F32x16 a) {
  return fold_lanes(a, [](float x, float y) { return x + y; });
}
inline float min_lanes(F32x16 a) {
  return fold_lanes(a, [](float x, float y) { return x < y ? x : y; });
}
inline float max_lanes(F32x16 a) {
  return fold_lanes(a, [](float x, float y) { return x > y ? x : y; });
}
// Whether all bits of all lanes are 1.
inline bool all_lanes(I32x16 a) {
  int32_t lane[16];
  store16_i32(lane, a);
  for (int i = 1; i < 16; ++i) lane[0] &= lane[i];
  return lane[0] == -1;
}

// 1 in the first `count` lanes, 0 in the others.
inline F32x16 first_lanes(int64_t count) {
  float lane[16];
  for (int i = 0; i < 16; ++i) lane[i] = i < count ? 1.0f : 0.0f;
  return load16(lane);
}

// data[i] for i in [first, first + 16), zeros from count on
inline F32x16 load16_part(const void* data, aoq::Dtype dtype, int64_t first, int64_t count) {
  if (first + 16 <= count) return load16(data, dtype, first);
  float part[16];
  for (int i = 0; i < 16; ++i) part[i] = first + i < count ? load_float(data, dtype, first + i) : 0;
  return load16(part);
}

// The first `count` of sixteen codes, `bits` each, the first one lowest; the last byte ends in zeros.
inline void store16_codes(uint8_t* data, I32x16 codes, int64_t count, int bits) {
  int32_t lane[16];
  store16_i32(lane, codes);
  for (int64_t first = 0; first < 16 && first < count; first += 8, data += bits) {
    const int64_t eight = count - first < 8 ? count - first : 8;
    uint64_t word = 0;
    for (int64_t i = 0; i < eight; ++i) word |= static_cast<uint64_t>(lane[first + i]) << (bits * i);
    for (int64_t byte = 0; 8 * byte < eight * bits; ++byte) data[byte] = static_cast<uint8_t>(word >> 8 * byte);
  }
}

}  // namespace
