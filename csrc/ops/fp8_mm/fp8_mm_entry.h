// fp8_mm's options, checked, on any device.
#pragma once
#include <limits>
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
  const XCodes x{codes_of(x_dtype.value_or(by_default), false, op, "x_dtype"), granularity == "tensor",
                 static_cast<float>(lb.value_or(0)),
                 static_cast<float>(ub.value_or(std::numeric_limits<double>::infinity()))};
  check_value(x.lb >= 0 && x.ub >= x.lb, op, "lb", "expected 0 <= lb <= ub, got lb ", x.lb, " and ub ", x.ub);
  return {x, w};
}

}  // namespace aoq
