// The layout of weights with one to four bits a code, in groups, that CUDA kernels read: one buffer for bf16, fp16,
// int8 and fp8 activations, mma.sync and wgmma, sm_80 to sm_90. Plain codes, scales and zero points are those of
// formats/format.h.
//
//   packed             uint8 [ceil(n/16)][ceil(k/64)][128 * bits]
//   scale, zero_point  [ceil(n/16)][ceil(k/group)][16]      as on the CPU: a warp's sixteen rows lie side by side
//
// A tile is 16 rows n by 64 columns k. A lane of the warp that multiplies it owns four words of nibbles, and what it
// makes of them it feeds to the tensor cores, without shared memory or shuffles. Codes beyond n and k are 0.
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
//
// Codes of four bits are the nibbles. Others are split into planes of two and of one bit, low bits first, as
// formats/format.h has them on the CPU: a plane's word has the bits of two words of nibbles side by side, or of four,
// so that one shift and one mask make its share of any of them. A tile's planes follow each other, and in each the
// words of a lane: every load of a warp is of neighbouring bytes.
//
//   bits of a code   a tile, and a warp's loads of it                     the nibbles of a lane's word i
//   4                | nibbles: 16 bytes a lane |                         a[i]
//   3                | two bits: 8 bytes | one bit: 4 bytes |             a[i / 2] >> 2 (i % 2) & 0x33333333
//                                                                         | (b >> i & 0x11111111) << 2
//   2                | two bits: 8 bytes |                                a[i / 2] >> 2 (i % 2) & 0x33333333
//   1                | one bit: 4 bytes |                                 a >> i & 0x11111111
#pragma once
#include <cstdint>

#include "cuda/words.h"
#include "formats/packed.h"

namespace aoq::nibbles {
namespace {  // constexpr: the tests run on the host what the kernels run on the device

constexpr int kTileN = 16, kTileK = 64, kLanes = 32;
constexpr int kAtomK = 16, kAtoms = kTileK / kAtomK;  // a word of nibbles of each lane

constexpr int tile_bytes(int bits) { return kTileN * kTileK * bits / 8; }

// ---- which code a nibble holds

struct Place {
  int lane, word, nibble;
};
struct Code {
  int row, k;
};

constexpr Code code_at(Place at) {
  const int pair = at.nibble % 4, odd = at.nibble / 4;  // pair j is the 16-bit fragment register a_j
  return {at.lane / 4 + 8 * (pair % 2), kAtomK * at.word + 8 * (pair / 2) + 2 * (at.lane % 4) + odd};
}

// The inverse.
constexpr Place place_of(Code code) {
  const int k = code.k % kAtomK;
  return {4 * (code.row % 8) + k % 8 / 2, code.k / kAtomK, code.row / 8 + 2 * (k / 8) + 4 * (k % 2)};
}

// Activations of 8 bits for these weights: position p of each sixteen along k holds k = activation_k(p).
constexpr int activation_k(int position) {
  const int b = position % 4;
  return 2 * (position / 4) + b / 2 + 8 * (b % 2);
}

// ---- planes

// Bits low .. low + bits - 1 of every code: `words` words of each lane, from `offset` bytes of a tile on, which are
// words first_word .. of the lane's share.
struct Plane {
  int bits, low, words, first_word, offset;

  constexpr int lane_bytes() const { return 4 * words; }
  constexpr int phases() const { return 4 / bits; }  // words of nibbles that a word of the plane makes
  // The plane's part of a nibble, once at its place.
  constexpr uint32_t mask() const { return ((1u << bits) - 1) * 0x11111111u; }
};

template <int kBits>
struct Tile {
  static_assert(kBits >= 1 && kBits <= 4, "codes are nibbles at most");
  static constexpr int kPlanes = (kBits >> 2 & 1) + (kBits >> 1 & 1) + (kBits & 1);
  static constexpr int kBytes = tile_bytes(kBits);

