// Row by row; the vec_*.h included before this file gives the vector types.
#pragma once
#include "core/packed.h"
#include "core/parallel.h"
#include "core/quantize_row.h"
#include "int8_quantize/int8_quantize.h"

namespace {

inline void quantize(const aoq::Int8Quantize& p) {
  auto rows = [&](int64_t begin, int64_t end) {
    const Scratch<int8_t> codes(p.k + 16);
    for (int64_t row = begin; row < end; ++row) {
      const char* x = static_cast<const char*>(p.x) + row * p.x_stride * size_of(p.x_dtype);
      const RowScale scale = quantize_row(x, p.x_dtype, p.k, p.asymmetric, p.scale_dtype, codes.get());
      std::memcpy(p.qdata + row * p.k, codes.get(), static_cast<size_t>(p.k));
      store_float(p.scale, p.scale_dtype, row, scale.scale);
      if (p.asymmetric) store_float(p.zero_point, p.scale_dtype, row, scale.zero_point);
    }
  };
  parallel(p.m, 1 + 32768 / p.k, rows);
}

}  // namespace
