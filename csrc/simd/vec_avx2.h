// Eight floats in a ymm, and their loads and stores in each dtype. Sealed: included by *_avx2.cpp only.
#pragma once
#include <immintrin.h>

#include "base/dtype.h"

namespace {

struct Avx2 {
  using Vec = __m256;
  static constexpr int kLanes = 8;
  // A multiply-add takes five cycles, two begin in each; of sixteen registers half hold sums.
  static constexpr bool kPairs = false;
  static constexpr int chains(int rows, int vectors) { return rows * vectors <= 2 ? 2 : rows * vectors <= 4 ? 2 : 1; }

  static Vec set(float value) { return _mm256_set1_ps(value); }
  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec zero() { return _mm256_setzero_ps(); }
  static Vec to_float(Vec sum) { return sum; }
  static void make_start(float* sum, float times) { *sum *= times; }
  static Vec start(const float* at) { return set(*at); }
  static float reduce(Vec a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  static Vec load_f32(const float* data) { return _mm256_loadu_ps(data); }
  static void store_f32(float* data, Vec a) { _mm256_storeu_ps(data, a); }

  static Vec widen(__m128i half_words, aoq::Dtype dtype) {
    if (dtype == aoq::Dtype::f16) return _mm256_cvtph_ps(half_words);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half_words), 16));
  }

  static __m128i narrow(Vec a, aoq::Dtype dtype) {
    if (dtype == aoq::Dtype::f16) return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed = _mm256_packus_epi32(words, words);  // per 128-bit half: 0 1 2 3 0 1 2 3
    return _mm_unpacklo_epi64(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
  }

  // Eight words of each of four rows to columns, row r's word s to out[s * stride + r], of the first `count` rows.
  static void store_columns(const void* const (&rows)[4], int64_t count, void* out, int64_t stride) {
    auto load = [&](int row) { return _mm256_loadu_si256(static_cast<const __m256i*>(rows[row])); };
    const __m256i low01 = _mm256_unpacklo_epi32(load(0), load(1)), high01 = _mm256_unpackhi_epi32(load(0), load(1));
    const __m256i low23 = _mm256_unpacklo_epi32(load(2), load(3)), high23 = _mm256_unpackhi_epi32(load(2), load(3));
    const __m256i columns[4] = {_mm256_unpacklo_epi64(low01, low23), _mm256_unpackhi_epi64(low01, low23),
                                _mm256_unpacklo_epi64(high01, high23), _mm256_unpackhi_epi64(high01, high23)};
    int32_t* to = static_cast<int32_t*>(out);
    auto store = [&](__m128i column) {
      if (count == 4)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), column);
      else
        std::memcpy(to, &column, static_cast<size_t>(count) * 4);
      to += stride;
    };
    for (const __m256i column : columns) store(_mm256_castsi256_si128(column));
    for (const __m256i column : columns) store(_mm256_extracti128_si256(column, 1));
  }

  static Vec load(const void* data, aoq::Dtype dtype, int64_t i) {
    if (dtype == aoq::Dtype::f32) return _mm256_loadu_ps(static_cast<const float*>(data) + i);
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(data) + i)), dtype);
  }

  static Vec load_part(const void* data, aoq::Dtype dtype, int64_t i, int64_t count) {
    alignas(32) float part[kLanes] = {};
    for (int64_t lane = 0; lane < count; ++lane) part[lane] = load_float(data, dtype, i + lane);
    return _mm256_load_ps(part);
  }

  static void store(void* data, aoq::Dtype dtype, int64_t i, Vec a, int64_t count) {
    if (count < kLanes) {
      alignas(32) float part[kLanes];
      _mm256_store_ps(part, a);
      for (int64_t lane = 0; lane < count; ++lane) store_float(data, dtype, i + lane, part[lane]);
    } else if (dtype == aoq::Dtype::f32) {
      _mm256_storeu_ps(static_cast<float*>(data) + i, a);
    } else {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(data) + i), narrow(a, dtype));
    }
  }
};

