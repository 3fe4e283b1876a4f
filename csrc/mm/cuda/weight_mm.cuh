// How 16-bit activations meet rows of 8-bit codes on mma.sync, in every kernel for them: weights are A, so that 8
// tokens (rows of x) are a fragment's columns.
//
//   A lane's share of sixteen rows and 64 columns is sixteen bytes of row g = lane / 4 and of row g + 8, from column
//   16 (lane % 4): four of them in turn are its share of A, and the same four columns of x its share of B. The order of
//   columns within a sum is free, so nothing is shuffled: two loads of sixteen bytes bring a lane's 16 columns of x.
//   Codes become 16-bit floats exactly, fp8's as long as they are finite. A row's sum is scaled once, at the end.
#pragma once
#include "formats/fp8_e4m3.h"
#include "formats/fp8_e5m2.h"
#include "formats/int8.h"
#include "mm/cuda/packed_mm.cuh"
#include "mm/cuda/weight_mm_plan.h"

namespace aoq::weight {
namespace {

// Codec<X, Format>::pair: of a word's four codes the lower two, or the upper two, as X.
template <class X, class Format, bool kFp8 = Format::kFp8>
struct Codec;

// Where 16-bit floats have their exponent.
template <class X>
constexpr int kMantissa = 7;
template <>
constexpr int kMantissa<ptx::F16> = 10;
template <class X>
constexpr int kBias = 127;
template <>
constexpr int kBias<ptx::F16> = 15;

// fp8: each code in sixteen bits as a signed number; shifted, its exponent and mantissa lie where X has them and its
// sign above, so that one mask leaves the three. What remains is a power of two, which also gives subnormal codes their
// values: e4m3 1.5 is 0x3c, in bf16 0x03c0 = 1.5 * 2^-120.
template <class X, class Format>
struct Codec<X, Format, true> {
  static constexpr int kShift = kMantissa<X> - Format::Fp8::kMantissa, kExponent = kBias<X> - Format::Fp8::kBias;
  static constexpr uint32_t kMask = (0x8000u | 0x7fu << kShift) * 0x00010001u;
  static constexpr uint32_t kFactor = static_cast<uint32_t>(kBias<X> + kExponent) << kMantissa<X>;  // 2^kExponent
  static __device__ uint32_t pair(uint32_t word, bool upper) {
    const uint32_t codes = ptx::signed_bytes_of(word, upper ? 0xb3a2 : 0x9180);
    return ptx::fma_pair(X{}, codes << kShift & kMask, kFactor * 0x00010001u, 0x80008000);
  }
};

// Integers, in bf16: below a byte 0x43, the lower seven bits of a code are 128 + what they count, and its sign alone is
// 128 or 256: -3 = 0xfd gives 0x437d = 253 and 0x4380 = 256.
template <>
struct Codec<ptx::Bf16, Int8> {
  static __device__ uint32_t pair(uint32_t word, bool upper) {
    const uint32_t codes = ptx::bytes_of(word, 0x43434343, upper ? 0x4342 : 0x4140);
    return ptx::fma_pair(ptx::Bf16{}, codes & 0xff80ff80, 0xbf80bf80, codes & 0xff7fff7f);
  }
};
// code + 128 below a byte 0x64 is 1152 + code.
template <>
struct Codec<ptx::F16, Int8> {
  static __device__ uint32_t pair(uint32_t word, bool upper) {
    const uint32_t biased = ptx::bytes_of(word ^ 0x80808080, 0x64646464, upper ? 0x4342 : 0x4140);
    return ptx::fma_pair(ptx::F16{}, biased, 0x3c003c00, 0xe480e480);
  }
};

// sum += 64 columns of tiles of rows, codes[r] sixteen bytes of row g and of row g + 8, with those of as many eights of
// tokens: x(j, upper) says where in shared memory the lane's upper or lower eight columns of token 8j + g lie.
template <class X, class Format, int kTiles, int kEights, class At>
__device__ void multiply_64(float (&sum)[kTiles][kEights][4], const ptx::U32x4 (&codes)[kTiles][2], At x) {
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    ptx::U32x4 b[kEights];
#pragma unroll
    for (int j = 0; j < kEights; ++j) b[j] = ptx::load_shared<4>(x(j, upper));
#pragma unroll
    for (int quad = 0; quad < 2; ++quad)
#pragma unroll
      for (int r = 0; r < kTiles; ++r) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = Codec<X, Format>::pair(codes[r][i % 2].word[2 * upper + quad], i / 2);
#pragma unroll
        for (int j = 0; j < kEights; ++j)
          ptx::multiply_k16(X{}, sum[r][j], a, b[j].word[2 * quad], b[j].word[2 * quad + 1]);
      }
  }
}

// Columns of a row of packed.
__device__ inline int64_t pitch_of(const PackedMm& p) { return ceil_div(p.k, 16) * 16; }

// Calls run(X, Format) for the dtype of 16-bit x and the weight's format.
template <bool kFp8, class Run>
void with_types(const PackedMm& p, Run run) {
  auto with_format = [&](auto x) {
    if constexpr (!kFp8)
      run(x, Int8{});
    else if (p.w.e5m2)
      run(x, Fp8E5m2{});
    else
      run(x, Fp8E4m3{});
  };
  p.x.dtype == Dtype::f16 ? with_format(ptx::F16{}) : with_format(ptx::Bf16{});
}

}  // namespace
}  // namespace aoq::weight
