// The truth, and what runs anywhere: decode sixteen rows of w to float, then multiply.
#include "core/int4.h"
#include "core/parallel.h"
#include "int4_mm/int4_mm.h"

namespace aoq {

void int4_mm_ref(const PackedMm& p) {
  const int64_t units = ceil_div(p.k, int4::kUnitK), groups = ceil_div(p.k, p.group);
  auto blocks = [&](int64_t begin, int64_t end) {
    Scratch<float> weights(p.k * kUnitN);  // [k][16]
    for (int64_t block = begin; block < end; ++block) {
      for (int64_t k = 0; k < p.k; ++k) {
        const uint8_t* unit = p.packed + (block * units + k / int4::kUnitK) * kUnitBytes;
        for (int64_t i = 0; i < kUnitN; ++i) {
          uint32_t lane;
          std::memcpy(&lane, unit + 4 * i, 4);
          const float code = static_cast<float>(lane >> int4::lane_shift(static_cast<int>(k % int4::kUnitK)) & 15);
          const int64_t at = (block * groups + k / p.group) * kUnitN + i;
          const float zero = p.zero_point ? load_float(p.zero_point, p.scale_dtype, at) : int4::kMidCode;
          weights.get()[k * kUnitN + i] = (code - zero) * load_float(p.scale, p.scale_dtype, at);
        }
      }
      const int64_t first = block * kUnitN, count = p.n - first < kUnitN ? p.n - first : kUnitN;
      for (int64_t m = 0; m < p.m; ++m) {
        float sum[kUnitN] = {};
        for (int64_t k = 0; k < p.k; ++k) {
          const float x = load_float(p.x, p.x_dtype, m * p.x_stride + k);
          for (int64_t i = 0; i < kUnitN; ++i) sum[i] += x * weights.get()[k * kUnitN + i];
        }
        for (int64_t i = 0; i < count; ++i) {
          const float bias = p.bias ? load_float(p.bias, p.bias_dtype, first + i) : 0;
          store_float(p.out, p.x_dtype, m * p.n + first + i, sum[i] + bias);
        }
      }
    }
  };
  parallel(ceil_div(p.n, kUnitN), 1, blocks);
}

}  // namespace aoq
