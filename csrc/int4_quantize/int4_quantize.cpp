#include "int4_quantize/int4_quantize.h"

#include <optional>
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "core/check.h"
#include "core/int4.h"
#include "core/kernel.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Int4QuantizeKernel> kKernels[] = {
#include "int4_quantize/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int4_quantize", kKernels);

Int4Mapping parse_mapping(const std::string& mapping, const char* op) {
  if (mapping == "symmetric") return Int4Mapping::symmetric;
  if (mapping == "asymmetric") return Int4Mapping::asymmetric;
  check_value(mapping == "hqq", op, "mapping", "expected symmetric, asymmetric or hqq, got ", mapping);
  return Int4Mapping::hqq;
}

std::tuple<Tensor, Tensor, Tensor> int4_quantize(const Tensor& w, int64_t group_size, const std::string& mapping,
                                                 std::optional<ScalarType> scale_dtype) {
  constexpr const char* op = "int4_quantize";
  Int4Quantize args{};
  args.w_dtype = float_dtype(w.scalar_type(), op, "w");
  check_value(w.dim() == 2 && w.size(1) > 0, op, "w", "expected shape [n, k] with k > 0, got ", shape(w));
  args.n = w.size(0);
  args.k = w.size(1);
  args.group = group_size;
  check_group(group_size, args.k, op);
  args.mapping = parse_mapping(mapping, op);
  const ScalarType stored = scale_dtype.value_or(w.scalar_type());
  args.scale_dtype = float_dtype(stored, op, "scale_dtype");

  const int64_t groups = ceil_div(args.k, group_size);
  const bool has_zero_point = args.mapping != Int4Mapping::symmetric;
  Tensor qdata = torch::stable::new_empty(w, {args.n, ceil_div(args.k, 2)}, ScalarType::Byte);
  Tensor scale = torch::stable::new_empty(w, {args.n, groups}, stored);
  Tensor zero_point = torch::stable::new_empty(w, {args.n, has_zero_point ? groups : 0}, stored);
  if (args.n == 0) return {qdata, scale, zero_point};

  const Tensor w_ = w.stride(1) == 1 ? w : torch::stable::contiguous(w);
  args.w = w_.const_data_ptr();
  args.w_stride = w_.stride(0);
  args.qdata = static_cast<uint8_t*>(qdata.mutable_data_ptr());
  args.scale = scale.mutable_data_ptr();
  args.zero_point = zero_point.mutable_data_ptr();
  int64_t bad_row = -1;
  args.bad_row = &bad_row;
  select(kKernels)(args);
  check_value(bad_row < 0, op, "w", "expected finite values, got NaN or infinity in row ", bad_row);
  return {qdata, scale, zero_point};
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "int4_quantize(Tensor w, int group_size, str mapping=\"asymmetric\", ScalarType? scale_dtype=None) -> "
      "(Tensor qdata, Tensor scale, Tensor zero_point)");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int4_quantize", TORCH_BOX(&aoq::int4_quantize)); }
