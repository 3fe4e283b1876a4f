// How 16- and 8-bit activations meet weights of one to four bits a code (formats/nibbles_cuda.h) on the tensor cores:
// what a lane loads of a tile, and how its nibbles become the registers of A. Formats differ by kBits and kMid alone.
#pragma once
#include <type_traits>

#include "base/dtype.h"
#include "cuda/ptx.cuh"
#include "formats/nibbles_cuda.h"

namespace aoq {
namespace {

// What lane `lane` has of a tile, a load a plane: load(count, from) gives Words<count> from so many bytes after where
// the lane has the first plane.
template <int kPlane = 0, int kBits, class Load>
__device__ void load_planes(Words<kBits>& codes, int lane, Load load) {
  using Tile = nibbles::Tile<kBits>;
  constexpr nibbles::Plane kOf = Tile::plane(kPlane);
  const auto words = load(std::integral_constant<int, kOf.words>{}, Tile::to_plane(kPlane, lane));
#pragma unroll
  for (int i = 0; i < kOf.words; ++i) codes.word[kOf.first_word + i] = words.word[i];
  if constexpr (kPlane + 1 < Tile::kPlanes) load_planes<kPlane + 1>(codes, lane, load);
}
template <int kBits, class Load>
__device__ Words<kBits> load_lane(int lane, Load load) {
  if constexpr (nibbles::Tile<kBits>::kPlanes == 1) return load(std::integral_constant<int, kBits>{}, 0);
  Words<kBits> codes;
  load_planes(codes, lane, load);
  return codes;
}

// Bytes of an activation.
constexpr int x_bytes(ptx::Bf16) { return 2; }
constexpr int x_bytes(ptx::F16) { return 2; }
constexpr int x_bytes(ptx::S8) { return 1; }

// ---- one multiplication: 32 bytes of 8 tokens with as many columns of sixteen rows of w
//
//   Sum, kBytes   of a sum, of an activation
//   kWords, kUp   words of nibbles that a lane decodes for it, and how far up in their nibbles codes are
//   decode        those words, nibbles(0) and on, to the registers of A
//   kZero         what a sum starts from; value(sum) is then the sum in fp32, of codes minus kMid, times kUnit

template <class X, class Format>
struct Math;

template <class X>
struct FloatMath {
  using Sum = float;
  static constexpr int kBytes = x_bytes(X{}), kWords = 1, kUp = 0;
  static constexpr Sum kZero = 0;
  static constexpr float kUnit = 1;
  static __device__ float value(Sum sum) { return sum; }
  static __device__ void multiply(Sum (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::multiply_k16(X{}, sum, a, b0, b1);
  }
};

// Pairs of code - kMid, exact: codes stand in the last bits of a number's mantissa.
template <class Format>
struct Math<ptx::Bf16, Format> : FloatMath<ptx::Bf16> {
  static constexpr uint32_t kMids = Format::kMid * 0x00010001u;
  template <class Nibbles>
  static __device__ void decode(Nibbles nibbles, uint32_t (&pairs)[4]) {
    const uint32_t word = nibbles(0);
    for (int j = 0; j < 4; ++j) {
      const uint32_t biased = ptx::and_or(word >> 4 * j, 0x000f000f, 0x43004300);     // 128 + code
      pairs[j] = ptx::fma_pair(ptx::Bf16{}, biased, 0x3f803f80, 0xc300c300 | kMids);  // - (128 + kMid)
    }
  }
};
template <class Format>
struct Math<ptx::F16, Format> : FloatMath<ptx::F16> {
  static constexpr uint32_t kMids = Format::kMid * 0x00010001u;
  template <class Nibbles>
  static __device__ void decode(Nibbles nibbles, uint32_t (&pairs)[4]) {
    const uint32_t word = nibbles(0);
    for (int j = 0; j < 4; j += 2) {
      const uint32_t low = ptx::and_or(word >> 4 * j, 0x000f000f, 0x64006400);              // 1024 + code
      const uint32_t high = ptx::and_or(word >> 4 * j, 0x00f000f0, 0x64006400);             // 1024 + 16 code
      pairs[j] = ptx::fma_pair(ptx::F16{}, low, 0x3c003c00, 0xe400e400 | kMids);            // - (1024 + kMid)
      pairs[j + 1] = ptx::fma_pair(ptx::F16{}, high, 0x2c002c00, 0xd400d400 | kMids << 4);  // / 16 - (64 + kMid)
    }
  }
};

// Quads of kUnit (code - kMid), as the upper bits of a signed byte are: x stands in the order of quantized_k
// (rows/quantize_rows.h). Sums of 128 products stay within +-2^21; they start from the bits of 1.5 * 2^23, so that they
// are the bits of that plus their value, and one subtraction makes a float of them.
template <class Format>
struct Math<ptx::S8, Format> {
  static_assert(Format::kMid == 1 << (Format::kBits - 1), "a byte's sign bit is what its codes have in the middle");
  using Sum = int32_t;
  static constexpr int kBytes = x_bytes(ptx::S8{}), kWords = 2, kUp = 4 - Format::kBits;
  static constexpr Sum kZero = 0x4b400000;
  static constexpr float kUnit = 1 << (8 - Format::kBits);
  static __device__ float value(Sum sum) { return bits_to_float(static_cast<uint32_t>(sum)) - 0x1.8p23f; }
  template <class Nibbles>
  static __device__ void decode(Nibbles nibbles, uint32_t (&quads)[4]) {
    for (int j = 0; j < 2; ++j) {
      const uint32_t word = nibbles(j);
      quads[2 * j] = ptx::and_xor(word << 4, 0xf0f0f0f0, 0x80808080);
      quads[2 * j + 1] = ptx::and_xor(word, 0xf0f0f0f0, 0x80808080);
    }
  }
  static __device__ void multiply(Sum (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::multiply_k32(ptx::S8{}, sum, a, b0, b1);
  }
};

// The registers of A for multiplication `index` of a tile.
template <class M, int kBits>
__device__ void decode(const Words<kBits>& codes, int index, uint32_t (&a)[4]) {
  M::decode([&](int i) { return nibbles::nibbles_of<kBits, M::kUp>(codes, index * M::kWords + i); }, a);
}

}  // namespace
}  // namespace aoq
