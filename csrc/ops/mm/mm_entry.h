// What `mm` checks of its operands on any device, and how the CPU takes experts one by one.
#pragma once
#include "mm/packed_mm_entry.h"

namespace aoq::mm_entry {

constexpr const char* kOp = "mm";

struct Weight {
  Tensor packed, scale;
  std::optional<Tensor> zero_point, w_sum;

  explicit Weight(const std::vector<Tensor>& parts) {
    check_value(parts.size() >= 2 && parts.size() <= 4, kOp, "parts",
                "expected packed, scale, zero_point and w_sum, got ", parts.size(), " tensors");
    packed = parts[0];
    scale = parts[1];
    if (parts.size() > 2 && parts[2].numel()) zero_point = parts[2];
    if (parts.size() > 3 && parts[3].numel()) w_sum = parts[3];
  }
  PackedOperands operands(const Tensor& x, const std::optional<Tensor>& bias) const {
    return {x, packed, scale, zero_point, w_sum, bias};
  }
  Weight expert(int64_t index) const {
    const auto of = [&](const Tensor& part) { return torch::stable::select(part, 0, index); };
    Weight one = *this;
    one.packed = of(packed);
    one.scale = of(scale);
    if (zero_point) one.zero_point = of(*zero_point);
    if (w_sum) one.w_sum = of(*w_sum);
    return one;
  }
};

// Checks what a grouped matmul has besides the operands of each expert; how many experts there are.
inline int64_t check_experts(const Tensor& x, const Weight& weight, const std::optional<Tensor>& bias, int64_t n,
                             const Tensor& offsets) {
  check_value(x.dim() == 2, kOp, "x", "expected shape [m, k] with offsets, got ", shape(x));
  check_type(dtype_of(offsets) == ScalarType::Int || dtype_of(offsets) == ScalarType::Long, kOp, "offsets",
             "expected int32 or int64, got ", dtype_name(dtype_of(offsets)));
  check_value(offsets.dim() == 1, kOp, "offsets", "expected shape [experts], got ", shape(offsets));
  check_same_device(offsets, x, kOp, "offsets");
  const int64_t count = offsets.size(0);
  const auto check_part = [&](const Tensor& part, int64_t dims, const char* name) {
    check_value(part.dim() == dims && part.size(0) == count, kOp, name, "expected ", dims,
                " dimensions, the first one of ", count, " experts, got ", shape(part));
  };
  check_part(weight.packed, 4, "packed");
  check_part(weight.scale, 4, "scale");
  if (weight.zero_point) check_part(*weight.zero_point, 4, "zero_point");
  if (weight.w_sum) check_part(*weight.w_sum, 2, "w_sum");
  if (bias) check_part(*bias, 2, "bias");
  check_value(n > 0, kOp, "n", "expected at least 1 row of w, got ", n);
  check_size(n, kOp, "n");
  check_size(x, kOp, "x");
  return count;
}

// multiply(rows of x, weight, bias) is what an expert does, one after the other, by offsets that the host can read.
template <class Multiply>
Tensor one_by_one(const Tensor& x, const Weight& weight, const std::optional<Tensor>& bias, int64_t n,
                  const Tensor& offsets, Multiply multiply) {
  const int64_t count = check_experts(x, weight, bias, n, offsets), m = x.size(0);
  const Tensor ends = as_contiguous(offsets);
  const void* const data = ends.const_data_ptr();
  const bool wide = dtype_of(offsets) == ScalarType::Long;
  Tensor rows = x, out = new_tensor(x, {m, n});
  int64_t begin = 0;
  for (int64_t expert = 0; expert < count; ++expert) {
    const int64_t end = wide ? static_cast<const int64_t*>(data)[expert] : static_cast<const int32_t*>(data)[expert];
    check_value(end >= begin && end <= m, kOp, "offsets", "expected ascending numbers of at most m = ", m, ", got ",
                end, " after ", begin);
    if (end == begin) continue;
    std::optional<Tensor> of_bias;
    if (bias) of_bias = torch::stable::select(*bias, 0, expert);
    Tensor to = torch::stable::narrow(out, 0, begin, end - begin);
    torch::stable::copy_(to,
                         multiply(torch::stable::narrow(rows, 0, begin, end - begin), weight.expert(expert), of_bias));
    begin = end;
  }
  Tensor rest = torch::stable::narrow(out, 0, begin, m - begin);
  torch::stable::zero_(rest);
  return out;
}

// Checks what does not depend on the device, then calls one(x_is_int8, x, weight, bias), or with offsets
// grouped(x_is_int8, x, weight, bias, offsets). takes_int8: whether there is an op for x as int8.
template <class One, class Grouped>
Tensor run(const Tensor& x, const std::vector<Tensor>& parts, const std::optional<Tensor>& bias,
           const std::string& format, bool grouped, bool takes_int8, const std::string& x_as,
           const std::optional<int64_t>& group_size, const std::optional<Tensor>& offsets, One one,
           Grouped grouped_mm) {
  check_value(x_as == "given" || x_as == "int8", kOp, "x_as", "expected given or int8, got ", x_as);
  const bool int8 = x_as == "int8";
  check_value(!int8 || takes_int8, kOp, "x_as", "expected given for ", format, " weights, got ", x_as);
  check_value(group_size.has_value() == grouped, kOp, "group_size", "expected ", grouped ? "a number" : "None", " for ",
              format, " weights");
  check_tensor(x, kOp, "x");
  const Weight weight(parts);
  check_value(grouped || !weight.zero_point, kOp, "parts", "expected no zero_point for ", format, " weights");
  check_value(int8 || !weight.w_sum, kOp, "parts", "expected no w_sum unless x_as is int8");
  return offsets ? grouped_mm(int8, x, weight, bias, *offsets) : one(int8, x, weight, bias);
}

}  // namespace aoq::mm_entry
