// Across sixteen lanes, one by one: what is not worth an instruction of its own. The vec_*.h that includes this file
// gives the vector types.
#pragma once
#include "base/dtype.h"

namespace {

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

// The first `count` of sixteen codes 0..15, two a byte, the first one low; if count is odd the last high nibble is 0.
inline void store16_nibbles(uint8_t* data, I32x16 codes, int64_t count) {
  int32_t lane[16];
  store16_i32(lane, codes);
  if (count > 16) count = 16;
  if (count % 2) lane[count] = 0;
  for (int64_t i = 0; i < count; i += 2) data[i / 2] = static_cast<uint8_t>(lane[i] | lane[i + 1] << 4);
}

}  // namespace
