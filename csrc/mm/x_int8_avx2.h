// int8 activations without VNNI.
//
// Codes of up to four bits: vpmaddubsw multiplies four unsigned codes of a lane with four signed ones of x and adds
// pairs up in 16 bits. That is exact: of 4 bits a pair is at most 2 * 15 * 128 = 3840, so eight steps fit an int16;
// then vpmaddwd adds the two halves of a lane to its int32. Nine multiplications for 32 columns, where widening to 16
// bits takes sixteen.
//
// Longer codes: a pair of bytes' products does not fit 16 bits, and cut into nibbles they take as many multiplications
// as widened ones. So codes and x are widened, and vpmaddwd adds pairs of products to each int32.
#pragma once
#include "simd/vec_avx2.h"

#include <type_traits>

#include "mm/packed_mm_vector.h"
#include "mm/units.h"
#include "mm/x_int8.h"

namespace {

// A sum as it is. Else GCC adds products to each other first, which takes registers that there are not.
template <class Sum>
Sum in_order(Sum sum) {
  asm("" : "+x"(sum));
  return sum;
}

template <class Format, bool kByWord>
struct Int8Ymm : Avx2, Units<Int256, Format, kByWord> {
  using Of = Units<Int256, Format, kByWord>;
  // Not __m256i: GCC 12 keeps arrays of that in memory, with a copy for every use.
  using Sum = __v8si;
  using Raw = typename Of::Words;
  using Weight = __m256i;
  using X = uint32_t;  // the codes of a step
  static constexpr bool kInt8 = true, kScaleLast = false;
  static constexpr float kMid = Format::kMid, kOffset = 0;
  static constexpr int kTileRows = 6, kFusedTile = 4, kFusedRows = kAllRows;

  static constexpr int chains(int, int) { return 1; }  // what is added is ready, and an addition takes a cycle
  static Sum zero() { return Sum{}; }
  static void make_start(float* sum, float times) { start_of_integers(sum, times); }
  static Sum start(const float* at) { return (Sum)_mm256_castps_si256(_mm256_set1_ps(*at)); }
  static Vec to_float(Sum sum) { return _mm256_cvtepi32_ps((__m256i)sum); }
  static Sum add(Sum a, Sum b) { return a + b; }
  using Avx2::add;
  static Raw load_raw(const uint8_t* stream, int64_t unit) { return Of::load_unit(stream, unit); }
  static Weight load_weight(const float* data) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)); }
  static void store_weight(float* data, Weight weight) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(data), weight);
  }
};

// Four columns a step, as bytes.
template <class Format, bool kByWord>
struct Int8Quads : Int8Ymm<Format, kByWord> {
  using Base = Int8Ymm<Format, kByWord>;
  using typename Base::Of, typename Base::Raw, typename Base::Weight, typename Base::X;
  static constexpr int kStep = 4;

  // A word's low nibbles are the quads k = 0,4,1,5 and its high ones k = 2,6,3,7: x is laid out alike. A word of bytes
  // is a quad.
  static Weight decode(const Raw& raw, int quad) {
    if constexpr (Format::kBits == 8)
      return Of::word(raw, 0);
    else if constexpr (Of::kUpper)
      return Of::bytes(raw, quad / 2, quad % 2);
    else
      return _mm256_and_si256(_mm256_srli_epi16(Of::word(raw, quad / 2), 4 * (quad % 2)), _mm256_set1_epi8(15));
  }

  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    if constexpr (Format::kBits == 8) {
      std::memcpy(memory, codes, static_cast<size_t>(steps) * 4);
    } else {
      const __m128i order = _mm_set_epi32(0x0f0b0e0a, 0x0d090c08, 0x07030602, 0x05010400);  // 0 4 1 5 2 6 3 7
      for (int64_t step = 0; step < steps; step += 2, codes += 8) {
        const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(memory + step), _mm_shuffle_epi8(eight, order));
      }
    }
    return memory;
  }
};

template <class Format, bool kByWord = false>
struct Int8Avx2Nibbles : Int8Quads<Format, kByWord> {
  using Base = Int8Quads<Format, kByWord>;
  using typename Base::Sum, typename Base::Weight, typename Base::X;
  using Part = __v16hi;
  static constexpr int kFoldSteps = 32767 / (2 * 128 * ((1 << Format::kBits) - 1)) / 8 * 8;  // whole words of nibbles

  static Part dot(Part part, Weight weight, const X* x) {
    return in_order(part + (Part)_mm256_maddubs_epi16(weight, _mm256_set1_epi32(static_cast<int>(*x))));
  }
  static Sum fold(Sum sum, Part part) { return sum + (Sum)_mm256_madd_epi16((__m256i)part, _mm256_set1_epi16(1)); }
  using Base::add;
  static Part add(Part a, Part b) { return a + b; }
};

template <class Format, bool kByWord = false>
struct Int8Avx2Pairs : Int8Ymm<Format, kByWord> {
  using Base = Int8Ymm<Format, kByWord>;
  using typename Base::Of, typename Base::Raw, typename Base::Sum, typename Base::Weight, typename Base::X;
  static constexpr int kStep = 2;

  static Sum dot(Sum sum, Weight weight, const X* x) {
    return in_order(sum + (Sum)_mm256_madd_epi16(weight, _mm256_set1_epi32(static_cast<int>(*x))));
  }
  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    return int8_pairs_of_x<Format>(codes, steps, memory);
  }

  // Of a word of bytes the even ones are k = 0,2 and the odd ones k = 1,3.
  static Weight decode(const Raw& raw, int pair) {
    if constexpr (Of::kUpper)
      return Of::halves(raw, pair / 4, pair % 4);
    else
      return pair ? _mm256_srli_epi16(Of::word(raw, 0), 8) : _mm256_and_si256(Of::word(raw, 0), _mm256_set1_epi16(255));
  }
};

template <class Format, bool kByWord>
using Int8Avx2 =
    std::conditional_t<Format::kBits <= 4, Int8Avx2Nibbles<Format, kByWord>, Int8Avx2Pairs<Format, kByWord>>;

template <class Format>
void run_int8_avx2(const PackedMm& p) {
  run_vector_mm<Int8Avx2, Format>(p);
}

}  // namespace