// Eight 32-bit integers.
struct Int256 {
  using Type = __m256i;
  static Type load(const uint8_t* data) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)); }
  static Type right(Type a, int count) { return _mm256_srli_epi32(a, count); }
  static Type left(Type a, int count) { return _mm256_slli_epi32(a, count); }
  static Type masked(Type a, uint32_t mask) { return _mm256_and_si256(a, _mm256_set1_epi32(static_cast<int>(mask))); }
  static Type either(Type a, Type b) { return _mm256_or_si256(a, b); }
};

// The vocabulary of simd/vec_ref.h, in halves.
struct I32x16 {
  __m256i low, high;
};
struct F32x16 {
  __m256 low, high;
};
#define AOQ_BINARY(type, function, intrinsic) \
  inline type function(type a, type b) { return {intrinsic(a.low, b.low), intrinsic(a.high, b.high)}; }
AOQ_BINARY(F32x16, operator+, _mm256_add_ps)
AOQ_BINARY(F32x16, operator-, _mm256_sub_ps)
AOQ_BINARY(F32x16, operator*, _mm256_mul_ps)
AOQ_BINARY(F32x16, operator/, _mm256_div_ps)
AOQ_BINARY(F32x16, min, _mm256_min_ps)
AOQ_BINARY(F32x16, max, _mm256_max_ps)
AOQ_BINARY(I32x16, operator+, _mm256_add_epi32)
AOQ_BINARY(I32x16, operator&, _mm256_and_si256)
AOQ_BINARY(I32x16, operator|, _mm256_or_si256)
AOQ_BINARY(I32x16, operator^, _mm256_xor_si256)
#undef AOQ_BINARY
inline F32x16 splat(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline I32x16 splat(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline I32x16 operator<<(I32x16 a, int count) {
  const __m128i by = _mm_cvtsi32_si128(count);
  return {_mm256_sll_epi32(a.low, by), _mm256_sll_epi32(a.high, by)};
}
inline I32x16 operator>>(I32x16 a, int count) {
  const __m128i by = _mm_cvtsi32_si128(count);
  return {_mm256_srl_epi32(a.low, by), _mm256_srl_epi32(a.high, by)};
}
inline I32x16 bits(F32x16 a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
inline F32x16 from_bits(I32x16 a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
inline I32x16 round_to_int(F32x16 a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
inline F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline F32x16 load16(const float* data) { return {_mm256_loadu_ps(data), _mm256_loadu_ps(data + 8)}; }
inline F32x16 load16(const void* data, aoq::Dtype dtype, int64_t i) {
  return {Avx2::load(data, dtype, i), Avx2::load(data, dtype, i + 8)};
}
inline void store16_i8(int8_t* data, I32x16 a) {
  // Packing works in 128-bit halves: put the quarters back in order.
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(data), bytes);
}
inline I32x16 load16_i32(const void* data) {
  const __m256i* halves = static_cast<const __m256i*>(data);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
inline void store16(float* data, F32x16 a) {
  _mm256_storeu_ps(data, a.low);
  _mm256_storeu_ps(data + 8, a.high);
}
inline void store16_part(void* data, aoq::Dtype dtype, int64_t i, F32x16 a, int64_t count) {
  Avx2::store(data, dtype, i, a.low, count);
  if (count > 8) Avx2::store(data, dtype, i + 8, a.high, count - 8);
}
inline void store16_i32(void* data, I32x16 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(data), a.low);
  _mm256_storeu_si256(static_cast<__m256i*>(data) + 1, a.high);
}
inline I32x16 gather16(const uint8_t* data, int64_t stride) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i at = _mm256_mullo_epi32(lanes, _mm256_set1_epi32(static_cast<int>(stride)));
  return {_mm256_i32gather_epi32(reinterpret_cast<const int*>(data), at, 1),
          _mm256_i32gather_epi32(reinterpret_cast<const int*>(data + 8 * stride), at, 1)};
}

}  // namespace

#include "simd/lanes.h"
