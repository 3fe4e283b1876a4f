// The op on any device: run(args, x) calls its kernel.
#pragma once
#include "rows/quantize_rows_entry.h"

namespace aoq {

template <void (*run)(const QuantizeRows&, const Tensor&)>
std::tuple<Tensor, Tensor, Tensor> int8_quantize(const Tensor& x, const std::string& mapping,
                                                 std::optional<ScalarType> scale_dtype) {
  QuantizeRowsCall call("int8_quantize", x, "x");
  call.set_codes(Codes::int8, is_asymmetric(mapping, Codes::int8, "int8_quantize"),
                 scale_dtype.value_or(ScalarType::Float));
  if (call.args.m) run(call.args, x);
  return {call.qdata, call.scale, call.zero_point};
}

}  // namespace aoq
