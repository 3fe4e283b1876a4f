// Argument checks of op entries. Text starts with the Python exception that `aoq.ops` turns it into, and names the
// operand, what was wanted and what came.
#pragma once
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "base/dtype.h"

namespace aoq {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <class... Parts>
void check_value(bool ok, const char* op, const char* operand, const Parts&... parts) {
  if (!ok) throw std::runtime_error(join("ValueError: aoq::", op, ": ", operand, ": ", parts...));
}

template <class... Parts>
void check_type(bool ok, const char* op, const char* operand, const Parts&... parts) {
  if (!ok) throw std::runtime_error(join("TypeError: aoq::", op, ": ", operand, ": ", parts...));
}

inline std::string shape(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

// None is passed on where a schema has a tensor.
inline void check_tensor(const Tensor& tensor, const char* op, const char* operand) {
  check_type(tensor.defined(), op, operand, "expected a tensor, got None");
}

// Undefined for dtypes that the stable ABI has no name for: no op takes them.
inline ScalarType dtype_of(const Tensor& tensor) {
  try {
    return tensor.scalar_type();
  } catch (const std::exception&) {
    return ScalarType::Undefined;
  }
}

inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Double: return "float64";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Float8_e5m2: return "float8_e5m2";
    case ScalarType::Undefined: return "another dtype";
    default: return torch::headeronly::toString(type);
  }
}

inline Dtype float_dtype(ScalarType type, const char* op, const char* operand) {
  if (type == ScalarType::BFloat16) return Dtype::bf16;
  if (type == ScalarType::Half) return Dtype::f16;
  check_type(type == ScalarType::Float, op, operand, "expected bfloat16, float16 or float32, got ", dtype_name(type));
  return Dtype::f32;
}

inline void check_uint8(const Tensor& tensor, const char* op, const char* operand) {
  check_tensor(tensor, op, operand);
  check_type(dtype_of(tensor) == ScalarType::Byte, op, operand, "expected uint8, got ", dtype_name(dtype_of(tensor)));
}

inline std::string device_name(const Tensor& tensor) {
  return tensor.is_cpu() ? "cpu" : (tensor.is_cuda() ? "cuda:" : "device ") + std::to_string(tensor.get_device_index());
}

inline void check_same_device(const Tensor& tensor, const Tensor& x, const char* op, const char* operand) {
  check_value(device_name(tensor) == device_name(x), op, operand, "expected the device of x, ", device_name(x),
              ", got ", device_name(tensor));
}

inline void check_shape(const Tensor& tensor, std::initializer_list<int64_t> wanted, const char* op,
                        const char* operand) {
  bool ok = tensor.dim() == static_cast<int64_t>(wanted.size());
  int64_t i = 0;
  std::string text = "[";
  for (const int64_t size : wanted) {
    ok = ok && tensor.size(i) == size;
    text += (i++ ? ", " : "") + std::to_string(size);
  }
  check_value(ok, op, operand, "expected shape ", text, "], got ", shape(tensor));
}

// No address space holds more elements, and what entries and kernels count below it does not overflow: a few bytes, a
// padding to whole tiles for each. Tensors without memory behind them (expanded ones, those without rows) may be
// larger.
constexpr int64_t kMaxSize = int64_t{1} << 48;

inline void check_size(int64_t size, const char* op, const char* operand) {
  check_value(size <= kMaxSize, op, operand, "expected at most 2^48, got ", size);
}

// Of [..., k]: k counts also where there are no rows.
inline void check_size(const Tensor& tensor, const char* op, const char* operand) {
  bool ok = tensor.numel() <= kMaxSize;
  for (int64_t i = 0; i < tensor.dim(); ++i) ok = ok && tensor.size(i) <= kMaxSize;
  check_value(ok, op, operand, "expected at most 2^48 elements, got shape ", shape(tensor));
}

// The group size that kernels see, at most k: `group` is a multiple of 8 (a unit's columns), or at least k (one group),
// up to the largest integer that Python can pass.
inline int64_t checked_group(int64_t group, int64_t k, const char* op) {
  check_value(group > 0 && (group % 8 == 0 || group >= k), op, "group_size",
              "expected a multiple of 8, or at least k = ", k, ", got ", group);
  return group < k ? group : k;
}

}  // namespace aoq
