// rows/quantize_rows.h on vectors, row by row; the vec_*.h included before this file gives the vector types.
#pragma once
#include "base/parallel.h"
#include "formats/packed.h"
#include "rows/fp8_row.h"
#include "rows/quantize_row.h"
#include "rows/quantize_rows.h"
#include "rows/row_math.h"

namespace {

using aoq::QuantizeRows;

inline const void* row_of(const void* data, aoq::Dtype dtype, int64_t row, int64_t stride) {
  return static_cast<const char*>(data) + row * stride * size_of(dtype);
}

// ---- where a row comes from: an object a thread, whose load(row) gives what quantize_row takes

class GivenSource {
 public:
  explicit GivenSource(const QuantizeRows& p) : p_(p) {}
  GivenRow load(int64_t row) const { return {row_of(p_.x, p_.x_dtype, row, p_.x_stride), p_.x_dtype, p_.k}; }

 private:
  const QuantizeRows& p_;
};

// Computed values, kept for as long as the row is quantized.
struct ComputedRow {
  const float* values;
  F32x16 operator()(int64_t i) const { return load16(values + i); }
};

class SiluMulSource {
 public:
  explicit SiluMulSource(const QuantizeRows& p) : p_(p), values_(p.k + 16) {}
  ComputedRow load(int64_t row) const {
    const GivenRow gate{row_of(p_.x, p_.x_dtype, row, p_.x_stride), p_.x_dtype, p_.k};
    const GivenRow up{row_of(p_.other, p_.x_dtype, row, p_.other_stride), p_.x_dtype, p_.k};
    for (int64_t i = 0; i < p_.k; i += 16) store16(values_.get() + i, silu_mul(gate(i), up(i)));
    return {values_.get()};
  }

 private:
  const QuantizeRows& p_;
  Scratch<float> values_;
};

class RmsnormSource {
 public:
  explicit RmsnormSource(const QuantizeRows& p) : p_(p), values_(p.k + 16), sums_(aoq::kPartialSums) {}
  ComputedRow load(int64_t row) const {
    float* const h = values_.get();
    const GivenRow x{row_of(p_.x, p_.x_dtype, row, p_.x_stride), p_.x_dtype, p_.k};
    const GivenRow residual{row_of(p_.other, p_.x_dtype, row, p_.other_stride), p_.x_dtype, p_.k};
    for (int64_t i = 0; i < p_.k; i += 16) store16(h + i, x(i));
    if (p_.other) {
      const GivenRow sum{row_of(p_.residual_out, p_.x_dtype, row, p_.k), p_.x_dtype, p_.k};
      for (int64_t i = 0; i < p_.k; i += 16) {
        store16_part(p_.residual_out, p_.x_dtype, row * p_.k + i, load16(h + i) + residual(i), p_.k - i);
        store16(h + i, sum(i));
      }
    }
    const F32x16 factor = splat(rms_factor(sum_of_squares(), p_.k, p_.eps));
    const GivenRow weight{p_.weight, p_.weight_dtype, p_.k};
    for (int64_t i = 0; i < p_.k; i += 16) store16(h + i, load16(h + i) * factor * weight(i));
    return {h};
  }

 private:
  // In the order that quantize_rows.h says.
  float sum_of_squares() const {
    float* const sums = sums_.get();
    std::memset(sums, 0, aoq::kPartialSums * sizeof(float));
    for (int64_t i = 0; i < p_.k; i += 16) {
      const F32x16 value = load16(values_.get() + i);
      float* at = sums + i % aoq::kPartialSums;
      store16(at, load16(at) + value * value);
    }
    float warps[aoq::kSumThreads / 32];
    for (int64_t warp = 0; warp < aoq::kSumThreads / 32; ++warp) {
      F32x16 halves[2];
      for (int64_t half = 0; half < 2; ++half) {
        F32x16 part[aoq::kSumsOfThread];
        const float* first = sums + (warp * 32 + half * 16) * aoq::kSumsOfThread;
        for (int e = 0; e < aoq::kSumsOfThread; ++e)
          part[e] = from_bits(gather16(reinterpret_cast<const uint8_t*>(first + e), aoq::kSumsOfThread * 4));
        halves[half] = ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
      }
      float lanes[16];
      store16(lanes, halves[0] + halves[1]);
      warps[warp] = fold<16>(lanes);
    }
    return fold<aoq::kSumThreads / 32>(warps);
  }

