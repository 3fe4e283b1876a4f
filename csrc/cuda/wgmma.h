// Where wgmma has its operands: constexpr, so that tests compare what kernels use with CuTe's layouts on the host.
#pragma once
#include <cstdint>

namespace aoq::wgmma {
namespace {

// ---- operand B in shared memory: rows of 128 bytes along k, one a column of B, swizzled, from a multiple of 1024 on

constexpr int kRowBytes = 128, kAlignment = 1024;

// Bits 4 to 6 of an address change places by bits 7 to 9: the sixteen bytes at 16i of row r lie at 16 (i ^ r % 8).
constexpr uint64_t swizzled(uint64_t address) { return address ^ (address >> 7 & 7) << 4; }

// What tells wgmma so; + 2 is 32 bytes along k on.
constexpr uint64_t descriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{8 * kRowBytes / 16} << 32;
  constexpr uint64_t kUnused = uint64_t{1} << 16;  // the other offset, which swizzled rows along k have no use for
  return kSwizzle128 | kEightRows | kUnused | (address & 0x3ffff) >> 4;
}

// ---- sums in registers: those of a warp are rows 16w to 16w + 15 of the 64

struct SumAt {
  int row, column;
};
constexpr SumAt sum_at(int lane, int i) { return {lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + 2 * (lane % 4) + i % 2}; }

}  // namespace
}  // namespace aoq::wgmma
