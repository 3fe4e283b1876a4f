// A row of floats to int8, as weights and activations are: the one quantizer of every int8 op. The vec_*.h included
// before this file gives the vector types; every ISA gives the same bits.
#pragma once
#include "formats/int8_code.h"

namespace {

// A row as it lies in memory. What is quantized is any such function of i: the values i .. i + 15, zeros from k on.
struct GivenRow {
  const void* x;
  aoq::Dtype dtype;
  int64_t k;
  F32x16 operator()(int64_t i) const { return load16_part(x, dtype, i, k); }
};

template <class Row>
inline ValueRange row_range(const Row& row, int64_t k) {
  ValueRangeScan scan;
  for (int64_t i = 0; i < k; i += 16) scan.add(row(i));
  return scan.result();
}

// codes has room for k rounded up to 16.
template <class Row>
inline RowScale quantize_row(const Row& values, int64_t k, bool asymmetric, aoq::Dtype scale_dtype, int8_t* codes) {
  const ValueRange range = row_range(values, k);
  RowScale row = int8_scale(range, asymmetric, scale_dtype);
  for (int64_t i = 0; i < k; i += 16) store16_i8(codes + i, int8_code(values(i), row));
  row.scale = stored_scale(row.scale, range);
  return row;
}

inline RowScale quantize_row(const void* x, aoq::Dtype dtype, int64_t k, bool asymmetric, aoq::Dtype scale_dtype,
                             int8_t* codes) {
  return quantize_row(GivenRow{x, dtype, k}, k, asymmetric, scale_dtype, codes);
}

}  // namespace
