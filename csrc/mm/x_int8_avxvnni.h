// int8 activations on AVX_VNNI: vpdpbusd adds four products of unsigned codes and signed activations to each int32.
#pragma once
#include "mm/x_int8_avx2.h"

namespace {

template <class Format, bool kByWord = false>
struct Int8AvxVnni : Int8Quads<Format, kByWord> {
  using Base = Int8Quads<Format, kByWord>;
  using typename Base::Sum, typename Base::Weight, typename Base::X;
  static constexpr int kFusedTile = 6;
  static constexpr int chains(int rows, int vectors) { return Avx2::chains(rows, vectors); }

  static Sum dot(Sum sum, Weight weight, const X* x) {
    return (Sum)_mm256_dpbusd_avx_epi32((__m256i)sum, weight, _mm256_set1_epi32(static_cast<int>(*x)));
  }
};

template <class Format>
void run_int8_avxvnni(const PackedMm& p) {
  run_vector_mm<Int8AvxVnni, Format>(p);
}

}  // namespace
