#include "int8_quantize/int8_quantize.h"

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "core/check.h"
#include "core/int8.h"
#include "core/kernel.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Int8QuantizeKernel> kKernels[] = {
#include "int8_quantize/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int8_quantize", kKernels);

std::tuple<Tensor, Tensor, Tensor> int8_quantize(const Tensor& x, const std::string& mapping,
                                                 std::optional<ScalarType> scale_dtype) {
  constexpr const char* op = "int8_quantize";
  Int8Quantize args{};
  args.x_dtype = float_dtype(x.scalar_type(), op, "x");
  check_value(x.dim() >= 1, op, "x", "expected shape [..., k], got a scalar");
  args.k = x.size(x.dim() - 1);
  check_value(args.k > 0, op, "x", "expected k > 0 in shape [..., k], got ", shape(x));
  check_value(mapping == "symmetric" || mapping == "asymmetric", op, "mapping",
              "expected symmetric or asymmetric, got ", mapping);
  args.asymmetric = mapping == "asymmetric";
  const ScalarType stored = scale_dtype.value_or(ScalarType::Float);
  args.scale_dtype = float_dtype(stored, op, "scale_dtype");
  args.m = x.numel() / args.k;

  std::vector<int64_t> rows(x.sizes().begin(), x.sizes().end() - 1), no_rows = rows;
  no_rows.push_back(0);
  rows.push_back(1);
  Tensor qdata = torch::stable::new_empty(x, x.sizes(), ScalarType::Char);
  Tensor scale = torch::stable::new_empty(x, rows, stored);
  Tensor zero_point = torch::stable::new_empty(x, args.asymmetric ? rows : no_rows, stored);
  if (args.m == 0) return {qdata, scale, zero_point};

  const bool rows_only = x.dim() == 2 && x.stride(1) == 1;
  const Tensor x_ = rows_only || x.is_contiguous() ? x : torch::stable::contiguous(x);
  args.x = x_.const_data_ptr();
  args.x_stride = rows_only ? x.stride(0) : args.k;
  args.qdata = static_cast<int8_t*>(qdata.mutable_data_ptr());
  args.scale = scale.mutable_data_ptr();
  args.zero_point = zero_point.mutable_data_ptr();
  select(kKernels)(args);
  return {qdata, scale, zero_point};
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "int8_quantize(Tensor x, str mapping=\"symmetric\", ScalarType? scale_dtype=None) -> "
      "(Tensor qdata, Tensor scale, Tensor zero_point)");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int8_quantize", TORCH_BOX(&aoq::int8_quantize)); }
