// int8 activations on AVX512_VNNI: vpdpbusd adds four products of unsigned codes and signed activations to each int32.
#pragma once
#include "mm/x_int8_avx512.h"

namespace {

struct Int8Avx512Vnni : Int8Avx512 {  // X holds four int8
  static constexpr int kStep = 4;

  static Sum dot(Sum sum, Weight weight, const X* x) {
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, weight, _mm512_set1_epi32(static_cast<int>(*x)));
  }
};

}  // namespace
