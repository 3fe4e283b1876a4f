// The arguments of ops that multiply by a weight of one format, one for each of its parts; the same on every device.
#pragma once
#include <string>

#include "mm/packed_mm_entry.h"

namespace aoq {
namespace {

// (x, packed, scale[, zero_point][, w_sum], bias, n[, group_size], config): a zero point and a group size where the
// format has groups, a sum where x becomes int8.
template <bool kGrouped, bool kInt8>
struct MmArguments;

template <>
struct MmArguments<true, false> {
  static constexpr const char *parts = ", Tensor? zero_point", *sizes = ", int group_size";
  template <class Op>
  static Tensor call(const Tensor& x, const Tensor& packed, const Tensor& scale,
                     const std::optional<Tensor>& zero_point, const std::optional<Tensor>& bias, int64_t n,
                     int64_t group_size, int64_t config) {
    return Op::run({x, packed, scale, zero_point, {}, bias}, n, group_size, config);
  }
};

template <>
struct MmArguments<true, true> {
  static constexpr const char *parts = ", Tensor? zero_point, Tensor? w_sum", *sizes = ", int group_size";
  template <class Op>
  static Tensor call(const Tensor& x, const Tensor& packed, const Tensor& scale,
                     const std::optional<Tensor>& zero_point, const std::optional<Tensor>& w_sum,
                     const std::optional<Tensor>& bias, int64_t n, int64_t group_size, int64_t config) {
    return Op::run({x, packed, scale, zero_point, w_sum, bias}, n, group_size, config);
  }
};

template <>
struct MmArguments<false, false> {
  static constexpr const char *parts = "", *sizes = "";
  template <class Op>
  static Tensor call(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias,
                     int64_t n, int64_t config) {
    return Op::run({x, packed, scale, {}, {}, bias}, n, {}, config);
  }
};

template <>
struct MmArguments<false, true> {
  static constexpr const char *parts = ", Tensor? w_sum", *sizes = "";
  template <class Op>
  static Tensor call(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& w_sum,
                     const std::optional<Tensor>& bias, int64_t n, int64_t config) {
    return Op::run({x, packed, scale, {}, w_sum, bias}, n, {}, config);
  }
};

template <class Arguments>
std::string mm_schema(const char* op) {
  return join(op, "(Tensor x, Tensor packed, Tensor scale", Arguments::parts, ", Tensor? bias, int n", Arguments::sizes,
              ", int config=-1) -> Tensor");
}

}  // namespace
}  // namespace aoq
