#include "int4_mm/int4_mm.h"

#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "core/check.h"
#include "core/int4.h"
#include "core/kernel.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(isa, function) {Isa::isa, #function, function},
constexpr Kernel<Int4MmKernel> kKernels[] = {
#include "int4_mm/kernels.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_op("int4_mm", kKernels);

Tensor int4_mm(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero_point,
               const std::optional<Tensor>& bias, int64_t n, int64_t group_size) {
  constexpr const char* op = "int4_mm";
  PackedMm args{};
  check_value(x.dim() >= 1, op, "x", "expected shape [..., k], got a scalar");
  check_value(n > 0, op, "n", "expected at least 1 row of w, got ", n);
  args.n = n;
  args.k = x.size(x.dim() - 1);
  args.group = group_size;
  check_value(args.k > 0, op, "x", "expected k > 0 in shape [..., k], got ", shape(x));
  check_group(group_size, args.k, op);
  args.x_dtype = float_dtype(x.scalar_type(), op, "x");
  args.scale_dtype = float_dtype(scale.scalar_type(), op, "scale");
  check_uint8(packed, op, "packed");
  const int64_t blocks = ceil_div(n, kUnitN), groups = ceil_div(args.k, group_size);
  check_shape(packed, {blocks, ceil_div(args.k, int4::kUnitK), kUnitBytes}, op, "packed");
  check_shape(scale, {blocks, groups, kUnitN}, op, "scale");
  check_cpu(packed, op, "packed");
  check_cpu(scale, op, "scale");
  const Tensor packed_ = packed.is_contiguous() ? packed : torch::stable::contiguous(packed);
  const Tensor scale_ = scale.is_contiguous() ? scale : torch::stable::contiguous(scale);
  args.packed = static_cast<const uint8_t*>(packed_.const_data_ptr());
  args.scale = scale_.const_data_ptr();

  Tensor zero_, bias_;
  if (zero_point) {
    check_type(zero_point->scalar_type() == scale.scalar_type(), op, "zero_point", "expected scale's dtype ",
               dtype_name(scale.scalar_type()), ", got ", dtype_name(zero_point->scalar_type()));
    check_shape(*zero_point, {blocks, groups, kUnitN}, op, "zero_point");
    check_cpu(*zero_point, op, "zero_point");
    zero_ = zero_point->is_contiguous() ? *zero_point : torch::stable::contiguous(*zero_point);
    args.zero_point = zero_.const_data_ptr();
  }
  if (bias) {
    args.bias_dtype = float_dtype(bias->scalar_type(), op, "bias");
    check_shape(*bias, {n}, op, "bias");
    check_cpu(*bias, op, "bias");
    bias_ = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
    args.bias = bias_.const_data_ptr();
  }

  std::vector<int64_t> out_shape(x.sizes().begin(), x.sizes().end());
  out_shape.back() = n;
  Tensor out = torch::stable::new_empty(x, out_shape);
  args.m = x.numel() / args.k;
  if (args.m == 0) return out;

  // A 2-d x may have any row stride; every other x that is not contiguous is copied once.
  const bool rows_only = x.dim() == 2 && x.stride(1) == 1;
  const Tensor x_ = rows_only || x.is_contiguous() ? x : torch::stable::contiguous(x);
  args.x = x_.const_data_ptr();
  args.x_stride = rows_only ? x.stride(0) : args.k;
  args.out = out.mutable_data_ptr();
  select(kKernels)(args);
  return out;
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "int4_mm(Tensor x, Tensor packed, Tensor scale, Tensor? zero_point, Tensor? bias, int n, int group_size) -> "
      "Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("int4_mm", TORCH_BOX(&aoq::int4_mm)); }
