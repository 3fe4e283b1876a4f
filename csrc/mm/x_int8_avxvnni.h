// int8 activations on AVX_VNNI: vpdpbusd adds four products of unsigned codes and signed activations to each int32.
#pragma once
#include "mm/x_int8_avx2.h"

namespace {

struct Int8AvxVnni : Int8Avx2 {  // X holds four int8
  static constexpr int kStep = 4, kFusedTile = 6;

  static Sum dot(Sum sum, Weight weight, const X* x) {
    return (Sum)_mm256_dpbusd_avx_epi32((__m256i)sum, weight, _mm256_set1_epi32(static_cast<int>(*x)));
  }
};

}  // namespace
