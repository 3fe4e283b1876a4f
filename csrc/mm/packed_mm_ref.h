// The truth, and what runs anywhere: decode sixteen rows of w as the format's contract says, then multiply in fp64.
#pragma once
#include "simd/vec_ref.h"

#include "base/parallel.h"
#include "formats/format.h"
#include "mm/packed_mm_row.h"
#include "rows/quantize_row.h"

namespace {

// kInt8: x is quantized to int8 first.
template <class Format, bool kInt8>
void multiply_ref(const aoq::PackedMm& p) {
  using aoq::ceil_div;
  using aoq::kUnitN;
  using Planes = aoq::Planes<Format::kBits>;
  const int64_t units = ceil_div(p.k, Planes::kUnitK), groups = ceil_div(p.k, p.group);
  const Scratch<double> x(p.m * p.k);  // the integers, where x is quantized
  const Scratch<RowScale> x_scale(p.m);
  auto rows = [&](int64_t begin, int64_t end) {
    const Scratch<int8_t> codes(p.k + kVec);
    const RowsOfX given(p, 1);
    for (int64_t m = begin; m < end; ++m) {
      const void* row = given.load(m, 0);
      x_scale.get()[m] = {1, 0};
      if (kInt8) x_scale.get()[m] = quantize_row(row, p.x.dtype, p.k, p.x.asymmetric, aoq::Dtype::f32, codes.get());
      for (int64_t k = 0; k < p.k; ++k) x.get()[m * p.k + k] = kInt8 ? codes.get()[k] : load_float(row, p.x.dtype, k);
    }
  };
  parallel(p.m, 1 + 16384 / p.k, rows);
  auto blocks = [&](int64_t begin, int64_t end) {
    const Scratch<double> weights(p.k * kUnitN);  // [k][16]
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kUnitN, count = p.n - first < kUnitN ? p.n - first : kUnitN;
      for (int64_t k = 0; k < p.k; ++k) {
        const uint8_t* unit = p.w.stream + (block * units + k / Planes::kUnitK) * Planes::kUnitBytes;
        for (int64_t i = 0; i < kUnitN; ++i) {
          const int64_t at = (block * groups + k / p.group) * kUnitN + i;
          const double zero =
              p.w.scales.zero_point ? load_float(p.w.scales.zero_point, p.w.scales.dtype, at) : Format::kMid;
          const int code = aoq::code_at<Format::kBits>(unit, static_cast<int>(i), static_cast<int>(k % Planes::kUnitK));
          weights.get()[k * kUnitN + i] =
              (Format::value(code) - zero) * load_float(p.w.scales.scale, p.w.scales.dtype, at);
        }
      }
      for (int64_t m = 0; m < p.m; ++m) {
        double sum[kUnitN] = {};
        for (int64_t k = 0; k < p.k; ++k)
          for (int64_t i = 0; i < kUnitN; ++i) sum[i] += x.get()[m * p.k + k] * weights.get()[k * kUnitN + i];
        const RowScale row = x_scale.get()[m];
        for (int64_t i = 0; i < count; ++i) {
          const double shift = row.zero_point != 0 ? row.zero_point * static_cast<double>(p.w.sum[first + i]) : 0;
          const double bias = p.out.bias ? load_float(p.out.bias, p.out.bias_dtype, first + i) : 0;
          const double scale = p.out.row_scale ? p.out.row_scale[m * p.out.row_scale_stride] : row.scale;
          const double value = (sum[i] - shift) * scale + bias;
          store_float(p.out.data, p.out.dtype, m * p.n + first + i, static_cast<float>(value));
        }
      }
    }
  };
  parallel(ceil_div(p.n, kUnitN), 1, blocks);
}

}  // namespace
