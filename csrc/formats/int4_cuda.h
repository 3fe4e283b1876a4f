// The int4 layout that CUDA kernels read: one buffer for bf16, fp16, int8 and fp8 activations, mma.sync and wgmma,
// sm_80 to sm_90. Plain codes, scales and zero points are those of formats/int4.h.
//
//   packed             uint8 [ceil(n/16)][ceil(k/64)][512]
//   scale, zero_point  [ceil(n/16)][ceil(k/group)][16]      as on the CPU: a warp's sixteen rows lie side by side
//
// A tile is 16 rows n by 64 columns k. Lane t of the warp that multiplies it owns the 16 bytes at 16t: one coalesced
// 512-byte load a warp, and what a lane loads is what it feeds to the tensor cores, without shared memory or shuffles.
// Codes beyond n and k are 0.
//
//   A lane's word i (32 bits) is its share of k = 16i .. 16i + 15. With g = lane / 4 and c = 2 (lane % 4), its nibbles
//   are, high to low:
//
//     31                            15                             0
//     | g+8  | g    | g+8  | g    |  | g+8  | g    | g+8  | g    |   row
//     | c+9  | c+9  | c+1  | c+1  |  | c+8  | c+8  | c    | c    |   k - 16i
//     '--------- odd k -----------'  '--------- even k ----------'
//
//   bf16, fp16: (word >> 4j) & 0x000f000f is a pair of neighbours along k, the register a_j of the A fragment of
//     mma.m16n8k16. That fragment is a warp's share of wgmma.m64nNk16 with A in registers.
//   int8, fp8: word & 0x0f0f0f0f is row g and (word >> 4) & 0x0f0f0f0f row g + 8, both in the order k = c, c + 8,
//     c + 1, c + 9. Words 2i, 2i + 1 are the registers a0, a1 | a2, a3 of mma.m16n8k32 and wgmma.m64nNk32 once
//     activations are stored in that order too: see activation_k.
#pragma once
#include <cstdint>

#include "formats/packed.h"

namespace aoq::int4_cuda {
namespace {  // constexpr: the tests run on the host what the kernels run on the device

constexpr int kTileN = 16, kTileK = 64;
constexpr int kLanes = 32, kLaneBytes = 16, kTileBytes = kLanes * kLaneBytes;
constexpr int kAtomK = 16, kAtoms = kTileK / kAtomK;  // a word of each lane

static_assert(kTileN * kTileK == 2 * kTileBytes, "a tile holds two codes a byte");

struct Place {
  int lane, word, nibble;
};
struct Code {
  int row, k;
};

// Which code of a tile a nibble holds.
constexpr Code code_at(Place at) {
  const int pair = at.nibble % 4, odd = at.nibble / 4;  // pair j is the 16-bit fragment register a_j
  return {at.lane / 4 + 8 * (pair % 2), kAtomK * at.word + 8 * (pair / 2) + 2 * (at.lane % 4) + odd};
}

// Where a tile holds a code: the inverse.
constexpr Place place_of(Code code) {
  const int k = code.k % kAtomK;
  return {4 * (code.row % 8) + k % 8 / 2, code.k / kAtomK, code.row / 8 + 2 * (k / 8) + 4 * (k % 2)};
}

// The byte of `packed` that holds (row, k) of the weight, and how far to shift it right.
struct Nibble {
  int64_t byte;
  int shift;
};
constexpr Nibble nibble_of(int64_t row, int64_t k, int64_t columns) {
  const Place at = place_of({static_cast<int>(row % kTileN), static_cast<int>(k % kTileK)});
  const int64_t tile = row / kTileN * ceil_div(columns, kTileK) + k / kTileK;
  return {tile * kTileBytes + kLaneBytes * at.lane + 4 * at.word + at.nibble / 2, 4 * (at.nibble % 2)};
}

// Two neighbours along k are a byte of plain codes, and the nibbles j and j + 4 of a word. So a word is four plain
// bytes, of the codes in its nibbles 0 to 3, spread out:
constexpr uint32_t spread(uint32_t plain, int pair) { return ((plain & 15) | (plain >> 4) << 16) << 4 * pair; }
constexpr uint32_t gather(uint32_t word, int pair) {
  return (word >> 4 * pair & 15) | (word >> (4 * pair + 12) & 0xf0);
}

// The 16 bytes of a lane: lane `index % 32` of tile `index / 32`.
struct alignas(16) Lane {
  uint32_t word[kAtoms];
};

// Calls visit(pair, plain_byte, mask) for what word `word` of a lane holds: plain_byte is the index in qdata, or -1
// beyond n and k; mask says which of the byte's nibbles are within k.
template <class Visit>
constexpr void each_pair(int64_t n, int64_t k, int64_t index, int word, Visit visit) {
  const int64_t tiles_k = ceil_div(k, kTileK), tile = index / kLanes;
  for (int pair = 0; pair < 4; ++pair) {
    const Code code = code_at({static_cast<int>(index % kLanes), word, pair});
    const int64_t row = tile / tiles_k * kTileN + code.row, column = tile % tiles_k * kTileK + code.k;
    visit(pair, row < n && column < k ? row * ceil_div(k, 2) + column / 2 : -1, column + 1 < k ? 255u : 15u);
  }
}

constexpr int64_t lane_count(int64_t n, int64_t k) { return ceil_div(n, kTileN) * ceil_div(k, kTileK) * kLanes; }

constexpr Lane pack_lane(const uint8_t* qdata, int64_t n, int64_t k, int64_t index) {
  Lane lane{};
  for (int word = 0; word < kAtoms; ++word)
    each_pair(n, k, index, word, [&](int pair, int64_t at, uint32_t mask) {
      if (at >= 0) lane.word[word] |= spread(qdata[at] & mask, pair);
    });
  return lane;
}

constexpr void unpack_lane(Lane lane, uint8_t* qdata, int64_t n, int64_t k, int64_t index) {
  for (int word = 0; word < kAtoms; ++word)
    each_pair(n, k, index, word, [&](int pair, int64_t at, uint32_t mask) {
      if (at >= 0) qdata[at] = static_cast<uint8_t>(gather(lane.word[word], pair) & mask);
    });
}

// Activations of 8 bits for these weights: position p of each sixteen along k holds k = activation_k(p).
constexpr int activation_k(int position) {
  const int b = position % 4;
  return 2 * (position / 4) + b / 2 + 8 * (b % 2);
}

constexpr bool is_consistent() {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int word = 0; word < kAtoms; ++word)
      for (int nibble = 0; nibble < 8; ++nibble) {
        const Code code = code_at({lane, word, nibble});
        const Place back = place_of(code);
        if (back.lane != lane || back.word != word || back.nibble != nibble) return false;
        const Code odd = code_at({lane, word, nibble % 4 + 4});
        if (nibble < 4 && (code.k % 2 || odd.row != code.row || odd.k != code.k + 1)) return false;
      }
  for (uint32_t byte = 0; byte < 256; ++byte)
    for (int pair = 0; pair < 4; ++pair)
      if (gather(spread(byte, pair), pair) != byte) return false;
  return true;
}
static_assert(is_consistent(), "code_at and place_of, spread and gather are inverses, and neighbours are neighbours");

}  // namespace
}  // namespace aoq::int4_cuda
