// What the entries of all matmuls with packed weights have in common: checks, strides, the output.
#pragma once
#include <optional>
#include <vector>

#include "base/tensors.h"
#include "mm/packed_mm.h"

namespace aoq {

struct PackedOperands {
  const Tensor &x, &packed, &scale;
  const std::optional<Tensor>&zero_point, &w_sum, &bias;
};

// Calls `kernel()` for the kernel to run, unless x has no rows. No `group`: a scale is for all of k; `unit_k` is a
// unit's columns, `unit_bytes` its bytes; `unit_k` 0 means rows of bytes, as int8_pack makes them on CUDA.
template <class Select>
Tensor packed_mm(const char* op, const PackedOperands& t, int64_t n, std::optional<int64_t> group, int64_t unit_k,
                 Select kernel, int64_t unit_bytes = kUnitBytes) {
  PackedMm args{};
  const Tensor& x = t.x;
  check_tensor(x, op, "x");
  check_tensor(t.packed, op, "packed");
  check_tensor(t.scale, op, "scale");
  check_value(x.dim() >= 1, op, "x", "expected shape [..., k], got a scalar");
  check_value(n > 0, op, "n", "expected at least 1 row of w, got ", n);
  check_size(n, op, "n");
  args.n = n;
  args.k = x.size(x.dim() - 1);
  check_value(args.k > 0, op, "x", "expected k > 0 in shape [..., k], got ", shape(x));
  check_size(x, op, "x");
  args.group = group ? checked_group(*group, args.k, op) : args.k;
  args.x.dtype = float_dtype(dtype_of(x), op, "x");
  args.w.scales.dtype = float_dtype(dtype_of(t.scale), op, "scale");
  const int64_t blocks = ceil_div(n, kUnitN), groups = ceil_div(args.k, args.group);
  if (unit_k) {
    check_uint8(t.packed, op, "packed");
    check_shape(t.packed, {blocks, ceil_div(args.k, unit_k), unit_bytes}, op, "packed");
  } else {
    check_type(dtype_of(t.packed) == ScalarType::Char, op, "packed", "expected int8, got ",
               dtype_name(dtype_of(t.packed)));
    check_shape(t.packed, {blocks, kUnitN, ceil_div(args.k, 16) * 16}, op, "packed");
  }
  check_size(t.packed, op, "packed");  // of what else has n, k or both there is less
  check_shape(t.scale, {blocks, groups, kUnitN}, op, "scale");
  check_same_device(t.packed, x, op, "packed");
  check_same_device(t.scale, x, op, "scale");
  const Tensor packed = as_contiguous(t.packed), scale = as_contiguous(t.scale);
  args.w.stream = static_cast<const uint8_t*>(packed.const_data_ptr());
  args.w.scales.scale = scale.const_data_ptr();

  Tensor zero_point, w_sum, bias;  // keep the copies that contiguous may make
  if (t.zero_point) {
    check_type(dtype_of(*t.zero_point) == dtype_of(t.scale), op, "zero_point", "expected scale's dtype ",
               dtype_name(dtype_of(t.scale)), ", got ", dtype_name(dtype_of(*t.zero_point)));
    check_shape(*t.zero_point, {blocks, groups, kUnitN}, op, "zero_point");
    check_same_device(*t.zero_point, x, op, "zero_point");
    zero_point = as_contiguous(*t.zero_point);
    args.w.scales.zero_point = zero_point.const_data_ptr();
  }
  if (t.w_sum) {
    check_type(dtype_of(*t.w_sum) == ScalarType::Float, op, "w_sum", "expected float32, got ",
               dtype_name(dtype_of(*t.w_sum)));
    check_shape(*t.w_sum, {n}, op, "w_sum");
    check_same_device(*t.w_sum, x, op, "w_sum");
    w_sum = as_contiguous(*t.w_sum);
    args.w.sum = static_cast<const float*>(w_sum.const_data_ptr());
    args.x.asymmetric = true;
  }
  if (t.bias) {
    args.out.bias_dtype = float_dtype(dtype_of(*t.bias), op, "bias");
    check_shape(*t.bias, {n}, op, "bias");
    check_same_device(*t.bias, x, op, "bias");
    bias = as_contiguous(*t.bias);
    args.out.bias = bias.const_data_ptr();
  }

  std::vector<int64_t> out_shape(x.sizes().begin(), x.sizes().end());
  out_shape.back() = n;
  Tensor out = new_tensor(x, out_shape);
  args.m = x.numel() / args.k;
  if (args.m == 0) return out;

  // A 2-d x may have any row stride; every other x that is not contiguous is copied once.
  const Tensor x_ = as_rows(x, args.x.stride);
  args.x.data = x_.const_data_ptr();
  args.out.data = out.mutable_data_ptr();
  args.out.dtype = args.x.dtype;
  kernel()(args);
  return out;
}

}  // namespace aoq
