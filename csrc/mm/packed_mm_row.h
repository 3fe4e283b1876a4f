// Rows of x as a matmul on packed weights multiplies them. The vec_*.h included before this file gives the vector
// types.
#pragma once
#include "base/parallel.h"
#include "mm/packed_mm.h"
#include "rows/fp8_row.h"

namespace {

class RowsOfX {
 public:
  // count: how many rows are wanted at a time.
  RowsOfX(const aoq::PackedMm& p, int64_t count) : p_(p), values_(p.x.fp8 ? count * p.k : 0) {}

  // Row `row`, of p.x.dtype. Where it is quantized to fp8, what its codes stand for, until `slot` is taken again.
  const void* load(int64_t row, int64_t slot) const {
    if (!p_.x.fp8) return static_cast<const char*>(p_.x.data) + row * p_.x.stride * size_of(p_.x.dtype);
    uint16_t* const values = values_.get() + slot * p_.k;
    p_.x.fp8->e5m2 ? quantize<E5m2>(*p_.x.fp8, row, values) : quantize<E4m3>(*p_.x.fp8, row, values);
    return values;
  }

 private:
  template <class Format>
  void quantize(const aoq::Fp8Rows& from, int64_t row, uint16_t* values) const {
    const GivenRow given{static_cast<const char*>(from.x) + row * from.stride * size_of(from.dtype), from.dtype, p_.k};
    auto store = [&](int64_t i, F32x16 value) {
      store16_part(values, aoq::Dtype::bf16, i, fp8_nearest<Format>(value), p_.k - i);
    };
    const float scale = fp8_row<Format>(given, p_.k, from.lb, from.ub, from.tensor_scale, store);
    if (!from.tensor_scale) from.scale[row] = scale;
  }

  const aoq::PackedMm& p_;
  const Scratch<uint16_t> values_;
};

}  // namespace
