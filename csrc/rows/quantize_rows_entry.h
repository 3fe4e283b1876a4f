// What the entries of the *_quantize ops with 8-bit codes have in common, on every device: checks, strides, outputs.
#pragma once
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "base/tensors.h"
#include "formats/packed.h"
#include "rows/quantize_rows.h"

namespace aoq {

// The codes that `dtype` names.
inline Codes codes_of(ScalarType dtype, bool with_int8, const char* op, const char* name = "dtype") {
  if (dtype == ScalarType::Float8_e4m3fn) return Codes::e4m3;
  if (dtype == ScalarType::Float8_e5m2) return Codes::e5m2;
  check_type(with_int8 && dtype == ScalarType::Char, op, name, "expected ", with_int8 ? "int8, " : "",
             "float8_e4m3fn or float8_e5m2, got ", dtype_name(dtype));
  return Codes::int8;
}

inline bool is_asymmetric(const std::string& mapping, Codes codes, const char* op) {
  check_value(mapping == "symmetric" || mapping == "asymmetric", op, "mapping",
              "expected symmetric or asymmetric, got ", mapping);
  check_value(mapping == "symmetric" || codes == Codes::int8, op, "mapping", "expected symmetric for fp8 codes, got ",
              mapping);
  return mapping == "asymmetric";
}

// Of the absmax that makes a scale of fp8.
struct Bounds {
  float lb, ub;
};
// Compared as they are given: two that differ may be one float.
inline Bounds checked_bounds(std::optional<double> lb, std::optional<double> ub, const char* op) {
  const double low = lb.value_or(0), high = ub.value_or(std::numeric_limits<double>::infinity());
  check_value(low >= 0 && high >= low, op, "lb", "expected 0 <= lb <= ub, got lb ", low, " and ub ", high);
  return {static_cast<float>(low), static_cast<float>(high)};
}

// Fills in what every op has and owns what the kernel reads and writes.
class QuantizeRowsCall {
 public:
  QuantizeRowsCall(const char* op, const Tensor& x, const char* name) : op_(op), x_(x) {
    check_tensor(x, op, name);
    args.x_dtype = float_dtype(dtype_of(x), op, name);
    check_value(x.dim() >= 1, op, name, "expected shape [..., k], got a scalar");
    args.k = x.size(x.dim() - 1);
    check_value(args.k > 0, op, name, "expected k > 0 in shape [..., k], got ", shape(x));
    check_size(x, op, name);
    args.m = x.numel() / args.k;
    // Blocks of a grid on CUDA.
    check_value(!x.is_cuda() || args.m < int64_t{1} << 31, op, name, "expected fewer than 2^31 rows, got ", args.m);
    kept_x_ = as_rows(x, args.x_stride);
    args.x = kept_x_.const_data_ptr();
    args.lb = 0;
    args.ub = std::numeric_limits<float>::infinity();
  }

  // residual or up: a tensor like x.
  void set_other(const Tensor& other, const char* name) {
    check_tensor(other, op_, name);
    check_type(dtype_of(other) == dtype_of(x_), op_, name, "expected the first operand's dtype ",
               dtype_name(dtype_of(x_)), ", got ", dtype_name(dtype_of(other)));
    bool same = other.dim() == x_.dim();
    for (int64_t i = 0; same && i < x_.dim(); ++i) same = other.size(i) == x_.size(i);
    check_value(same, op_, name, "expected the first operand's shape ", shape(x_), ", got ", shape(other));
    check_same_device(other, x_, op_, name);
    kept_other_ = as_rows(other, args.other_stride);
    args.other = kept_other_.const_data_ptr();
  }

  void set_weight(const Tensor& weight) {
    check_tensor(weight, op_, "weight");
    args.weight_dtype = float_dtype(dtype_of(weight), op_, "weight");
    check_shape(weight, {args.k}, op_, "weight");
    check_same_device(weight, x_, op_, "weight");
    kept_weight_ = as_contiguous(weight);
    args.weight = kept_weight_.const_data_ptr();
  }

  void set_codes(Codes codes, bool asymmetric, ScalarType scale_dtype, bool per_tensor = false) {
    args.codes = codes;
    args.asymmetric = asymmetric;
    args.per_tensor = per_tensor;
    args.scale_dtype = float_dtype(scale_dtype, op_, "scale_dtype");
    qdata = new_tensor(x_, shape_with(args.permute ? ceil_div(args.k, 16) * 16 : args.k),
                       codes == Codes::int8   ? ScalarType::Char
                       : codes == Codes::e4m3 ? ScalarType::Float8_e4m3fn
                                              : ScalarType::Float8_e5m2);
    scale = per_tensor ? new_tensor(x_, {}, scale_dtype) : new_tensor(x_, shape_with(1), scale_dtype);
    zero_point = new_tensor(x_, shape_with(asymmetric ? 1 : 0), scale_dtype);
    args.qdata = static_cast<uint8_t*>(qdata.mutable_data_ptr());
    args.scale = scale.mutable_data_ptr();
    args.zero_point = zero_point.mutable_data_ptr();
    if (per_tensor && x_.is_cuda()) {
      workspace_ = new_tensor(x_, {kPartialRanges}, ScalarType::Float);
      args.workspace = static_cast<float*>(workspace_.mutable_data_ptr());
    }
  }

  // sum_group 0: no sums.
  void set_layout(int64_t sum_group, bool permute) {
    check_value(sum_group >= 0, op_, "sum_group", "expected 0 (no sums) or more, got ", sum_group);
    args.permute = permute;
    args.sum_group = sum_group < args.k ? sum_group : args.k;
    group_sum = new_tensor(x_, shape_with(sum_group ? ceil_div(args.k, args.sum_group) : 0), ScalarType::Float);
    args.group_sum = sum_group ? static_cast<float*>(group_sum.mutable_data_ptr()) : nullptr;
  }

  void set_residual_out(bool wanted) {
    residual_out = new_tensor(x_, shape_with(wanted ? args.k : 0));
    args.residual_out = residual_out.mutable_data_ptr();
  }

  QuantizeRows args{};
  Tensor qdata, scale, zero_point, group_sum, residual_out;

 private:
  std::vector<int64_t> shape_with(int64_t last) const {
    std::vector<int64_t> sizes(x_.sizes().begin(), x_.sizes().end());
    sizes.back() = last;
    return sizes;
  }

  const char* op_;
  const Tensor& x_;
  Tensor kept_x_, kept_other_, kept_weight_, workspace_;
};

}  // namespace aoq
