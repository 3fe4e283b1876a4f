// What int4_quantize checks and allocates, on any device.
#pragma once
#include <optional>
#include <string>
#include <tuple>

#include "base/tensors.h"
#include "formats/packed.h"
#include "ops/int4_quantize/int4_quantize.h"

namespace aoq {

// Of four bits, or of others as intx_quantize has them.
inline Int4Mapping parse_int4_mapping(const std::string& mapping, const char* op) {
  if (mapping == "symmetric") return Int4Mapping::symmetric;
  if (mapping == "asymmetric") return Int4Mapping::asymmetric;
  check_value(mapping == "hqq", op, "mapping", "expected symmetric, asymmetric or hqq, got ", mapping);
  return Int4Mapping::hqq;
}

// Calls run(Int4Quantize&) if there is anything to quantize.
template <class Run>
std::tuple<Tensor, Tensor, Tensor> int4_quantize_entry(const char* op, const Tensor& w, int64_t bits,
                                                       int64_t group_size, const std::string& mapping,
                                                       std::optional<ScalarType> scale_dtype, Run run) {
  Int4Quantize args{};
  check_value(bits >= 1 && bits <= 8, op, "bits", "expected 1 to 8, got ", bits);
  args.bits = static_cast<int>(bits);
  check_tensor(w, op, "w");
  args.w_dtype = float_dtype(dtype_of(w), op, "w");
  check_value(w.dim() == 2 && w.size(1) > 0, op, "w", "expected shape [n, k] with k > 0, got ", shape(w));
  check_size(w, op, "w");
  args.n = w.size(0);
  args.k = w.size(1);
  args.group = checked_group(group_size, args.k, op);
  args.mapping = parse_int4_mapping(mapping, op);
  const ScalarType stored = scale_dtype.value_or(dtype_of(w));
  args.scale_dtype = float_dtype(stored, op, "scale_dtype");

  const int64_t groups = ceil_div(args.k, args.group);
  const bool has_zero_point = args.mapping != Int4Mapping::symmetric;
  Tensor qdata = new_tensor(w, {args.n, ceil_div(args.k * bits, 8)}, ScalarType::Byte);
  Tensor scale = new_tensor(w, {args.n, groups}, stored);
  Tensor zero_point = new_tensor(w, {args.n, has_zero_point ? groups : 0}, stored);
  if (args.n == 0) return {qdata, scale, zero_point};

  const Tensor w_ = as_rows(w, args.w_stride);
  args.w = w_.const_data_ptr();
  args.qdata = static_cast<uint8_t*>(qdata.mutable_data_ptr());
  args.scale = scale.mutable_data_ptr();
  args.zero_point = zero_point.mutable_data_ptr();
  run(args);
  return {qdata, scale, zero_point};
}

}  // namespace aoq
