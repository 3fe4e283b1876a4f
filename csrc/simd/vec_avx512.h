// Sixteen floats in a zmm, and their loads and stores in each dtype. Sealed: included by *_avx512*.cpp and *_amx.cpp
// only.
#pragma once
#include <immintrin.h>

#include "base/dtype.h"

namespace {

struct Avx512 {
  using Vec = __m512;
  static constexpr int kLanes = 16;
  // A multiply-add takes four cycles or more, two begin in each; of 32 registers 24 hold sums at most.
  static constexpr bool kPairs = false;
  static constexpr int chains(int rows, int) { return rows <= 2 ? 4 : rows <= 6 ? 2 : 1; }

  static Vec set(float value) { return _mm512_set1_ps(value); }
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec to_float(Vec sum) { return sum; }
  static void make_start(float* sum, float times) { *sum *= times; }
  static Vec start(const float* at) { return set(*at); }
  static float reduce(Vec a) { return _mm512_reduce_add_ps(a); }
  static Vec load_f32(const float* data) { return _mm512_loadu_ps(data); }
  static void store_f32(float* data, Vec a) { _mm512_storeu_ps(data, a); }

  static Vec widen(__m256i half_words, aoq::Dtype dtype) {
    if (dtype == aoq::Dtype::f16) return _mm512_cvtph_ps(half_words);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half_words), 16));
  }

  static __m256i narrow(Vec a, aoq::Dtype dtype) {
    if (dtype == aoq::Dtype::f16) return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
  }

  // Sixteen words of each of four rows to columns, row r's word s to out[s * stride + r], of the first `count` rows.
  static void store_columns(const void* const (&rows)[4], int64_t count, void* out, int64_t stride) {
    auto load = [&](int row) { return _mm512_loadu_si512(rows[row]); };
    const __m512i low01 = _mm512_unpacklo_epi32(load(0), load(1)), high01 = _mm512_unpackhi_epi32(load(0), load(1));
    const __m512i low23 = _mm512_unpacklo_epi32(load(2), load(3)), high23 = _mm512_unpackhi_epi32(load(2), load(3));
    const __m512i columns[4] = {_mm512_unpacklo_epi64(low01, low23), _mm512_unpackhi_epi64(low01, low23),
                                _mm512_unpacklo_epi64(high01, high23), _mm512_unpackhi_epi64(high01, high23)};
    int32_t* to = static_cast<int32_t*>(out);
    // No masked store: with the extraction below it becomes one vextracti32x4, which faults on what the mask leaves
    // out.
    auto store = [&](__m128i column) {
      if (count == 4)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), column);
      else if (count > 1)
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to), column);
      if (count == 1) to[0] = _mm_cvtsi128_si32(column);
      if (count == 3) to[2] = _mm_extract_epi32(column, 2);
      to += stride;
    };
    for (const __m512i column : columns) store(_mm512_castsi512_si128(column));
    for (const __m512i column : columns) store(_mm512_extracti32x4_epi32(column, 1));
    for (const __m512i column : columns) store(_mm512_extracti32x4_epi32(column, 2));
    for (const __m512i column : columns) store(_mm512_extracti32x4_epi32(column, 3));
  }

  static Vec load(const void* data, aoq::Dtype dtype, int64_t i) {
    if (dtype == aoq::Dtype::f32) return _mm512_loadu_ps(static_cast<const float*>(data) + i);
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(data) + i)), dtype);
  }

  static Vec load_part(const void* data, aoq::Dtype dtype, int64_t i, int64_t count) {
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
    if (dtype == aoq::Dtype::f32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(data) + i);
    return widen(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(data) + i), dtype);
  }

  static void store(void* data, aoq::Dtype dtype, int64_t i, Vec a, int64_t count) {
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
    if (dtype == aoq::Dtype::f32)
      _mm512_mask_storeu_ps(static_cast<float*>(data) + i, mask, a);
    else
      _mm256_mask_storeu_epi16(static_cast<uint16_t*>(data) + i, mask, narrow(a, dtype));
  }
};

// Sixteen 32-bit integers.
struct Int512 {
  using Type = __m512i;
  static Type load(const uint8_t* data) { return _mm512_loadu_si512(data); }
  static Type right(Type a, int count) { return _mm512_srli_epi32(a, static_cast<unsigned>(count)); }
  static Type left(Type a, int count) { return _mm512_slli_epi32(a, static_cast<unsigned>(count)); }
  static Type masked(Type a, uint32_t mask) { return _mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(mask))); }
  static Type either(Type a, Type b) { return _mm512_or_si512(a, b); }
};

// The vocabulary of simd/vec_ref.h.
struct I32x16 {
  __m512i v;
};
struct F32x16 {
  __m512 v;
};
inline F32x16 splat(float value) { return {_mm512_set1_ps(value)}; }
inline I32x16 splat(int32_t value) { return {_mm512_set1_epi32(value)}; }
inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32x16 operator|(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I32x16 operator^(I32x16 a, I32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline I32x16 operator<<(I32x16 a, int count) { return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(count))}; }
inline I32x16 operator>>(I32x16 a, int count) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(count))}; }
inline I32x16 bits(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
inline F32x16 from_bits(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
inline I32x16 round_to_int(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline F32x16 load16(const float* data) { return {_mm512_loadu_ps(data)}; }
inline F32x16 load16(const void* data, aoq::Dtype dtype, int64_t i) { return {Avx512::load(data, dtype, i)}; }
inline void store16_i8(int8_t* data, I32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(data), _mm512_cvtepi32_epi8(a.v));
}
inline I32x16 load16_i32(const void* data) { return {_mm512_loadu_si512(data)}; }
inline void store16(float* data, F32x16 a) { _mm512_storeu_ps(data, a.v); }
inline void store16_part(void* data, aoq::Dtype dtype, int64_t i, F32x16 a, int64_t count) {
  Avx512::store(data, dtype, i, a.v, count < 16 ? count : 16);
}
inline void store16_i32(void* data, I32x16 a) { _mm512_storeu_si512(data, a.v); }
inline I32x16 gather16(const uint8_t* data, int64_t stride) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_i32gather_epi32(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(stride))), data, 1)};
}

}  // namespace

#include "simd/lanes.h"
