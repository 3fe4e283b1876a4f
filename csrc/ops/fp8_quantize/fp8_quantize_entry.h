// The op on any device: run(args, x) calls its kernel.
#pragma once
#include "rows/quantize_rows_entry.h"

namespace aoq {

template <void (*run)(const QuantizeRows&, const Tensor&)>
std::tuple<Tensor, Tensor> fp8_quantize(const Tensor& x, const std::string& granularity,
                                        std::optional<ScalarType> dtype, std::optional<double> lb,
                                        std::optional<double> ub) {
  constexpr const char* op = "fp8_quantize";
  QuantizeRowsCall call(op, x, "x");
  check_value(granularity == "row" || granularity == "tensor", op, "granularity", "expected row or tensor, got ",
              granularity);
  const Bounds bounds = checked_bounds(lb, ub, op);
  call.args.lb = bounds.lb;
  call.args.ub = bounds.ub;
  const bool per_tensor = granularity == "tensor";
  check_value(!per_tensor || call.args.m, op, "x", "expected at least one row for a scale of all, got ", shape(x));
  call.set_codes(codes_of(dtype.value_or(ScalarType::Float8_e4m3fn), false, op), false, ScalarType::Float, per_tensor);
  if (call.args.m) run(call.args, x);
  return {call.qdata, call.scale};
}

}  // namespace aoq