  static constexpr Plane plane(int index) {
    int low = 0, word = 0;
    for (int bits = 4; bits; bits /= 2) {
      if (!(kBits & bits)) continue;
      const Plane plane{bits, low, kAtoms * bits / 4, word, 4 * kLanes * word};
      if (index-- == 0) return plane;
      low += bits;
      word += plane.words;
    }
    return {};
  }
  // Bytes from the first of some tiles to what a lane has of the first plane of tile `tile`; and from there to plane
  // `index`.
  static constexpr int to_lane(int tile, int lane) {
    return (tile * (kBytes / plane(0).lane_bytes()) + lane) * plane(0).lane_bytes();
  }
  static constexpr int to_plane(int index, int lane) {
    return plane(index).offset + lane * (plane(index).lane_bytes() - plane(0).lane_bytes());
  }
};

// What a lane has of a tile is kBits words, those of its planes, one plane after the other.

constexpr uint32_t shifted_right(uint32_t word, int count) { return count < 0 ? word << -count : word >> count; }

// Word `index` of a lane's nibbles: codes in their low bits, or kUp bits above those. (Not a loop over planes:
// compilers keep words in registers once indices are known.)
template <int kBits, int kUp = 0, int kPlane = 0>
constexpr uint32_t nibbles_of(const Words<kBits>& lane, int index) {
  static_assert(kUp >= 0 && kBits + kUp <= 4);
  constexpr Plane kOf = Tile<kBits>::plane(kPlane);
  constexpr int kTo = kOf.low + kUp;
  uint32_t nibbles =
      shifted_right(lane.word[kOf.first_word + index / kOf.phases()], kOf.bits * (index % kOf.phases()) - kTo) &
      kOf.mask() << kTo;
  if constexpr (kPlane + 1 < Tile<kBits>::kPlanes) nibbles |= nibbles_of<kBits, kUp, kPlane + 1>(lane, index);
  return nibbles;
}

// Adds a word of nibbles to a lane of zeros.
template <int kBits>
constexpr void add_nibbles(Words<kBits>& lane, int index, uint32_t nibbles) {
  for (int i = 0; i < Tile<kBits>::kPlanes; ++i) {
    const Plane plane = Tile<kBits>::plane(i);
    lane.word[plane.first_word + index / plane.phases()] |= (nibbles >> plane.low & plane.mask())
                                                            << plane.bits * (index % plane.phases());
  }
}

// ---- memory

// Where packed has plane `index` of the code of (row, k): which byte, and how far to shift it right.
struct Bits {
  int64_t byte;
  int shift;
};
template <int kBits>
constexpr Bits bits_of(int64_t row, int64_t k, int64_t columns, int index = 0) {
  const Place at = place_of({static_cast<int>(row % kTileN), static_cast<int>(k % kTileK)});
  const int64_t tile = row / kTileN * ceil_div(columns, kTileK) + k / kTileK;
  const Plane plane = Tile<kBits>::plane(index);
  const int word = at.lane * plane.words + at.word / plane.phases();
  const int shift = 4 * at.nibble + plane.bits * (at.word % plane.phases());
  return {tile * Tile<kBits>::kBytes + plane.offset + 4 * word + shift / 8, shift % 8};
}

// ---- plain codes to packed ones and back, a lane of a tile at a time

constexpr int64_t lane_count(int64_t n, int64_t k) { return ceil_div(n, kTileN) * ceil_div(k, kTileK) * kLanes; }

// Bytes of a plain row of k codes.
template <int kBits>
constexpr int64_t row_bytes(int64_t k) {
  return 8 % kBits == 0 ? ceil_div(k, 8 / kBits) : ceil_div(k * kBits, 8);
}

// Two neighbours along k, the first one even, are 2 * kBits bits in a line of a plain row, and the nibbles j and j + 4
// of a word. So a word is the four pairs in its nibbles 0 to 3, spread out:
template <int kBits>
constexpr uint32_t spread(uint32_t plain, int pair) {
  return ((plain & ((1 << kBits) - 1)) | (plain >> kBits) << 16) << 4 * pair;
}
template <int kBits>
constexpr uint32_t gather(uint32_t word, int pair) {
  constexpr uint32_t kMask = (1 << kBits) - 1;
  return (word >> 4 * pair & kMask) | (word >> (4 * pair + 16 - kBits) & kMask << kBits);
}

// Calls visit(pair, row, column of its first code, the byte of qdata where that one begins, mask) for the pairs of word
// `word` of a lane: the byte is -1 beyond n and k, and mask says which of the pair's bits are within k.
template <int kBits, class Visit>
constexpr void each_pair(int64_t n, int64_t k, int64_t index, int word, Visit visit) {
  const int64_t tiles_k = ceil_div(k, kTileK), tile = index / kLanes;
  for (int pair = 0; pair < 4; ++pair) {
    const Code code = code_at({static_cast<int>(index % kLanes), word, pair});
    const int64_t row = tile / tiles_k * kTileN + code.row, column = tile % tiles_k * kTileK + code.k;
    const int64_t byte = 8 % kBits == 0 ? column / (8 / kBits) : column * kBits / 8;
    visit(pair, row, column, row < n && column < k ? row * row_bytes<kBits>(k) + byte : -1,
          column + 1 < k ? (1u << 2 * kBits) - 1 : (1u << kBits) - 1);
  }
}

template <int kBits>
constexpr Words<kBits> pack_lane(const uint8_t* qdata, int64_t n, int64_t k, int64_t index) {
  Words<kBits> lane{};
  for (int word = 0; word < kAtoms; ++word) {
    uint32_t nibbles = 0;
    each_pair<kBits>(n, k, index, word, [&](int pair, int64_t, int64_t column, int64_t at, uint32_t mask) {
      if (at < 0) return;
      uint32_t plain = qdata[at];
      if constexpr (kBits < 4) {
        const int shift = static_cast<int>(column * kBits % 8);
        plain >>= shift;
        if (shift + 2 * kBits > 8 && column * kBits / 8 + 1 < row_bytes<kBits>(k))
          plain |= static_cast<uint32_t>(qdata[at + 1]) << (8 - shift);
      }
      nibbles |= spread<kBits>(plain & mask, pair);
    });
    add_nibbles(lane, word, nibbles);
  }
  return lane;
}

// Four lanes in turn have the pairs of eight columns of a row, kBits whole bytes: any(mine, word, pair) is what they
// have of them, or-ed together, and each writes a byte of it, if there are as many. A pair of nibbles is a byte.
template <int kBits, class Any>
constexpr void unpack_lane(const Words<kBits>& lane, uint8_t* qdata, int64_t n, int64_t k, int64_t index, Any any) {
  const int part = static_cast<int>(index % 4);
  for (int word = 0; word < kAtoms; ++word)
    each_pair<kBits>(n, k, index, word, [&](int pair, int64_t row, int64_t column, int64_t at, uint32_t mask) {
      auto mine = [&] { return gather<kBits>(nibbles_of(lane, word), pair) & mask; };
      if constexpr (kBits == 4) {
        if (at >= 0) qdata[at] = static_cast<uint8_t>(mine());
      } else {
        const uint32_t eight = any((column < k ? mine() : 0) << 2 * kBits * part, word, pair);
        const int64_t byte = column / 8 * kBits + part, bytes = row_bytes<kBits>(k);
        if (part < kBits && row < n && byte < bytes)
          qdata[row * bytes + byte] = static_cast<uint8_t>(eight >> 8 * part);
      }
    });
}

// ---- proofs

constexpr bool places_are_inverses() {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int word = 0; word < kAtoms; ++word)
      for (int nibble = 0; nibble < 8; ++nibble) {
        const Code code = code_at({lane, word, nibble});
        const Place back = place_of(code);
        if (back.lane != lane || back.word != word || back.nibble != nibble) return false;
        const Code odd = code_at({lane, word, nibble % 4 + 4});
        if (nibble < 4 && (code.k % 2 || odd.row != code.row || odd.k != code.k + 1)) return false;
      }
  return true;
}
static_assert(places_are_inverses(), "code_at and place_of are inverses, and neighbours are neighbours");

// Every bit of a lane's words is one bit of one nibble, wherever codes stand in them.
template <int kBits>
constexpr bool planes_are_inverses() {
  uint32_t taken[kBits] = {};
  for (int word = 0; word < kAtoms; ++word)
    for (int bit = 0; bit < 32; ++bit) {
      if (bit % 4 >= kBits) continue;
      Words<kBits> lane{};
      add_nibbles(lane, word, 1u << bit);
      for (int other = 0; other < kAtoms; ++other) {
        if (nibbles_of(lane, other) != (other == word ? 1u << bit : 0)) return false;
        if (nibbles_of<kBits, 4 - kBits>(lane, other) != nibbles_of(lane, other) << (4 - kBits)) return false;
      }
      for (int i = 0; i < kBits; ++i) {
        if (taken[i] & lane.word[i]) return false;
        taken[i] |= lane.word[i];
      }
    }
  for (const uint32_t word : taken)
    if (word != ~0u) return false;
  return true;
}

// Plain rows come back, odd ends included; and where bits_of says that a code's bits are, they are.
template <int kBits>
constexpr bool packing_is_invertible() {
  constexpr int kN = 9, kK = 13;
  constexpr int64_t kRow = row_bytes<kBits>(kK), kEnd = kBits * kK % 8;
  uint8_t plain[kN * kRow] = {}, back[kN * kRow] = {}, packed[Tile<kBits>::kBytes] = {};
  for (int64_t i = 0; i < kN * kRow; ++i) {
    plain[i] = static_cast<uint8_t>(37 * i + 11 * (i / 7));
    if (i % kRow == kRow - 1 && kEnd) plain[i] = static_cast<uint8_t>(plain[i] & ((1 << kEnd) - 1));
  }
  Words<kBits> lanes[kLanes] = {};
  for (int i = 0; i < kLanes; ++i) {
    lanes[i] = pack_lane<kBits>(plain, kN, kK, i);
    for (int j = 0; j < Tile<kBits>::kPlanes; ++j) {
      const Plane plane = Tile<kBits>::plane(j);
      uint8_t* const at = packed + Tile<kBits>::to_lane(0, i) + Tile<kBits>::to_plane(j, i);
      for (int byte = 0; byte < plane.lane_bytes(); ++byte)
        at[byte] = static_cast<uint8_t>(lanes[i].word[plane.first_word + byte / 4] >> 8 * (byte % 4));
    }
  }
  for (int i = 0; i < kLanes; ++i)
    unpack_lane(lanes[i], back, kN, kK, i, [&](uint32_t, int word, int pair) {
      uint32_t eight = 0;
      for (int part = 0; part < 4; ++part)
        eight |= gather<kBits>(nibbles_of(lanes[i / 4 * 4 + part], word), pair) << 2 * kBits * part;
      return eight;
    });
  for (int64_t i = 0; i < kN * kRow; ++i)
    if (plain[i] != back[i]) return false;
  for (int row = 0; row < kN; ++row)
    for (int k = 0; k < kK; ++k)
      for (int i = 0; i < Tile<kBits>::kPlanes; ++i) {
        const Plane plane = Tile<kBits>::plane(i);
        const Bits at = bits_of<kBits>(row, k, kK, i);
        for (int bit = 0; bit < plane.bits; ++bit) {
          const int64_t from = k * kBits + plane.low + bit;
          if ((packed[at.byte] >> (at.shift + bit) & 1) != (plain[row * kRow + from / 8] >> from % 8 & 1)) return false;
        }
      }
  return true;
}
static_assert(planes_are_inverses<1>() && planes_are_inverses<2>() && planes_are_inverses<3>() &&
              planes_are_inverses<4>());
static_assert(packing_is_invertible<1>() && packing_is_invertible<2>() && packing_is_invertible<3>() &&
              packing_is_invertible<4>());

}  // namespace
}  // namespace aoq::nibbles