  // Adds the upper half to the lower one, until one is left.
  template <int kCount>
  static float fold(float* sums) {
    for (int count = kCount / 2; count > 0; count /= 2)
      for (int i = 0; i < count; ++i) sums[i] += sums[i + count];
    return sums[0];
  }

  const QuantizeRows& p_;
  Scratch<float> values_, sums_;
};

// ---- what codes a row gets

struct Int8Codes {
  static constexpr bool kPerTensor = false;
  template <class Row>
  static RowScale quantize(const QuantizeRows& p, const Row& row, const float*, int8_t* codes) {
    return quantize_row(row, p.k, p.asymmetric, p.scale_dtype, codes);
  }
  static float value(int8_t code) { return code; }
};

template <class Format>
struct Fp8Codes {
  static constexpr bool kPerTensor = true;

  template <class Row>
  static RowScale quantize(const QuantizeRows& p, const Row& row, const float* tensor_scale, int8_t* codes) {
    auto store = [=](int64_t i, F32x16 value) { store16_i8(codes + i, fp8_code<Format>(value)); };
    return {fp8_row<Format>(row, p.k, p.lb, p.ub, tensor_scale, store), 0};
  }
  static float scale(const QuantizeRows& p, ValueRange range) { return fp8_scale<Format>(range, p.lb, p.ub); }
  static float value(int8_t code) { return fp8_to_float<Format>(static_cast<uint8_t>(code)); }
};

// ---- all rows

template <class Codes>
inline void store_row(const QuantizeRows& p, int64_t row, const int8_t* codes, RowScale scale) {
  uint8_t* const out = p.qdata + row * (p.permute ? aoq::ceil_div(p.k, 16) * 16 : p.k);
  if (p.permute)
    for (int64_t i = 0; i < p.k; i += 16)
      for (int at = 0; at < 16; ++at) {
        const int64_t k = i + aoq::quantized_k(at);
        out[i + at] = k < p.k ? static_cast<uint8_t>(codes[k]) : 0;
      }
  else
    std::memcpy(out, codes, static_cast<size_t>(p.k));
  if (p.group_sum) {
    float* sums = p.group_sum + row * aoq::ceil_div(p.k, p.sum_group);
    for (int64_t begin = 0; begin < p.k; begin += p.sum_group) {
      double sum = 0;  // exact
      for (int64_t k = begin; k < p.k && k < begin + p.sum_group; ++k)
        sum += static_cast<double>(Codes::value(codes[k]));
      *sums++ = static_cast<float>(sum);
    }
  }
  if (!p.per_tensor) store_float(p.scale, p.scale_dtype, row, scale.scale);
  if (p.asymmetric) store_float(p.zero_point, p.scale_dtype, row, scale.zero_point);
}

template <class Source, class Codes>
inline void quantize_rows(const QuantizeRows& p) {
  const int64_t grain = 1 + 32768 / p.k;
  float tensor_scale = 0;
  if constexpr (Codes::kPerTensor)
    if (p.per_tensor) {
      const Scratch<ValueRange> ranges(p.m);
      auto scan = [&](int64_t begin, int64_t end) {
        const Source source(p);
        for (int64_t row = begin; row < end; ++row) ranges.get()[row] = row_range(source.load(row), p.k);
      };
      parallel(p.m, grain, scan);
      ValueRange all = ranges.get()[0];
      for (int64_t row = 1; row < p.m; ++row) {
        const ValueRange range = ranges.get()[row];
        all = {range.low < all.low ? range.low : all.low, range.high > all.high ? range.high : all.high,
               range.finite && all.finite};
      }
      tensor_scale = Codes::scale(p, all);
      store_float(p.scale, p.scale_dtype, 0, tensor_scale);
      if (!p.qdata) return;
    }
  auto rows = [&](int64_t begin, int64_t end) {
    const Source source(p);
    const Scratch<int8_t> codes(p.k + 16);
    for (int64_t row = begin; row < end; ++row) {
      const RowScale scale = Codes::quantize(p, source.load(row), p.per_tensor ? &tensor_scale : nullptr, codes.get());
      store_row<Codes>(p, row, codes.get(), scale);
    }
  };
  parallel(p.m, grain, rows);
}

template <class Source>
inline void quantize_rows_from(const QuantizeRows& p) {
  switch (p.codes) {
    case aoq::Codes::int8: return quantize_rows<Source, Int8Codes>(p);
    case aoq::Codes::e4m3: return quantize_rows<Source, Fp8Codes<E4m3>>(p);
    case aoq::Codes::e5m2: return quantize_rows<Source, Fp8Codes<E5m2>>(p);
  }
}

}  // namespace
