// The op on any device: run(args, x) calls its kernel.
#pragma once
#include "rows/quantize_rows_entry.h"

namespace aoq {

template <void (*run)(const QuantizeRows&, const Tensor&)>
std::tuple<Tensor, Tensor, Tensor, Tensor> silu_mul_quantize(const Tensor& gate, const Tensor& up, ScalarType dtype,
                                                             const std::string& mapping, int64_t sum_group,
                                                             bool permute) {
  constexpr const char* op = "silu_mul_quantize";
  QuantizeRowsCall call(op, gate, "gate");
  call.args.source = RowSource::silu_mul;
  call.set_other(up, "up");
  const Codes codes = codes_of(dtype, true, op);
  call.set_layout(sum_group, permute);
  call.set_codes(codes, is_asymmetric(mapping, codes, op), ScalarType::Float);
  if (call.args.m) run(call.args, gate);
  return {call.qdata, call.scale, call.zero_point, call.group_sum};
}

}  // namespace aoq
