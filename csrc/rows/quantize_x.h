// The quantized x of a matmul: which codes it becomes, and what the quantizers' kernels are told of it.
#pragma once
#include <limits>

#include "mm/packed_mm.h"
#include "rows/quantize_rows.h"

namespace aoq {

struct XCodes {
  Codes codes;
  bool per_tensor = false;                                    // one scale for all rows
  float lb = 0, ub = std::numeric_limits<float>::infinity();  // of the absmax that makes a scale
};

// Of both sides of a matmul.
struct MmCodes {
  XCodes x;
  Codes w;
};

// Rows of x to codes, with fp32 scales and, where x is asymmetric, zero points: [m], or [1] per tensor.
inline QuantizeRows quantize_x(const PackedMm& args, const XCodes& to, uint8_t* qdata, float* scale,
                               float* zero_point) {
  QuantizeRows rows{};
  rows.m = args.m;
  rows.k = args.k;
  rows.source = RowSource::given;
  rows.x = args.x.data;
  rows.x_dtype = args.x.dtype;
  rows.x_stride = args.x.stride;
  rows.codes = to.codes;
  rows.asymmetric = args.x.asymmetric;
  rows.per_tensor = to.per_tensor;
  rows.lb = to.lb;
  rows.ub = to.ub;
  rows.qdata = qdata;
  rows.scale = scale;
  rows.zero_point = zero_point;
  rows.scale_dtype = Dtype::f32;
  return rows;
}

}  // namespace aoq
