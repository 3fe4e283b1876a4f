// What int8_pack checks, on any device.
#pragma once
#include "base/check.h"
#include "ops/int8_pack/int8_pack.h"

namespace aoq {

inline void check_int8_codes(const Tensor& qdata) {
  constexpr const char* op = "int8_pack";
  check_tensor(qdata, op, "qdata");
  check_type(dtype_of(qdata) == ScalarType::Char, op, "qdata", "expected int8, got ", dtype_name(dtype_of(qdata)));
  check_value(qdata.dim() == 2 && qdata.numel() > 0, op, "qdata", "expected shape [n, k], neither 0, got ",
              shape(qdata));
  check_size(qdata, op, "qdata");
}

}  // namespace aoq
