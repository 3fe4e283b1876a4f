// The op on any device: run(args, x) calls its kernel.
#pragma once
#include "rows/quantize_rows_entry.h"

namespace aoq {

template <void (*run)(const QuantizeRows&, const Tensor&)>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rmsnorm_quantize(const Tensor& x, const Tensor& weight,
                                                                    const std::optional<Tensor>& residual, double eps,
                                                                    ScalarType dtype, const std::string& mapping,
                                                                    int64_t sum_group, bool permute) {
  constexpr const char* op = "rmsnorm_quantize";
  QuantizeRowsCall call(op, x, "x");
  call.args.source = RowSource::rmsnorm;
  call.set_weight(weight);
  if (residual) call.set_other(*residual, "residual");
  check_value(eps >= 0, op, "eps", "expected 0 or more, got ", eps);
  call.args.eps = static_cast<float>(eps);
  const Codes codes = codes_of(dtype, true, op);
  call.set_layout(sum_group, permute);
  call.set_codes(codes, is_asymmetric(mapping, codes, op), ScalarType::Float);
  call.set_residual_out(residual.has_value());
  if (call.args.m) run(call.args, x);
  return {call.qdata, call.scale, call.zero_point, call.group_sum, call.residual_out};
}

}  // namespace aoq
