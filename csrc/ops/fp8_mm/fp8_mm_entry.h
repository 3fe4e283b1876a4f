// fp8_mm's options, checked, on any device.
#pragma once
#include <optional>

#include "rows/quantize_rows_entry.h"
#include "rows/quantize_x.h"

namespace aoq {

inline MmCodes fp8_codes(std::optional<ScalarType> w_dtype, std::optional<ScalarType> x_dtype,
                         const std::string& granularity, std::optional<double> lb, std::optional<double> ub) {
  constexpr const char* op = "fp8_mm";
  constexpr auto by_default = ScalarType::Float8_e4m3fn;
  const Codes w = codes_of(w_dtype.value_or(by_default), false, op, "w_dtype");
  check_value(granularity == "row" || granularity == "tensor", op, "granularity", "expected row or tensor, got ",
              granularity);
  const Codes x = codes_of(x_dtype.value_or(by_default), false, op, "x_dtype");
  const Bounds bounds = checked_bounds(lb, ub, op);
  return {{x, granularity == "tensor", bounds.lb, bounds.ub}, w};
}

}  // namespace aoq
